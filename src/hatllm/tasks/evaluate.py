"""task=evaluate: decode a finished run again, with the decoder of the command line."""

import shutil
import time
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.model.export import load_exported
from hatllm.model.masked_lm import MaskedLM
from hatllm.model.out_of_memory import naming_what_to_lower
from hatllm.report.evaluation import evaluate_predictions
from hatllm.report.terminal import metrics_table
from hatllm.tasks.assemble import ModelParts, Parts, assemble
from hatllm.tasks.decoding import SHARDS, decode_splits, start_processes
from hatllm.tasks.run_folder import config_hash, environment
from hatllm.tasks.run_lock import held_alone
from hatllm.tasks.same_data import check_data_unchanged
from hatllm.tasks.stop_signals import StopSignals
from hatllm.whole_files import write_json, write_table


def load_run(config: Config) -> tuple[Parts, MaskedLM]:
    """The data and the tuned model of a finished run.

    Args:
        config: The run's own settings, with the command line's on top; ``task.run_folder`` set.

    Returns:
        Data and model, the model on the GPU where the trainer asks for one.
    """
    assert config.task.run_folder is not None
    folder = Path(config.task.run_folder)
    parts = assemble(config, finished=folder)
    return parts, load_tuned(config, parts, folder)


def load_tuned(config: Config, parts: ModelParts, folder: Path) -> MaskedLM:
    """The tuned model of a finished run, on the GPU where the trainer asks for one."""
    lm = parts.load_model(config).eval()
    load_exported(lm, config, folder)
    if config.trainer.accelerator != "cpu" and torch.cuda.is_available():
        lm.cuda()
    return lm


def evaluate(config: Config) -> Path:
    """Decode a split of a finished run and write metrics and predictions beside the old ones.

    Args:
        config: The run's own settings, with the command line's on top.

    Returns:
        The new folder, ``evaluations/SPLIT-HASH`` inside the run's.

    Raises:
        ValueError: If a setting does not fit, the model is not an LLM, the data have changed since
            the run, or another process makes the same evaluation.
    """
    if config.model.kind != "llm":
        raise ValueError(f"task=evaluate needs an LLM run, this one is model={config.model.name}")
    assert config.task.run_folder is not None
    start, run, split = time.perf_counter(), Path(config.task.run_folder), config.task.split
    folder = run / "evaluations" / f"{split}-{config_hash(config)[:8]}"
    StopSignals()
    console = Console(quiet=rank_zero_only.rank != 0)
    with held_alone(run / f"evaluations-{folder.name}"):
        start_processes(config.trainer)
        check_data_unchanged(config, run)
        parts, lm = load_run(config)
        with naming_what_to_lower(config, decoding=True):
            predictions = decode_splits(config, folder, parts, lm, (split,))
        if predictions is None:
            return folder
        dataset = parts.dataset
        table = predictions[split]
        metrics = {
            split: evaluate_predictions(
                table, dataset.items, dataset.train_interactions, config.cut_offs
            )
        }
        write_table(folder / "predictions.parquet", table)
        seconds = {"total": round(time.perf_counter() - start, 3)}
        write_json(
            folder / "environment.json", environment(dataset.manifest, seconds, config.model.dtype)
        )
        write_json(folder / "metrics.json", metrics)
        shutil.rmtree(folder / SHARDS)  # the table holds their rows
    console.print(metrics_table(metrics))
    console.print(f"written to {folder}")
    return folder
