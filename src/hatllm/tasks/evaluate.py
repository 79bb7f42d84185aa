"""task=evaluate: a finished run answers again, with the decoder of the command line."""

import shutil
import time
from pathlib import Path

import polars as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.data.prepare import Dataset, load_dataset
from hatllm.files import write_json, write_table
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.metrics.slices import example_slices
from hatllm.recommend.split_answers import split_answers
from hatllm.runs.begin import check_data_unchanged
from hatllm.runs.lock import held_alone
from hatllm.runs.name import config_hash
from hatllm.runs.provenance import environment
from hatllm.runs.run_files import (
    ENVIRONMENT_FILE,
    EVALUATIONS,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SHARDS,
)
from hatllm.tables.run_report import metrics_table
from hatllm.training.assemble import assemble, check_catalogue, load_tuned
from hatllm.training.decode_splits import decode_splits, start_processes
from hatllm.training.stop_signals import StopSignals


def evaluate(config: Config) -> Path:
    """Answer a split again with a finished run; metrics and predictions come beside the old ones.

    Args:
        config: The run's own settings, with the command line's on top.

    Returns:
        The new folder, ``evaluations/SPLIT-HASH`` inside the run's.

    Raises:
        ValueError: If a setting does not fit, the data have changed since the run, or another
            process makes the same evaluation.
    """
    assert config.task.run_folder is not None
    start, run, split = time.perf_counter(), Path(config.task.run_folder), config.task.split
    folder = run / EVALUATIONS / f"{split}-{config_hash(config)[:8]}"
    is_llm, is_first = config.model.kind == "llm", rank_zero_only.rank == 0
    if not (is_llm or is_first):
        return folder  # one process answers for a baseline
    with held_alone(run / f"{EVALUATIONS}-{folder.name}"), StopSignals() as signals:
        saved = "; the users decoded so far are saved" if is_llm else ""
        signals.at_once(f"while evaluating{saved}")
        found = (_llm_answers if is_llm else _baseline_answers)(config, folder, split)
        if found is None:
            return folder
        metrics = _write(config, folder, *found, time.perf_counter() - start)
    console = Console(quiet=not is_first)
    console.print(metrics_table(metrics))
    console.print(f"written to {folder}")
    return folder


def _llm_answers(config: Config, folder: Path, split: str) -> tuple[Dataset, pl.DataFrame] | None:
    """Examples and predictions table; None = this process is not the first, and its share done."""
    assert config.task.run_folder is not None
    run = Path(config.task.run_folder)
    start_processes(config.trainer)
    check_data_unchanged(config, run)
    parts = assemble(config, finished=run)
    lm = load_tuned(parts, config)
    with naming_what_to_lower(config, decoding=True):
        predictions = decode_splits(config, folder, parts, lm, (split,))
    return None if predictions is None else (parts.dataset, predictions[split])


def _baseline_answers(config: Config, folder: Path, split: str) -> tuple[Dataset, pl.DataFrame]:
    """Examples and predictions table, from what the run has learned."""
    assert config.task.run_folder is not None
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    check_data_unchanged(config, Path(config.task.run_folder))
    dataset = load_dataset(config)
    check_catalogue(config, dataset)
    return dataset, split_answers(config, dataset, split, folder / SHARDS)


def _write(
    config: Config, folder: Path, dataset: Dataset, table: pl.DataFrame, seconds: float
) -> dict[str, dict[str, float]]:
    """Write the folder's files; returns the metrics."""
    split = config.task.split
    slices = example_slices(dataset.splits[split], dataset.items, dataset.train_interactions)
    metrics = {split: evaluate_predictions(table, dataset.items, slices, config.cut_offs)}
    write_table(folder / PREDICTIONS_FILE, table)
    made_by = environment(dataset.manifest, {"total": round(seconds, 3)}, config.model.dtype)
    write_json(folder / ENVIRONMENT_FILE, made_by)
    write_json(folder / METRICS_FILE, metrics)
    shutil.rmtree(folder / SHARDS, ignore_errors=True)  # the table holds their rows
    return metrics
