"""The bar chart of an experiment: one panel a data set, one bar an arm, with intervals."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hatllm.report.figures import BLUE, FAINT, GREY, INK, ORANGE, save_figure, tidy

PLAIN = "#b8bec8"  # arms that nothing is paired with


def bars(
    table: pl.DataFrame,
    label: str,
    value: str,
    error: str,
    panel: str,
    pairs: Mapping[str, str],
    note: str,
    path: Path,
) -> Path:
    """One bar a label and panel, paired arms in two colours side by side.

    Args:
        table: One row a bar; a null number is drawn as a word.
        label: Column of the arm.
        value: Column of the number.
        error: Column of the length of its interval to either side; null = none.
        panel: Column of the panel.
        pairs: Arm -> the arm it extends: the former orange, the latter blue, all others grey.
        note: What the bars and intervals are, below the figure.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is no number at all.
    """
    if table[value].drop_nulls().is_empty():
        raise ValueError(f"table has no row with a value of {value!r}: there is nothing to draw")
    panels = table[panel].unique(maintain_order=True).to_list()
    labels = table[label].unique(maintain_order=True).to_list()
    figure = Figure(
        figsize=(1.6 + 3.0 * len(panels), 1.2 + 0.32 * len(labels)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for one, name in zip(axes, panels, strict=True):
        rows = {row[label]: row for row in table.filter(pl.col(panel) == name).to_dicts()}
        tidy(one, str(name))
        one.grid(axis="x", color=FAINT, linewidth=0.8)
        one.set_axisbelow(True)
        for height, arm in enumerate(labels):
            number = rows.get(arm, {}).get(value)
            if number is None:
                _write_missing(one, height)
                continue
            bar = rows[arm][error] or 0.0
            one.barh(height, number, height=0.72, color=_colour(arm, pairs), xerr=bar,
                     error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 2})  # fmt: skip
        one.set_xlim(left=0)
        one.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_yticks(range(len(labels)), labels, parse_math=False)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel(note, fontsize=8.5, color=GREY)
    return save_figure(figure, path)


def _colour(arm: str, pairs: Mapping[str, str]) -> str:
    if arm in pairs:
        return ORANGE
    return BLUE if arm in pairs.values() else PLAIN


def _write_missing(axes: Axes, height: int) -> None:
    """Say that there is no number for this bar."""
    where = axes.get_yaxis_transform()
    axes.text(0.02, height, "no number", transform=where, color=GREY, fontsize=8, va="center")
