"""What an experiment shows beside its main table: by target popularity, by time spent."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.metrics.from_predictions import SLICES
from hatllm.metrics.uncertainty import mean_and_std_over_seeds
from hatllm.runs.cell import Cell
from hatllm.tables.numbers import DASH, OVER_SEEDS, cut_offs_of
from hatllm.tables.run_report import markdown_table

EFFICIENCY_NOTE = (
    "By the runs' own clocks, means over num_seeds, in parentheses the standard deviation over "
    "them: the seeds whose run was not resumed, because the clock of one that was holds its last "
    "part only. – where no such run has this part; rows_per_s also where training may stop early."
)
SLICES_NOTE = (
    f"Means over seeds, {OVER_SEEDS}. {DASH} where there is no such target, or the lists are "
    "shorter than the cut-off."
)


def slices_frame(data: str, runs: Sequence[Cell]) -> pl.DataFrame:
    """Metrics by how often the target stands in train.

    Args:
        data: Name of the data set.
        runs: Those of the table; the unfinished are passed over.

    Returns:
        data, label, slice, count, then each metric's mean over seeds and its ``_std``; null where
        the slice is empty or the label lacks the metric, or has one seed only.
    """
    records = []
    by_label = _folders_by_label(runs)
    metrics = _slice_metrics([folder for folders in by_label.values() for folder in folders])
    for label, folders in by_label.items():
        files = [_read(folder, "metrics.json") for folder in folders]
        for name in SLICES:
            record: dict[str, Any] = {"data": data, "label": label, "slice": name}
            record["count"] = int(files[0]["test"][f"{name}/count"])
            for metric in metrics:
                values = [file["test"].get(f"{name}/{metric}") for file in files]
                record |= _mean_and_std(metric, [v for v in values if v is not None])
            records.append(record)
    return pl.DataFrame(records, infer_schema_length=None)


def efficiency_frame(
    data: str, runs: Sequence[Cell], rows_trained: Mapping[Path, int]
) -> pl.DataFrame:
    """Seconds and speed by the runs' own clocks.

    A training time holds the validations on the way, an evaluating time the valid and test rows and
    the scoring of their targets. A run that was resumed has timed its last part only and is left
    out; one too old to say counts as made in one go.

    Args:
        data: Name of the data set.
        runs: Those of the table; the unfinished are passed over.
        rows_trained: Run folder -> rows that went through training, over all epochs; a run that is
            not there gets no ``rows_per_s``.

    Returns:
        data, label, hardware (of all seeds), num_seeds (those timed), then ``train_s``,
        ``evaluate_s``, ``rows_per_s``, ``users_per_s``: mean over these seeds and ``_std``; null
        where no run has such a part.
    """
    records = []
    for label, folders in _folders_by_label(runs).items():
        environments = {folder: _read(folder, "environment.json") for folder in folders}
        timed = [folder for folder in folders if not environments[folder].get("resumed", False)]
        hardware = dict.fromkeys(_hardware(environment) for environment in environments.values())
        record: dict[str, Any] = {"data": data, "label": label, "hardware": "; ".join(hardware)}
        record["num_seeds"] = len(timed)
        seconds = [environments[folder]["seconds"] for folder in timed]
        trains, evaluates = ([part.get(n) for part in seconds] for n in ("train", "evaluate"))
        rows = [rows_trained.get(folder) for folder in timed]
        users = [_num_answered(folder) for folder in timed]
        for name, values in {
            "train_s": trains,
            "evaluate_s": evaluates,
            "rows_per_s": _rates(rows, trains),
            "users_per_s": _rates(users, evaluates),
        }.items():
            record |= _mean_and_std(name, [value for value in values if value is not None])
        records.append(record)
    return pl.DataFrame(records, infer_schema_length=None)


def frame_markdown(frame: pl.DataFrame, digits: int) -> str:
    """A frame as a Markdown table; ``X_std`` in parentheses behind ``X``."""
    names = [n for n in frame.columns if not n.endswith("_std")]
    rows = []
    for row in frame.iter_rows(named=True):
        rows.append([_text(row, name, digits) for name in names])
    return markdown_table(names, rows)


def _slice_metrics(folders: Sequence[Path]) -> list[str]:
    """What is measured within slices, at the cut-offs that the runs have there."""
    names = {
        name.split("/")[1]
        for folder in folders
        for name in _read(folder, "metrics.json")["test"]
        if name.split("/")[0] in SLICES
    }
    return [f"{kind}@{k}" for k in cut_offs_of(names) for kind in ("HR", "NDCG")] + ["trie_NLL"]


def _text(row: dict[str, Any], name: str, digits: int) -> str:
    value, std = row[name], row.get(f"{name}_std")
    if not isinstance(value, float):
        return DASH if value is None else str(value)
    text = f"{value:.{digits}f}"
    return text if std is None else f"{text} ({std:.{digits}f})"


def _folders_by_label(runs: Sequence[Cell]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for run in runs:
        if run.is_finished:
            found.setdefault(run.label, []).append(run.folder)
    return found


def _read(folder: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((folder / name).read_text()))


def _hardware(environment: dict[str, Any]) -> str:
    """The GPUs, or the processor where there is none."""
    hardware = environment["hardware"]
    return ", ".join(hardware["gpu"] or [hardware["processor"]])


def _num_answered(folder: Path) -> float:
    """Users asked in evaluation: the rows of valid and test."""
    metrics = _read(folder, "metrics.json")
    return float(sum(metrics[split]["num_examples"] for split in ("valid", "test")))


def _rates(amounts: Sequence[float | None], seconds: Sequence[float | None]) -> list[float | None]:
    pairs = zip(amounts, seconds, strict=True)
    return [amount / time if amount and time else None for amount, time in pairs]


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_std": None}
    mean, std = mean_and_std_over_seeds(values)
    return {name: mean, f"{name}_std": None if math.isnan(std) else std}
