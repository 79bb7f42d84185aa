"""What an experiment shows beside its main table: the time spent."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.runs.cell import Cell
from hatllm.runs.run_files import hardware_text, read_environment, read_metrics
from hatllm.tables.numbers import (
    columns_of,
    format_row,
    over_seeds,
)
from hatllm.tables.writers import markdown_table

EFFICIENCY_NOTE = (
    "By the runs' own clocks, means over num_seeds, in parentheses the standard deviation over "
    "them: the seeds whose run was not resumed, because the clock of one that was holds its last "
    "part only. – where no such run has this part; rows_per_s also where training may stop early."
)


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
        environments = {folder: read_environment(folder) for folder in folders}
        timed = [folder for folder in folders if not environments[folder].get("resumed", False)]
        hardware = dict.fromkeys(map(hardware_text, environments.values()))
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
            record |= _mean_and_std(name, values)
        records.append(record)
    return pl.DataFrame(records, infer_schema_length=None)


def frame_markdown(frame: pl.DataFrame) -> str:
    """A frame as a Markdown table; ``X_std`` in parentheses behind ``X``."""
    names = [name for name in frame.columns if not name.endswith("_std")]
    is_number = {name for name in names if f"{name}_std" in frame.columns}
    rows = [
        [format_row(row, name) if name in is_number else str(row[name]) for name in names]
        for row in frame.iter_rows(named=True)
    ]
    return markdown_table(names, rows)


def _folders_by_label(runs: Sequence[Cell]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for run in runs:
        if run.is_finished:
            found.setdefault(run.label, []).append(run.folder)
    return found


def _num_answered(folder: Path) -> float:
    """Users asked in evaluation: the rows of valid and test."""
    metrics = read_metrics(folder)
    return float(sum(metrics[split]["num_examples"] for split in ("valid", "test")))


def _rates(amounts: Sequence[float | None], seconds: Sequence[float | None]) -> list[float | None]:
    pairs = zip(amounts, seconds, strict=True)
    return [amount / time if amount and time else None for amount, time in pairs]


def _mean_and_std(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Over the seeds that have a value; there is no error over users."""
    found = {seed: value for seed, value in enumerate(values) if value is not None}
    columns = columns_of(name, over_seeds(found) if found else None)
    return {column: value for column, value in columns.items() if column != f"{name}_se"}
