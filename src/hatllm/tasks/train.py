"""task=train: prepare, fine-tune, evaluate, report; finished runs are not run twice."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from hatllm.config import Config
from hatllm.data.datamodule import Examples
from hatllm.data.prepare import Dataset, load_dataset
from hatllm.data.table_cache import table_hash
from hatllm.figures.draw_masks import draw_masks
from hatllm.figures.saving import save_figure
from hatllm.files import write_json, write_table
from hatllm.hardware import check_hardware
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.from_predictions import evaluate_predictions
from hatllm.metrics.slices import example_slices
from hatllm.model.export import export_adapter
from hatllm.model.masked_lm import MaskedLM
from hatllm.runs.begin import begin, check_data_unchanged
from hatllm.runs.folder import is_finished
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
from hatllm.training.baseline_run import baseline_predictions, popularity_floor
from hatllm.training.decode_splits import decode_splits
from hatllm.training.fit_llm import start_from_run, tuned
from hatllm.training.lightning_module import Recommender
from hatllm.training.loggers import build_loggers, log_results, wants_picture
from hatllm.training.stop_signals import StopSignals
from hatllm.training.title_prior import write_log_shares
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
    dataset = parts.dataset
    rows = Examples.of(dataset.splits["train"], config.data.max_history_items)
    num_steps = config.trainer.num_steps(len(rows))
    resumed = begin(config, folder, dataset)
    console.print(
        f"[bold]{folder.name}[/] layers {parts.schedule.letters}, {num_steps} steps, "
        f"weights {config.model.dtype}"
    )
    lm = parts.load_model(config)
    start_from_run(lm, config)
    # Under FSDP the final table is decoded by a model that is put together anew.
    answers = None if config.trainer.strategy == "fsdp" else ValidAnswers(config, folder, parts)
    recommender = Recommender(
        lm, parts.catalogue, config, num_steps, dataset.splits["valid"], answers
    )
    loggers = build_loggers(config, folder, dataset.manifest, parts.schedule)
    picture = None
    if wants_picture(loggers) and rank_zero_only.rank == 0:
        picture = save_figure(draw_masks(*masks_of(config, parts)), folder / "masks.png")
    seconds = {"prepare": time.perf_counter() - start}
    state = TrainingState(config, folder, len(rows), num_steps, signals, answers)
    chosen = tuned(config, folder, recommender, rows, parts, loggers, state, seconds)
    signals.at_once("while decoding; the trained weights and the users decoded so far are saved")
    evaluated = time.perf_counter()
    with naming_what_to_lower(config, decoding=True):
        predictions = decode_splits(config, folder, parts, recommender.lm, ("valid", "test"))
    now = time.perf_counter()
    seconds |= {"evaluate": now - evaluated, "total": now - start}
    if predictions is not None:
        export_adapter(recommender.lm, parts.schedule, config, folder)
        write_log_shares(folder, parts.catalogue)
        facts = {"resumed": resumed} | _facts(config, parts, recommender.lm, chosen)
        metrics = _finish(config, folder, dataset, predictions, seconds, facts)
        shutil.rmtree(folder / SHARDS)  # the tables hold their rows
        log_results(loggers, metrics, predictions["test"], dataset.items, picture)
    return folder


def _facts(
    config: Config, parts: Parts, lm: MaskedLM, chosen: dict[str, Any] | None
) -> dict[str, Any]:
    """What environment.json says of an LLM's run."""
    facts: dict[str, Any] = {
        "titles": asdict(parts.title_counts),
        "temperature": {"legal": lm.trie_temperature, "vocabulary": lm.vocab_temperature},
    }
    if config.prior is not None:
        facts["prior"] = config.prior
    if counts := parts.dataset.manifest.get("in_place"):
        facts["in_place"] = counts
    return facts if chosen is None else facts | {"exported": chosen}


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
    asked = pl.concat([dataset.splits[split] for split in predictions])
    slices = example_slices(asked, dataset.items, dataset.train_interactions)
    metrics = _measured(config, dataset, slices, predictions)
    rounded = {name: round(value, 3) for name, value in seconds.items()}
    _write_tables(folder, dataset, slices, predictions)
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


def _measured(
    config: Config, dataset: Dataset, slices: pl.DataFrame, predictions: dict[str, pl.DataFrame]
) -> dict[str, dict[str, float]]:
    """Every metric of each split, and of the popularity floor on test."""
    floor = popularity_floor(config, dataset)
    return {
        split: evaluate_predictions(table, dataset.items, slices, config.cut_offs)
        for split, table in (predictions | {"popularity": floor}).items()
    }


def _write_tables(
    folder: Path, dataset: Dataset, slices: pl.DataFrame, predictions: dict[str, pl.DataFrame]
) -> None:
    """The answers, the catalogue, the users and what they were asked, with its slices."""
    write_table(folder / PREDICTIONS_FILE, predictions["test"])
    write_table(folder / VALID_PREDICTIONS_FILE, predictions["valid"])
    write_table(folder / ITEMS_FILE, dataset.items)
    write_table(folder / USERS_FILE, dataset.users)
    users = dataset.users.rename({"source_id": "source_user_id"})
    examples = dataset.splits["test"].join(users, on="user_id", how="left", maintain_order="left")
    examples = examples.join(slices, on="example_id", how="left", maintain_order="left")
    write_table(folder / EXAMPLES_FILE, examples)
