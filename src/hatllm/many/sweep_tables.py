"""The cells of a sweep as tables and figures: one row a cell, then means over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from hatllm.config import SweepConfig, cut_off_of
from hatllm.figures.comparison_plot import draw_comparison
from hatllm.figures.saving import save_figure
from hatllm.figures.sweep_plots import heat_map, lines
from hatllm.files import write_csv, write_text
from hatllm.metrics.from_predictions import uniform_guess
from hatllm.runs.run_files import read_environment
from hatllm.tables.comparison import compare_runs
from hatllm.tables.numbers import (
    DASH,
    OVER_SEEDS,
    OVER_USERS,
    arrow,
    format_value,
    no_hits_note,
    sentences,
)
from hatllm.tables.run_report import markdown_table
from hatllm.tables.sweep_numbers import cell_table, is_low_better, metric_names, over_seeds


def write_sweep(
    settings: Sequence[Mapping[str, str]],
    folders: Sequence[Path],
    config: SweepConfig,
    target: Path,
) -> str:
    """Write ``cells.csv``, ``table.csv``, ``table.md`` and the figures of a sweep.

    Args:
        settings: What differs between the cells, the seed aside: setting -> value, for each cell.
        folders: The finished run of each cell.
        config: The objective and the metrics to draw.
        target: Folder, made if it is not there.

    Returns:
        The text of ``table.md``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for picture in target.glob("*.png"):
        picture.unlink()  # of an earlier run of the same sweep, with fewer cells
    metrics = metric_names(folders, config)
    cells = cell_table(settings, folders, metrics)
    names = list(settings[0])
    table = over_seeds(cells, names, folders, metrics, config)
    write_csv(target / "cells.csv", cells)
    write_csv(target / "table.csv", table)
    guesses = dict.fromkeys(guess for folder in folders if (guess := uniform_guess(folder)))
    text = _markdown(table, names, config, list(guesses))
    figures, without = _draw(cells, table, names, folders, config, target)
    text += "".join(f"\n![{path.stem}]({path.name})\n" for path in figures)
    text += "" if without is None else f"\nNo figure: {without}.\n"
    codes = {read_environment(folder).get("code_hash", "") for folder in folders} - {""}
    if len(codes) > 1:
        text += (
            f"\nWarning: runs of {len(codes)} versions of the code: {', '.join(sorted(codes))}\n"
        )
    write_text(target / "table.md", text)
    return text


def _draw(
    cells: pl.DataFrame,
    table: pl.DataFrame,
    settings: Sequence[str],
    folders: Sequence[Path],
    config: SweepConfig,
    target: Path,
) -> tuple[list[Path], str | None]:
    """The figures, or why there is none."""
    numeric = [name for name in settings if table[name].dtype.is_numeric()]
    other = [name for name in settings if name not in numeric]
    shown = [name for name in config.metrics if table[name].null_count() < len(table)]
    if config.is_search:
        path = target / "search.png"
        return [lines(cells, "cell", config.objective, None, None, path)], None
    match len(numeric), len(other):
        case (2, 0):
            return [
                heat_map(table, numeric[0], numeric[1], name, target / _file(name))
                for name in shown
            ], None
        case (1, 0 | 1):
            group = other[0] if other else None
            points = table.with_columns(_evenly(table[numeric[0]]))
            return [
                lines(points, numeric[0], name, f"{name}_std", group, target / _file(name))
                for name in shown
            ], None
        case (0, _):
            try:
                comparison = compare_runs(list(folders), None)
            except ValueError as error:  # other data, or one label for two settings
                return [], str(error)
            return [save_figure(draw_comparison(comparison), target / "comparison.png")], None
    return [], f"{len(settings)} settings vary; at most two numbers, or a number and a name, do"


def _markdown(
    table: pl.DataFrame, settings: Sequence[str], config: SweepConfig, guesses: Sequence[str]
) -> str:
    metrics = list(dict.fromkeys([config.objective, *config.metrics]))
    rows = [
        [str(row[name]) for name in settings]
        + [str(row["num_seeds"])]
        + [format_value(name, row[name], row[f"{name}_se"], row[f"{name}_std"]) for name in metrics]
        for row in table.to_dicts()
    ]
    text = markdown_table([*settings, "seeds", *map(arrow, metrics)], rows)
    text += f"\n\n{_legend(table, metrics, guesses)}\n"
    best = table.drop_nulls(config.objective).sort(
        config.objective, descending=not is_low_better(config.objective)
    )
    if settings and len(best):
        words = " ".join(f"{name}={best[name][0]}" for name in settings)
        alike = best.filter(pl.col(config.objective) == best[config.objective][0])
        value = format_value(config.objective, best[config.objective][0])
        text += f"Best {config.objective}: {value} with `{words}`"
        text += f", and {len(alike) - 1} more alike.\n" if len(alike) > 1 else ".\n"
    return text


def _legend(table: pl.DataFrame, metrics: Sequence[str], guesses: Sequence[str]) -> str:
    """What the numbers of ``table.md`` are."""
    ranking = [name for name in metrics if cut_off_of(name) is not None]
    no_hits = [
        number
        for name in ranking
        for number in table.filter(pl.col(name) == 0)[f"{name.split('/')[0]}/num_users"]
    ]
    missing = [name for name in ranking if table[name].null_count()]
    return sentences(
        [
            f"Means over seeds; {OVER_USERS}, {OVER_SEEDS}",
            no_hits_note(no_hits),
            f"{DASH} in {', '.join(missing)}: lists of fewer titles (decode.top_k)"
            if missing else "",
            "; ".join(["NLL in nats a title", *guesses]),
        ]
    )  # fmt: skip


def _evenly(values: pl.Series) -> pl.Series:
    """Numbers of several decades (learning rates) as words, which are drawn evenly spaced."""
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    if 0 < low * 100 <= high:
        return pl.Series(values.name, [f"{value:g}" for value in values])
    return values


def _file(metric: str) -> str:
    return metric.replace("/", "_") + ".png"
