"""Slices of a comparison as cells of tables; :mod:`hatllm.tables.writers` writes them down."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from hatllm.metrics.slices import SLICES_EXPLAINED
from hatllm.tables.by_slice import ALL, slice_metrics
from hatllm.tables.comparison import Comparison
from hatllm.tables.numbers import (
    DASH,
    OVER_SEEDS,
    OVER_USERS,
    arrow,
    columns_of,
    format_difference,
    format_row,
    format_value,
)

Cells = tuple[list[str], list[list[str]]]  # head and rows
UNCOPIED_NOTE = (
    "Paired differences to the arm named in 'against', 95 % bootstrap interval over users, not "
    "corrected for the number of rows: over all examples, and where copying words is impossible. "
    "A model that adds something to copying is better there"
)


def numbers_cells(comparison: Comparison) -> Cells:
    """One metric: a row an arm, a column a slice."""
    metric = slice_metrics(comparison.cut_offs)[0]
    head = [arrow(metric)]
    head += [f"{part.name} ({part.num_examples:,})" for part in comparison.slices]
    rows = []
    for arm in comparison.arms:
        numbers = [part.numbers.get(arm.label, {}).get(metric) for part in comparison.slices]
        texts = [
            DASH if n is None else format_value(metric, n.mean, n.standard_error, n.std)
            for n in numbers
        ]
        rows.append([arm.label, *texts])
    return head, rows


def difference_cells(comparison: Comparison) -> Cells:
    """Where copying is impossible: a row an arm and slice, no row where nothing is compared."""
    metrics = slice_metrics(comparison.cut_offs)
    rows = []
    for arm in comparison.arms:
        for part in comparison.slices:
            found = part.differences.get(arm.label)
            if found:
                texts = [format_difference(m, found[m]) if m in found else DASH for m in metrics]
                count = f"{part.num_examples:,}"
                rows.append([arm.label, str(arm.compared_with), part.name, count, *texts])
    return ["", "against", "slice", "examples", *(f"Δ {arrow(m)}" for m in metrics)], rows


def slices_frame(comparisons: Sequence[Comparison]) -> pl.DataFrame:
    """Every number of every slice in a column of its own.

    Returns:
        data, label, slice, count, then each metric's mean over seeds, its ``_se`` over users and
        ``_std`` over seeds, and the ``_difference`` to compared_with with its ``_low`` and
        ``_high``; null where there is none.
    """
    records = []
    for block in comparisons:
        for arm in block.arms:
            for part in block.slices:
                record: dict[str, Any] = {"data": block.data, "label": arm.label}
                record |= {"slice": part.name, "count": part.num_examples}
                numbers = part.numbers.get(arm.label, {})
                tests = part.differences.get(arm.label, {})
                for metric in slice_metrics(block.cut_offs):
                    test = tests.get(metric)
                    record |= columns_of(metric, numbers.get(metric)) | {
                        f"{metric}_difference": test and test.mean,
                        f"{metric}_difference_low": test and test.low,
                        f"{metric}_difference_high": test and test.high,
                    }
                records.append(record | {"compared_with": arm.compared_with})
    return pl.DataFrame(records, infer_schema_length=None)


def frame_cells(slices: pl.DataFrame) -> Cells:
    """All numbers of `slices_frame` but the differences, a row an arm and slice."""
    metrics = [name.removesuffix("_se") for name in slices.columns if name.endswith("_se")]
    rows = [
        [str(row["data"]), row["label"], row["slice"], f"{row['count']:,}"]
        + [format_row(row, metric) for metric in metrics]
        for row in slices.filter(pl.col("slice") != ALL).iter_rows(named=True)
    ]
    return ["data", "label", "slice", "examples", *map(arrow, metrics)], rows


def slices_note() -> str:
    """What the slices are and what stands behind a number."""
    return (
        f"{SLICES_EXPLAINED}. Means over seeds; {OVER_USERS}, {OVER_SEEDS}. {DASH} where there is "
        "no such target, or the lists are shorter than the cut-off."
    )
