"""Figures of a sweep: a heat map of one number over two settings, lines over one setting."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from hatllm.figures.saving import BLUE, FAINT, GREEN, GREY, INK, ORANGE, save_figure, tidy
from hatllm.metrics.uncertainty import Floats

COLOURS = (BLUE, ORANGE, GREEN, "#8457a8", "#b03a48", "#4f8f9b", "#8a6d3b", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Light where the number is bad, dark where it is good.
GOOD = LinearSegmentedColormap.from_list("good", ["#f6f8fb", "#9fc0e2", BLUE, "#173a63"])


def heat_map(table: pl.DataFrame, row: str, column: str, value: str, path: Path) -> Path:
    """One tile a pair of settings, dark where the number is good; the best one is framed.

    Args:
        table: One row a tile; pairs that are not there, or null, are left grey.
        row: Column of the setting on the vertical axis, lowest at the bottom.
        column: Column of the setting on the horizontal axis.
        value: Column of the number; one whose name ends in ``NLL`` is better when low.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If a column is missing, a pair stands twice, or there is no number at all.
    """
    table = _with_numbers(table, value, row, column)
    if table.select(row, column).is_duplicated().any():
        raise ValueError(f"table has two rows of the same {row} and {column}: average them first")
    rows, columns = (sorted(table[name].unique().to_list()) for name in (row, column))
    tiles = np.full((len(rows), len(columns)), np.nan)
    for at_row, at_column, number in table.select(row, column, value).iter_rows():
        tiles[rows.index(at_row), columns.index(at_column)] = number
    figure = Figure(
        figsize=(2.2 + 0.72 * len(columns), 1.3 + 0.5 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    lower_is_better = value.endswith("NLL")
    tidy(axes, f"{value}, {'lower' if lower_is_better else 'higher'} is better")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(_draw_tiles(axes, tiles, lower_is_better), ax=axes, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=GREY)
    axes.set_xticks(range(len(columns)), [str(name) for name in columns])
    axes.set_yticks(range(len(rows)), [str(name) for name in rows])
    axes.set(xlabel=column, ylabel=row)
    return save_figure(figure, path)


def lines(
    table: pl.DataFrame, x: str, value: str, error: str | None, group: str | None, path: Path
) -> Path:
    """One number over one setting, a line a group, with error bars.

    Args:
        table: One row a point; rows whose number is null are left out.
        x: Column of the setting; numbers are spaced by value, anything else evenly.
        value: Column of the number.
        error: Column of the length of its bar to either side; null or None = no bar.
        group: Column that names the lines; None = a single line.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If a column is missing or there is no number at all.
    """
    table = _with_numbers(table, value, x, error, group)
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    tidy(axes, grid="y")
    place = _places(table[x])
    names = [None] if group is None else table[group].unique(maintain_order=True).to_list()
    spacing = _room(list(place.values())) * 0.06
    for n, name in enumerate(names):
        points = table if group is None else table.filter(pl.col(group) == name)
        points = points.sort(pl.col(x).replace_strict(place, return_dtype=pl.Float64))
        errors = [0.0] * len(points) if error is None else points[error].fill_null(0.0).to_list()
        aside = (n - (len(names) - 1) / 2) * spacing  # bars of two lines do not cover each other
        places = [place[setting] + aside for setting in points[x].to_list()]
        _line(axes, n, name, places, points[value].to_list(), errors)
    by_value = table[x].dtype.is_numeric()
    axes.set_xticks(list(place.values()), [f"{s:g}" if by_value else str(s) for s in place])
    axes.set(xlabel=x, ylabel=value)
    if group is not None:
        axes.legend(title=group, fontsize=8.5, title_fontsize=8.5, frameon=False,
                    loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    return save_figure(figure, path)


def _line(
    axes: Axes,
    number: int,
    name: Any,
    places: list[float],
    values: list[float],
    errors: list[float],
) -> None:
    """The points of one group, with their bars."""
    axes.errorbar(
        places, values, yerr=[0.0 if math.isnan(bar) else bar for bar in errors],
        color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)],
        markersize=5.5, linewidth=1.6, elinewidth=1.1, capsize=2.5,
        label=None if name is None else str(name),
    )  # fmt: skip


def _with_numbers(table: pl.DataFrame, value: str, *others: str | None) -> pl.DataFrame:
    """The rows that have a value.

    Raises:
        ValueError: If there are none, or no such column, or not all of the others.
    """
    for name in (*others, value):
        if name is not None and name not in table.columns:
            columns = ", ".join(map(repr, table.columns))
            raise ValueError(f"table has no column {name!r}; it has {columns}")
    table = table.drop_nulls(value)
    if table.is_empty():
        raise ValueError(f"table has no row with a value of {value!r}: there is nothing to draw")
    return table


def _places(settings: pl.Series) -> dict[Any, float]:
    """Where each setting stands: numbers by value, ascending; anything else evenly, as it comes."""
    once = settings.unique(maintain_order=True)
    if once.dtype.is_numeric():
        return {setting: float(setting) for setting in once.sort().to_list()}
    return {setting: float(place) for place, setting in enumerate(once.to_list())}


def _room(places: list[float]) -> float:
    """The smallest distance of two neighbours; 1 for a single place."""
    return min((b - a for a, b in pairwise(places)), default=1.0)


def _draw_tiles(axes: Axes, tiles: Floats, lower_is_better: bool) -> AxesImage:
    """Coloured tiles, the number in each, in white on dark ones, and a frame around the best."""
    colours, digits = (GOOD.reversed(), 3) if lower_is_better else (GOOD, 4)
    image = axes.imshow(tiles, cmap=colours, origin="lower", aspect="auto")
    axes.set_facecolor(FAINT)
    low, high = np.nanmin(tiles), np.nanmax(tiles)
    best = np.unravel_index(np.nanargmin(tiles) if lower_is_better else np.nanargmax(tiles),
                            tiles.shape)  # fmt: skip
    for at, number in np.ndenumerate(tiles):
        if np.isnan(number):
            axes.text(at[1], at[0], "–", color=GREY, ha="center", va="center", fontsize=9)
            continue
        share = (number - low) / (high - low) if high > low else 0.0
        dark = (1 - share if lower_is_better else share) > 0.5
        axes.text(at[1], at[0], f"{number:.{digits}f}", color="white" if dark else INK,
                  ha="center", va="center", fontsize=9,
                  fontweight="bold" if at == best else "normal")  # fmt: skip
    corner = (best[1] - 0.48, best[0] - 0.48)
    axes.add_patch(Rectangle(corner, 0.96, 0.96, fill=False, edgecolor=ORANGE, linewidth=2))
    return image
