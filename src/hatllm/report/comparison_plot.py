"""The dot plot of a comparison: NDCG and trie NLL of every label."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hatllm.report.comparison import Comparison
from hatllm.report.figures import BLUE, FAINT, GREY, ORANGE, tidy


def draw_comparison(comparison: Comparison) -> Figure:
    """One panel a metric, one line a label, in the order of the table.

    A large dot is the mean over seeds, its bar one standard error over users to either side, the
    small dots are the single seeds; the reference is orange, with a line through its mean.
    """
    longest = max(len(row.label) for row in comparison.rows)
    width = 2.6 + 0.07 * longest + 2 * 3.1
    figure = Figure(figsize=(width, 1.35 + 0.36 * len(comparison.rows)), layout="constrained")
    panels = figure.subplots(1, len(comparison.paired_metrics), sharey=True)
    for axes, metric in zip(panels, comparison.paired_metrics, strict=True):
        _draw_metric(axes, comparison, metric)
    labels = [row.label for row in comparison.rows]
    panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
    panels[0].set_ylim(len(comparison.rows) - 0.4, -0.6)
    figure.supxlabel(
        "mean over seeds ± standard error over users; small dots: single seeds",
        fontsize=8.5,
        color=GREY,
    )
    return figure


def _draw_metric(axes: Axes, comparison: Comparison, metric: str) -> None:
    """The dots of one metric; a label that lacks it says so in words."""
    better = "lower" if metric.endswith("NLL") else "higher"
    tidy(axes, f"{metric.replace('_', ' ')}, {better} is better")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for height, row in enumerate(comparison.rows):
        colour = ORANGE if row.label == comparison.reference else BLUE
        cell = row.cells.get(metric)
        if cell is None:
            where = axes.get_yaxis_transform()
            axes.text(
                0.5,
                height,
                "not defined",
                transform=where,
                color=GREY,
                fontsize=8,
                ha="center",
                va="center",
                backgroundcolor="white",
            )
            continue
        if row.label == comparison.reference:
            axes.axvline(cell.mean, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        error = 0.0 if math.isnan(cell.standard_error) else cell.standard_error
        axes.errorbar(
            cell.mean,
            height,
            xerr=error,
            fmt="o",
            color=colour,
            markersize=7,
            elinewidth=1.8,
            capsize=0,
            zorder=3,
        )
        if len(cell.by_seed) > 1:
            heights = [height + 0.26] * len(cell.by_seed)
            axes.plot(
                list(cell.by_seed.values()),
                heights,
                "o",
                color=colour,
                markersize=2.8,
                alpha=0.65,
                zorder=2,
            )
