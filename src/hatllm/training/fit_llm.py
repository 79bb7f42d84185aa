"""An LLM is tuned: from another run's weights where it starts from one, to its best step."""

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.data.datamodule import Examples, TrainingData
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.best_step import exported
from hatllm.model.export import load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import agreed
from hatllm.runs.folder import load_config
from hatllm.runs.run_files import CHECKPOINT_FILE
from hatllm.training.assemble import Parts
from hatllm.training.checkpoints import load_checkpoint
from hatllm.training.decode_splits import start_processes
from hatllm.training.lightning_module import Recommender
from hatllm.training.lightning_trainer import build_trainer
from hatllm.training.training_state import TrainingState

console = Console()


def start_from_run(lm: MaskedLM, config: Config) -> None:
    """Give the model the weights of `model.start_from`, where there is one.

    Raises:
        ValueError: If that run is not finished, or tuned another model or other adapters, or only
            one of the two runs has item tokens.
    """
    if config.model.start_from is None:
        return
    folder = Path(config.model.start_from)
    saved = load_config(folder, "model.start_from")
    for field in ("source", "tuning", "lora.r", "lora.alpha", "lora.target_modules"):
        theirs = OmegaConf.select(saved.model, field)
        ours = OmegaConf.select(OmegaConf.structured(config.model), field)
        if theirs != ours:
            raise ValueError(
                f"model.{field}={ours} must be {theirs} with model.start_from={str(folder)!r}, "
                "whose weights this run starts from"
            )
    if (saved.model.item_vectors is None) != (config.model.item_vectors is None):
        raise ValueError(
            f"model.item_vectors={config.model.item_vectors!r} must be "
            f"{saved.model.item_vectors!r} with model.start_from={str(folder)!r}: both or none of "
            "the two runs have item tokens"
        )
    load_exported(lm, config, folder)


def fit(
    config: Config,
    folder: Path,
    recommender: Recommender,
    rows: Examples,
    parts: Parts,
    loggers: list[Any],
    state: TrainingState,
) -> dict[str, Any]:
    """Train, from `last.ckpt` where there is one, and load the best weights.

    Args:
        config: The run.
        folder: Run folder; checkpoints go to ``checkpoints/``.
        recommender: The module to train, in place.
        rows: Training rows.
        parts: Data and catalogue.
        loggers: Lightning loggers.
        state: Saves, chooses and stops; knows the number of steps.

    Returns:
        Which step's weights these are and why, see `hatllm.metrics.best_step.exported`.
    """
    console.quiet = rank_zero_only.rank != 0
    data = TrainingData(rows, parts.catalogue.book, config)
    trainer = build_trainer(config, folder, loggers, state.num_steps, state)
    last = folder / CHECKPOINT_FILE
    if last.exists():
        console.print(f"resuming from {last}")
    recommender.train()
    with naming_what_to_lower(config, decoding=False):
        trainer.fit(
            recommender, data, ckpt_path=str(last) if last.exists() else None, weights_only=True
        )
    _load_best(config, recommender, parts, state, trainer.strategy)
    recommender.to(trainer.strategy.root_device)
    found = exported(state.validations, config.monitor, trainer.global_step)
    console.print(f"the answers are those of step {found['step']}: {found['why']}")
    return found


def _load_best(
    config: Config, recommender: Recommender, parts: Parts, state: TrainingState, strategy: Strategy
) -> None:
    """Give the module the weights of the best validation; without one the last stay."""
    weights: dict[str, Any] = {}
    if state.best is not None:
        weights = load_checkpoint(state.best_path(state.best))["state_dict"]
    if config.trainer.strategy == "fsdp":
        weights = weights or agreed(strategy.lightning_module_state_dict())
        recommender.lm = parts.load_model(config)  # whole again, on every process
    recommender.load_state_dict(weights, strict=False)
    recommender.score_as_trained()


def tuned(
    config: Config,
    folder: Path,
    recommender: Recommender,
    rows: Examples,
    parts: Parts,
    loggers: list[Any],
    state: TrainingState,
    seconds: dict[str, float],
) -> dict[str, Any] | None:
    """Train where there is something to train; else let the processes of the run find each other.

    Args:
        config: The run.
        folder: Run folder.
        recommender: The module, trained in place and on its device afterwards.
        rows: Training rows.
        parts: Data and catalogue.
        loggers: Lightning loggers.
        state: Saves, chooses and stops; knows the number of steps.
        seconds: Gains ``train``.

    Returns:
        As `fit`; None = nothing was trained.
    """
    if state.num_steps and config.model.tuning != "none":
        start = time.perf_counter()
        chosen = fit(config, folder, recommender, rows, parts, loggers, state)
        seconds["train"] = time.perf_counter() - start
        return chosen
    start_processes(config.trainer)
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        recommender.cuda()
    return None
