"""Arms side by side: the dots of a comparison, the bars of an experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hatllm.figures.saving import BLUE, GREY, INK, ORANGE, save_figure, tidy

if TYPE_CHECKING:  # tables hold figures, not the other way round
    from hatllm.tables.comparison import Arm, Comparison

PLAIN = "#b8bec8"  # arms that nothing is paired with


def draw_comparison(comparison: "Comparison") -> Figure:
    """One panel a metric, one line a label, in the order of the table.

    A large dot is the mean over seeds, its bar one standard error over users to either side, the
    small dots are the single seeds; the reference is orange, with a line through its mean.
    """
    longest = max(len(arm.label) for arm in comparison.arms)
    width = 2.6 + 0.07 * longest + 2 * 3.1
    figure = Figure(figsize=(width, 1.35 + 0.36 * len(comparison.arms)), layout="constrained")
    panels = figure.subplots(1, len(comparison.tested_metrics), sharey=True)
    for axes, metric in zip(panels, comparison.tested_metrics, strict=True):
        _draw_metric(axes, comparison, metric)
    labels = [arm.label for arm in comparison.arms]
    panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
    panels[0].set_ylim(len(comparison.arms) - 0.4, -0.6)
    figure.supxlabel(
        "mean over seeds ± standard error over users; small dots: single seeds",
        fontsize=8.5,
        color=GREY,
    )
    return figure


def _draw_metric(axes: Axes, comparison: "Comparison", metric: str) -> None:
    """The dots of one metric; a label that lacks it says so in words."""
    better = "lower" if metric.endswith("NLL") else "higher"
    tidy(axes, f"{metric.replace('_', ' ')}, {better} is better", grid="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for height, arm in enumerate(comparison.arms):
        _draw_arm(axes, arm, height, metric, is_reference=arm.label == comparison.reference)


def _draw_arm(axes: Axes, arm: "Arm", height: int, metric: str, is_reference: bool) -> None:
    """An arm's mean with its bar, and its single seeds below."""
    colour, number = ORANGE if is_reference else BLUE, arm.numbers.get(metric)
    if number is None:
        axes.text(
            0.5, height, "not defined" if arm.seeds else "not finished",
            transform=axes.get_yaxis_transform(), color=GREY, fontsize=8, ha="center", va="center",
            backgroundcolor="white",
        )  # fmt: skip
        return
    if is_reference:
        axes.axvline(number.mean, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.errorbar(
        number.mean, height, xerr=number.standard_error or 0.0, fmt="o", color=colour,
        markersize=7, elinewidth=1.8, capsize=0, zorder=3,
    )  # fmt: skip
    if len(number.by_seed) > 1:
        seeds = list(number.by_seed.values())
        axes.plot(
            seeds, [height + 0.26] * len(seeds), "o", color=colour, markersize=2.8, alpha=0.65,
            zorder=2,
        )  # fmt: skip


def bars(table: pl.DataFrame, value: str, pairs: Mapping[str, str], note: str, path: Path) -> Path:
    """One bar a label and data set, paired arms in two colours side by side.

    Args:
        table: One row a bar: label, data, the number and as ``VALUE_se`` the length of its interval
            to either side, null = none; a null number is drawn as a word.
        value: Column of the number.
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
    panels, labels = (table[of].unique(maintain_order=True).to_list() for of in ("data", "label"))
    figure = Figure(
        figsize=(1.6 + 3.0 * len(panels), 1.2 + 0.32 * len(labels)), layout="constrained"
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for one, name in zip(axes, panels, strict=True):
        tidy(one, str(name), grid="x")
        rows = {row["label"]: row for row in table.filter(pl.col("data") == name).to_dicts()}
        for height, label in enumerate(labels):
            _draw_bar(one, height, rows.get(label, {}), value, _colour(label, pairs))
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


def _draw_bar(axes: Axes, height: int, row: Mapping[str, Any], value: str, colour: str) -> None:
    """A bar with its interval; where there is no number, words that say so."""
    if (number := row.get(value)) is None:
        where = axes.get_yaxis_transform()
        axes.text(0.02, height, "no number", transform=where, color=GREY, fontsize=8, va="center")
        return
    axes.barh(height, number, height=0.72, color=colour, xerr=row[f"{value}_se"] or 0.0,
              error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 2})  # fmt: skip
