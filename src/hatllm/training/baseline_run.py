"""The part of task=train that answers for a model that knows items by id only."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console
from safetensors.torch import save_file

from hatllm.baselines.popularity import rank_titles, ranked_predictions
from hatllm.baselines.ranks_of_scores import TitleIndex, predictions_of
from hatllm.baselines.sequences import Sequences, sequences_of
from hatllm.config import Config
from hatllm.data.prepare import Dataset, load_dataset
from hatllm.data.train_interactions import item_counts, sequence_rows
from hatllm.files import write_table, written_whole
from hatllm.memory import naming_what_to_lower
from hatllm.metrics.best_step import exported
from hatllm.runs.run_files import CHECKPOINT_FILE, POPULARITY_FILE, PREDICTIONS, WEIGHTS_FILE
from hatllm.training.checkpoints import load_checkpoint
from hatllm.training.counted_run import counted_answers
from hatllm.training.finite_loss import stop_at_non_finite_loss
from hatllm.training.fused_run import fused_answers
from hatllm.training.id_model import (
    MONITOR,
    Fitted,
    Keeping,
    NonFiniteLossError,
    SequenceModel,
    build_sequence_model,
    fit,
    scores,
)
from hatllm.training.stop_signals import StopSignals

console = Console()


def baseline_predictions(
    config: Config,
    folder: Path,
    dataset: Dataset,
    loggers: list[Any],
    seconds: dict[str, float],
    signals: StopSignals,
) -> tuple[dict[str, pl.DataFrame], dict[str, Any] | None]:
    """Train where there is something to train, and answer valid and test.

    Args:
        config: The run.
        folder: Run folder; a trained model's weights go to ``model.safetensors``, neighbours to
            ``neighbours.parquet``, transitions to ``transitions.parquet``, vectors of titles to
            ``sentence_vectors.safetensors``.
        dataset: The prepared examples.
        loggers: Lightning loggers, for curves.
        seconds: Gains ``train`` and ``evaluate``.
        signals: Say when to stop.

    Returns:
        split -> predictions table; which step answers, as `exported` of
        `hatllm.metrics.best_step` says it, None = no training.
    """
    start, chosen = time.perf_counter(), None
    match config.model.kind:
        case "popularity":
            found = _popular_answers(config, folder, dataset)
        case "knn" | "titles" | "titles_graph" | "sentences":
            found = counted_answers(config, folder, dataset)
        case "fusion":
            found = fused_answers(config, folder, dataset)
        case _:
            index = TitleIndex.of(dataset.items)
            model, chosen = _trained(config, folder, dataset, index, loggers, signals)
            seconds["train"] = time.perf_counter() - start
            found = {split: _answers(config, dataset, split, model, index) for split in PREDICTIONS}
    seconds["evaluate"] = time.perf_counter() - start - seconds.get("train", 0.0)
    shutil.rmtree((folder / CHECKPOINT_FILE).parent, ignore_errors=True)
    return found, chosen


def _popular_answers(config: Config, folder: Path, dataset: Dataset) -> dict[str, pl.DataFrame]:
    assert config.model.popularity is not None
    count = config.model.popularity.count
    ranked = rank_titles(_counted(dataset, count), dataset.splits["valid"], dataset.items)
    write_table(folder / POPULARITY_FILE, ranked)
    return {split: _answers_of_popularity(ranked, config, dataset, split) for split in PREDICTIONS}


def popularity_floor(config: Config, dataset: Dataset) -> pl.DataFrame:
    """What popularity answers the test split, to stand beside every run."""
    counted = _counted(dataset, "interactions")
    ranked = rank_titles(counted, dataset.splits["valid"], dataset.items)
    return _answers_of_popularity(ranked, config, dataset, "test")


def _answers_of_popularity(
    ranked: pl.DataFrame, config: Config, dataset: Dataset, split: str
) -> pl.DataFrame:
    top_k, exclude_history = config.decode.top_k, config.decode.exclude_history
    return ranked_predictions(ranked, dataset.splits[split], top_k, exclude_history)


def _counted(dataset: Dataset, count: str) -> pl.DataFrame:
    if count == "interactions":
        return item_counts(dataset.train_interactions["item_id"])
    return item_counts(dataset.full_train["target"])


def rows_to_fit(config: Config, dataset: Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that a model of SEQUENCE_KINDS learns from, and those it chooses its epoch on.

    Args:
        config: The run.
        dataset: Its prepared examples.

    Returns:
        Train and valid: all of them with ``train_on: full``, else the sampled rows. All of train
        are its rows, but under ``leave_one_out`` the users' train sequences.
    """
    settings = config.model.sequence
    assert settings is not None
    if settings.train_on != "full":
        return dataset.splits["train"], dataset.splits["valid"]
    # A sample of valid is too small to stop on where one target in thirty is found.
    whole = replace(config, data=replace(config.data, valid_rows=None))
    return all_of_train(config, dataset), load_dataset(whole).splits["valid"]


