"""A comparison written down: Markdown, CSV, terminal, figure."""

import math
from pathlib import Path

import polars as pl
from rich.table import Table
from rich.text import Text

from hatllm.config import main_cut_off
from hatllm.figures.comparison_plot import draw_comparison
from hatllm.figures.saving import save_figure
from hatllm.files import write_csv, write_text
from hatllm.metrics.uncertainty import PairedDifference
from hatllm.tables.comparison import Cell, Comparison, Row
from hatllm.tables.numbers import (
    BOLD,
    DASH,
    OVER_SEEDS,
    OVER_USERS,
    arrow,
    format_value,
    missing_note,
    no_hits_note,
    sentences,
)
from hatllm.tables.run_report import markdown_table


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write ``table.md``, ``table.csv`` and ``comparison.png``.

    Args:
        comparison: Output of :func:`hatllm.tables.comparison.compare_runs`.
        folder: Made if it is not there.

    Returns:
        The path of ``table.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.md"
    write_text(path, markdown(comparison))
    write_csv(folder / "table.csv", comparison_frame(comparison))
    save_figure(draw_comparison(comparison), folder / "comparison.png")
    return path


def markdown(comparison: Comparison) -> str:
    """The table with its legend."""
    bold = [
        [f"**{cell}**" if best else cell for cell, best in _cells(comparison, row)]
        for row in comparison.rows
    ]
    return f"{markdown_table(_heads(comparison), bold)}\n\n{_legend(comparison)}\n"


def rich_table(comparison: Comparison) -> Table:
    """The main columns for a terminal 80 wide: ``rich.print(rich_table(comparison))``.

    A cell holds, one below the other, the mean, its standard error over users, and the standard
    deviation over seeds; a difference holds its mean and the bounds of its interval.
    """
    first = comparison.rows[0]
    table = Table(
        title=f"{first.num_examples} test examples of {first.num_users} users",
        caption=_legend(comparison),
        caption_justify="left",
        show_lines=True,
    )
    shown = _terminal_heads(comparison)
    columns = [0] + [n for n, head in enumerate(_heads(comparison)) if head in shown]
    for column in columns:
        head = Text(_heads(comparison)[column].replace("Δ ", "Δ\n"))
        table.add_column(head, justify="right" if column else "left", overflow="fold")
    for row in comparison.rows:
        cells = _cells(comparison, row)
        texts = []
        for column in columns:
            text, best = cells[column]
            texts.append(Text(_stacked(text) if column else text, style="bold" if best else ""))
        table.add_row(*texts)
    return table


def comparison_frame(comparison: Comparison) -> pl.DataFrame:
    """The table with every number in a column of its own; null where there is none."""
    records = []
    for row in comparison.rows:
        record: dict[str, object] = {"label": row.label}
        for metric in comparison.metrics:
            cell = row.cells.get(metric)
            record[metric] = cell and cell.mean
            record[f"{metric}_se"] = cell and _finite(cell.standard_error)
            record[f"{metric}_std_over_seeds"] = cell and _finite(cell.std)
        for metric in comparison.paired_metrics:
            difference = row.differences.get(metric)
            for field in ("mean", "low", "high", "p_value"):
                name = f"{metric}_difference" + ("" if field == "mean" else f"_{field}")
                record[name] = difference and getattr(difference, field)
        record |= {"num_users": row.num_users, "num_examples": row.num_examples}
        record |= {"num_seeds": len(row.seeds), "reference": comparison.reference}
        records.append(record | {"split_hash": comparison.split_hash})
    return pl.DataFrame(records, infer_schema_length=None)


def _heads(comparison: Comparison) -> list[str]:
    paired = comparison.paired_metrics if comparison.reference else ()
    differences = [f"Δ {metric}" for metric in paired]
    return ["", *map(arrow, comparison.metrics), *differences, "users", "seeds"]


def _terminal_heads(comparison: Comparison) -> set[str]:
    """Heads of the columns that a terminal shows."""
    metrics = (f"HR@{main_cut_off(comparison.cut_offs)}", *comparison.paired_metrics)
    differences = (f"Δ {metric}" for metric in comparison.paired_metrics)
    return {*map(arrow, metrics), *differences, "seeds"}


def _cells(comparison: Comparison, row: Row) -> list[tuple[str, bool]]:
    """The texts of one row, each with whether it is the clear best of its column."""
    cells = [(row.label, False)]
    for metric in comparison.metrics:
        best = comparison.best.get(metric) == row.label
        cells.append((_cell_text(metric, row.cells.get(metric)), best))
    for metric in comparison.paired_metrics if comparison.reference else ():
        cells.append((_difference_text(metric, row.differences.get(metric)), False))
    return [*cells, (f"{row.num_users:,}", False), (str(len(row.seeds)), False)]


def _cell_text(metric: str, cell: Cell | None) -> str:
    """Mean ± standard error over users, the standard deviation over seeds in parentheses."""
    if cell is None:
        return DASH
    return format_value(metric, cell.mean, cell.standard_error, cell.std)


def _difference_text(metric: str, difference: PairedDifference | None) -> str:
    """Mean difference with its interval, signs shown."""
    if difference is None:
        return DASH
    digits = 3 if metric.endswith("NLL") else 4
    low, high = f"{difference.low:+.{digits}f}", f"{difference.high:+.{digits}f}"
    return f"{difference.mean:+.{digits}f} [{low}, {high}]"


def _stacked(text: str) -> str:
    """The parts of a cell on lines of their own."""
    for mark in (" ±", " (", " [", ", "):
        text = text.replace(mark, "\n" + mark.strip(" ,"))
    return text


def _legend(comparison: Comparison) -> str:
    notes = [f"Means over seeds; {OVER_USERS}, {OVER_SEEDS}"]
    if comparison.reference is not None:
        notes.append(
            f"Δ: paired difference to {comparison.reference} on the same examples and seeds, "
            "with its 95 % bootstrap interval over users"
        )
    notes += [BOLD, no_hits_note(_users_without_a_hit(comparison))]
    notes.append("NLL in nats a title" + (f"; {comparison.guess}" if comparison.guess else ""))
    notes += [missing_note(comparison.short), f"Split {comparison.split_hash}"]
    return sentences(notes)


def _users_without_a_hit(comparison: Comparison) -> list[int]:
    return [
        row.num_users
        for row in comparison.rows
        if any(cell.mean == 0 for name, cell in row.cells.items() if name.startswith("HR@"))
    ]


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
