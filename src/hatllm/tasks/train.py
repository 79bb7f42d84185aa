"""task=train: prepare, fine-tune, evaluate, report; finished runs are not run twice."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.data.datamodule import Examples, TrainingData
from hatllm.data.prepare import Dataset, load_dataset
from hatllm.data.table_cache import table_hash
from hatllm.figures.draw_masks import draw_masks
from hatllm.figures.saving import save_figure
from hatllm.files import write_json, write_table
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.best_step import exported
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.model.export import export_adapter, load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.processes import agreed
from hatllm.runs.begin import begin, check_data_unchanged
from hatllm.runs.folder import is_finished, load_config
from hatllm.runs.lock import held_alone
from hatllm.runs.name import config_hash, run_folder, run_label
from hatllm.runs.provenance import code_hash, commit, environment
from hatllm.runs.run_files import (
    CHECKPOINT_FILE,
    CURVES_FILE,
    ENVIRONMENT_FILE,
    EXAMPLES_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
    RUN_FILE,
    SHARDS,
    USERS_FILE,
    VALID_PREDICTIONS_FILE,
    read_identity,
)
from hatllm.tables.run_report import metrics_table, write_run_report
from hatllm.tasks.masks import masks_of
from hatllm.training.assemble import Parts, assemble, check_catalogue
from hatllm.training.baseline_run import baseline_predictions, popularity_of
from hatllm.training.checkpoints import load_checkpoint
from hatllm.training.decode_splits import decode_splits, start_processes
from hatllm.training.hardware import check_hardware
from hatllm.training.lightning_trainer import build_trainer
from hatllm.training.loggers import build_loggers, log_results, wants_picture
from hatllm.training.recommender import Recommender
from hatllm.training.stop_signals import StopSignals
from hatllm.training.training_state import TrainingState, ValidAnswers

console = Console()


def train(config: Config) -> Path:
    """Run the whole of one run.

    Args:
        config: The run.

    Returns:
        Its folder, with metrics.json, predictions.parquet, report.md and the adapter.

    Raises:
        ValueError: If a setting does not fit the data, the model or the machine, the data have
            changed since the run was finished, or another process works in the folder.
    """
    folder = run_folder(config)
    is_first = rank_zero_only.rank == 0
    console.quiet = not is_first
    with held_alone(folder), StopSignals() as signals:
        if is_finished(folder) and not config.task.force:
            _refuse_other_settings(folder, config)
            check_data_unchanged(config, folder)
            console.print(f"finished already, not run again (task.force=true does): {folder}")
            return folder
        code_hash()  # now, of the files that this process has just read
        commit()
        torch.manual_seed(config.seed)
        if config.model.kind == "llm":
            return _run_llm(config, folder, signals)
        # One process makes a baseline, however many torchrun or SLURM has started.
        return _run_baseline(config, folder, signals) if is_first else folder


def _refuse_other_settings(folder: Path, config: Config) -> None:
    """A run that was given a name is not any other run of that name."""
    theirs = read_identity(folder).get("config_hash")
    if config.run_name is not None and theirs != config_hash(config):
        raise ValueError(
            f"run_name={config.run_name!r}: {folder} is a finished run with other settings; give "
            "another name, or task.force=true to replace it"
        )


def _run_baseline(config: Config, folder: Path, signals: StopSignals) -> Path:
    start = time.perf_counter()
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_hardware(config)
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    resumed = begin(config, folder, dataset)
    if not (folder / CHECKPOINT_FILE).exists():
        (folder / CURVES_FILE).unlink(missing_ok=True)
    loggers = build_loggers(config, folder, dataset.manifest, None)
    seconds = {"prepare": time.perf_counter() - start}
    predictions, chosen = baseline_predictions(config, folder, dataset, loggers, seconds, signals)
    seconds["total"] = time.perf_counter() - start
    facts: dict[str, Any] = {"resumed": resumed}
    if chosen is not None:
        facts["exported"] = chosen
    metrics = _finish(config, folder, dataset, predictions, seconds, facts)
    log_results(loggers, metrics, predictions["test"], dataset.items, None)
    return folder


def _run_llm(config: Config, folder: Path, signals: StopSignals) -> Path:
    start = time.perf_counter()
    parts = assemble(config)
    rows = Examples.of(parts.dataset.splits["train"], config.data.max_history_items)
    num_steps = config.trainer.num_steps(len(rows))
    resumed = begin(config, folder, parts.dataset)
    console.print(
        f"[bold]{folder.name}[/] layers {parts.schedule.letters}, {num_steps} steps, "
        f"weights {config.model.dtype}"
    )
    lm = parts.load_model(config)
    start_from_run(lm, config)
    dataset = parts.dataset
    # Under FSDP the final table is decoded by a model that is put together anew.
    answers = None
    if config.trainer.strategy != "fsdp":
        answers = ValidAnswers(config, folder, parts)
    recommender = Recommender(
        lm, parts.catalogue, config, num_steps, dataset.splits["valid"], answers
    )
    seconds = {"prepare": time.perf_counter() - start}
    loggers = build_loggers(config, folder, dataset.manifest, parts.schedule)
    chosen = picture = None
    if wants_picture(loggers) and rank_zero_only.rank == 0:
        picture = save_figure(draw_masks(*masks_of(config, parts)), folder / "masks.png")
    if num_steps and config.model.tuning != "none":
        trained = time.perf_counter()
        state = TrainingState(
            config, (folder / CHECKPOINT_FILE).parent,
            len(rows) // config.trainer.global_batch_size, num_steps, signals, answers,
        )  # fmt: skip
        chosen = fit(config, folder, recommender, rows, parts, num_steps, loggers, state)
        seconds["train"] = time.perf_counter() - trained
    else:
        start_processes(config.trainer)
        if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
            recommender.cuda()
    signals.at_once("while decoding; the trained weights and the users decoded so far are saved")
    evaluated = time.perf_counter()
    with naming_what_to_lower(config, decoding=True):
        predictions = decode_splits(config, folder, parts, recommender.lm, ("valid", "test"))
    seconds["evaluate"] = time.perf_counter() - evaluated
    seconds["total"] = time.perf_counter() - start
    if predictions is not None:
        export_adapter(recommender.lm, parts.schedule, config, folder)
        facts = {"resumed": resumed, "titles": asdict(parts.title_counts)}
        lm = recommender.lm
        facts["temperature"] = {"legal": lm.trie_temperature, "vocabulary": lm.vocab_temperature}
        if counts := parts.dataset.manifest.get("in_place"):
            facts["in_place"] = counts
        if chosen is not None:
            facts["exported"] = chosen
        metrics = _finish(config, folder, dataset, predictions, seconds, facts)
        shutil.rmtree(folder / SHARDS)  # the tables hold their rows
        log_results(loggers, metrics, predictions["test"], dataset.items, picture)
    return folder


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
    num_steps: int,
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
        num_steps: Optimizer steps.
        loggers: Lightning loggers.
        state: Saves, chooses and stops.

    Returns:
        Which step's weights these are and why, see `best.exported`.
    """
    data = TrainingData(rows, parts.catalogue.book, config)
    trainer = build_trainer(config, folder, loggers, num_steps, state)
    last = folder / CHECKPOINT_FILE
    if last.exists():
        console.print(f"resuming from {last}")
    recommender.train()
    with naming_what_to_lower(config, decoding=False):
        trainer.fit(
            recommender, data, ckpt_path=str(last) if last.exists() else None, weights_only=True
        )
    weights: dict[str, Any] = {}
    if state.best is not None:
        weights = load_checkpoint(state.best_path(state.best))["state_dict"]
    if config.trainer.strategy == "fsdp":
        weights = weights or agreed(trainer.strategy.lightning_module_state_dict())
        recommender.lm = parts.load_model(config)  # whole again, on every process
    recommender.load_state_dict(weights, strict=False)
    recommender.score_as_trained()
    recommender.to(trainer.strategy.root_device)
    found = exported(state.validations, config.monitor, trainer.global_step)
    console.print(f"the answers are those of step {found['step']}: {found['why']}")
    return found