def all_of_train(config: Config, dataset: Dataset) -> pl.DataFrame:
    """Every train row, or under ``leave_one_out`` the users' train sequences.

    Returns:
        user_id, history, target and, of train rows, example_id.
    """
    settings = config.model.sequence
    assert settings is not None
    if dataset.manifest["protocol"] != "leave_one_out":
        return dataset.full_train
    every = settings.every_position or settings.cloze is not None
    return sequence_rows(dataset.train_interactions, config.data.max_history_items, every)


def _trained(
    config: Config,
    folder: Path,
    dataset: Dataset,
    index: TitleIndex,
    loggers: list[Any],
    signals: StopSignals,
) -> tuple[SequenceModel, dict[str, Any]]:
    """Fit a model of SEQUENCE_KINDS and write its weights; what chose them comes with it."""
    settings = config.model.sequence
    assert settings is not None
    train, valid = rows_to_fit(config, dataset)
    model = build_sequence_model(
        config.model.kind, len(index.item_id_I), config.data.max_history_items, settings
    )
    model.to(_device(config))
    console.print(f"[bold]{folder.name}[/] {len(train)} rows, {len(valid)} valid rows")
    saver = _Saver(folder / CHECKPOINT_FILE, config.trainer.checkpoint_every_seconds, signals)
    signals.finish_first()
    try:
        with naming_what_to_lower(config, decoding=False):
            fitted = _fitted(model, (train, valid), index, config, loggers, saver)
    except NonFiniteLossError as error:
        column = "example_id" if "example_id" in train.columns else "user_id"
        ids = {f"{column}s": train[column].gather(error.row_B.tolist()).sort().to_list()}
        stop_at_non_finite_loss(folder, config, ids, error.step, settings.learning_rate, error.loss)
    for logger in loggers:
        logger.save()
    chosen = exported(fitted.validations, MONITOR, fitted.num_steps)
    console.print(f"best of {fitted.num_epochs} epochs: {fitted.best_epoch} ({chosen['why']})")
    with written_whole(folder / WEIGHTS_FILE) as partial:
        save_file(model.state_dict(), partial)
    signals.at_once("after training")
    return model, chosen


def _fitted(
    model: SequenceModel,
    rows: tuple[pl.DataFrame, pl.DataFrame],
    index: TitleIndex,
    config: Config,
    loggers: list[Any],
    saver: "_Saver",
) -> Fitted:
    """Fit on train rows; goes on where a stopped run left its checkpoint.

    The epoch is chosen on valid rows, whose histories are answers where those of test are.
    """
    settings = config.model.sequence
    assert settings is not None
    train, valid = (_sequences(config, frame, index) for frame in rows)

    def log(metrics: dict[str, float], step: int) -> None:
        for logger in loggers:
            logger.log_metrics(metrics, step)

    saved = None
    if saver.path.exists():
        console.print(f"resuming from {saver.path}")
        saved = load_checkpoint(saver.path)
    excluded = rows[1]["history"] if config.decode.exclude_history else None
    keeping = Keeping(saver, saver.is_due, saved)
    return fit(model, train, valid, index, settings, log, keeping, excluded)


class _Saver:
    """Writes what `fit` needs to go on: by time, at its end, and where a signal has come."""

    def __init__(self, path: Path, every_seconds: float, signals: StopSignals) -> None:
        self.path, self.every_seconds, self.signals = path, every_seconds, signals
        self.written_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether to write after this step."""
        is_late = time.monotonic() - self.written_at >= self.every_seconds
        return is_late or self.signals.asked is not None

    def __call__(self, state: dict[str, Any]) -> None:
        if state["is_done"] or self.is_due():
            with written_whole(self.path) as partial:
                torch.save(state, partial)
            self.written_at = time.monotonic()
        if self.signals.asked is not None:
            self.signals.end(f"after step {state['steps']}, {state['epoch']} epochs done")


def _answers(
    config: Config, dataset: Dataset, split: str, model: SequenceModel, index: TitleIndex
) -> pl.DataFrame:
    settings = config.model.sequence
    assert settings is not None
    examples = dataset.splits[split]
    batches = scores(model, _sequences(config, examples, index), settings.batch_size)
    top_k, exclude_history = config.decode.top_k, config.decode.exclude_history
    return predictions_of(examples, batches, index, top_k, exclude_history)


def _sequences(config: Config, examples: pl.DataFrame, index: TitleIndex) -> Sequences:
    return sequences_of(examples, index.item_id_I, config.data.max_history_items)


def _device(config: Config) -> torch.device:
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")
