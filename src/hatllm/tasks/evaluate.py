"""task=evaluate: decode a finished run again, with the decoder of the command line."""

import shutil
import time
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.files import write_json, write_table
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.metrics.slices import example_slices
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
from hatllm.training.assemble import assemble, load_tuned
from hatllm.training.decode_splits import decode_splits, start_processes
from hatllm.training.stop_signals import StopSignals


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
    folder = run / EVALUATIONS / f"{split}-{config_hash(config)[:8]}"
    console = Console(quiet=rank_zero_only.rank != 0)
    with held_alone(run / f"{EVALUATIONS}-{folder.name}"), StopSignals() as signals:
        signals.at_once("while evaluating; the users decoded so far are saved")
        start_processes(config.trainer)
        check_data_unchanged(config, run)
        parts = assemble(config, finished=run)
        lm = load_tuned(parts, config)
        with naming_what_to_lower(config, decoding=True):
            predictions = decode_splits(config, folder, parts, lm, (split,))
        if predictions is None:
            return folder
        dataset = parts.dataset
        table = predictions[split]
        slices = example_slices(dataset.splits[split], dataset.items, dataset.train_interactions)
        metrics = {split: evaluate_predictions(table, dataset.items, slices, config.cut_offs)}
        write_table(folder / PREDICTIONS_FILE, table)
        seconds = {"total": round(time.perf_counter() - start, 3)}
        write_json(
            folder / ENVIRONMENT_FILE, environment(dataset.manifest, seconds, config.model.dtype)
        )
        write_json(folder / METRICS_FILE, metrics)
        shutil.rmtree(folder / SHARDS)  # the table holds their rows
    console.print(metrics_table(metrics))
    console.print(f"written to {folder}")
    return folder