def _finish(
    config: Config,
    folder: Path,
    dataset: Dataset,
    predictions: dict[str, pl.DataFrame],
    seconds: dict[str, float],
    facts: dict[str, Any],
) -> dict[str, dict[str, float]]:
    """Write everything the folder must hold; `run.json` last, because it says finished."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        split: evaluate_predictions(
            table, dataset.items, dataset.train_interactions, config.cut_offs
        )
        for split, table in predictions.items()
    }
    metrics["popularity"] = evaluate_predictions(
        popularity_of(config, dataset, "test", "interactions"),
        dataset.items,
        dataset.train_interactions,
        config.cut_offs,
    )
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    write_table(folder / PREDICTIONS_FILE, predictions["test"])
    write_table(folder / VALID_PREDICTIONS_FILE, predictions["valid"])
    write_table(folder / ITEMS_FILE, dataset.items)
    write_table(folder / USERS_FILE, dataset.users)
    users = dataset.users.rename({"source_id": "source_user_id"})
    examples = dataset.splits["test"].join(users, on="user_id", how="left", maintain_order="left")
    write_table(folder / EXAMPLES_FILE, examples)
    write_json(folder / MANIFEST_FILE, dataset.manifest)
    write_json(folder / METRICS_FILE, metrics)
    made_by = environment(dataset.manifest, rounded, config.model.dtype) | facts
    write_json(folder / ENVIRONMENT_FILE, made_by)
    run = {
        "label": run_label(config),
        "data": config.data.name,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "split_hash": dataset.manifest["split_hash"],
        "data_hash": dataset.manifest["data_hash"],
        "catalogue_hash": table_hash(dataset.items),
        "seconds": rounded,
    }
    write_run_report(folder, run_label(config))
    write_json(folder / RUN_FILE, run)
    console.print(metrics_table(metrics))
    console.print(f"report: {folder / REPORT_FILE}")
    return metrics
