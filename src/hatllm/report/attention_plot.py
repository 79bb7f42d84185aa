"""The figure of attention shares: one panel a mask, layers across, before against after tuning."""

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hatllm.report.draw_masks import OTHER_PATTERN, PATTERN_COLOURS
from hatllm.report.figures import BLUE, FAINT, GREY, INK, ORANGE, tidy

# A line a group of kinds: a token belongs to its own item.
GROUPS = {"own item": ("self", "intra"), "other items": ("cross",), "template": ("template",)}
COLOURS = {"own item": BLUE, "other items": ORANGE, "template": GREY}
STYLES = {"before": (0, (3, 2)), "after": "-"}
PANEL_INCHES = (3.5, 2.7)
MAX_COLUMNS = 3
STRIP = 0.055  # height of the schedule's strip, in shares


def draw_attention(shares: pl.DataFrame) -> Figure:
    """Share of the item tokens' attention by layer.

    Args:
        shares: From `attention_shares.with_shares`; seeds are averaged.

    Returns:
        One panel a label, in the order of the table; the strip below the axis shows each layer's
        pattern.
    """
    labels = shares["label"].unique(maintain_order=True).to_list()
    columns = min(MAX_COLUMNS, len(labels))
    rows = -(-len(labels) // columns)
    size = max(PANEL_INCHES[0] * columns, 6.4), PANEL_INCHES[1] * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, label in zip(panels.flat, labels, strict=False):
        _draw_label(axes, label, shares.filter(pl.col("label") == label))
    for axes in panels.flat[len(labels) :]:
        axes.set_visible(False)
    for index, axes in enumerate(panels.flat[: len(labels)]):
        below = index + columns < len(labels)
        axes.tick_params(labelbottom=not below)
        axes.set_xlabel("" if below else "layer, shallow to deep")
    for axes in panels[:, 0]:
        axes.set_ylabel("share of attention")
    _add_legend(figure, shares)
    return figure


def group_shares(shares: pl.DataFrame) -> pl.DataFrame:
    """Mean over seeds of each group's share: one row a state, layer and group."""
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    grouped = shares.with_columns(group=pl.col("kind").replace_strict(group_of))
    by_seed = grouped.group_by("state", "seed", "layer", "group").agg(pl.col("share").sum())
    by_layer = by_seed.group_by("state", "layer", "group").agg(pl.col("share").mean())
    return by_layer.sort("state", "group", "layer")


def _draw_label(axes: Axes, label: str, shares: pl.DataFrame) -> None:
    tidy(axes, label)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    table = group_shares(shares)
    for (state, group), line in table.group_by("state", "group", maintain_order=True):
        axes.plot(
            line["layer"],
            line["share"],
            color=COLOURS[str(group)],
            linestyle=STYLES[str(state)],
            linewidth=1.8 if state == "after" else 1.3,
            marker="o" if line.height <= 8 else None,
            markersize=3,
            solid_capstyle="round",
            clip_on=False,
        )
    patterns = shares.unique("layer").sort("layer").select("layer", "pattern")
    for layer, pattern in patterns.iter_rows():
        corner = (layer - 0.5, -0.03 - STRIP)
        axes.add_patch(
            Rectangle(
                corner, 1, STRIP, facecolor=PATTERN_COLOURS.get(pattern, OTHER_PATTERN), linewidth=0
            )
        )
    axes.set_xlim(-0.5, patterns.height - 0.5)
    axes.set_ylim(-0.03 - STRIP, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _add_legend(figure: Figure, shares: pl.DataFrame) -> None:
    """Colours of the groups, line styles of the states, colours of the patterns."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=COLOURS[group], linewidth=2.2, label=f"to {group}") for group in GROUPS
    ]
    states = shares["state"].unique()
    handles += [
        Line2D([], [], color=INK, linestyle=style, linewidth=1.5, label=f"{state} tuning")
        for state, style in STYLES.items()
        if state in states
    ]
    patterns = shares["pattern"].unique()
    handles += [
        Patch(facecolor=colour, label=f"{pattern} layer")
        for pattern, colour in PATTERN_COLOURS.items()
        if pattern in patterns
    ]
    columns = 4 if figure.get_figwidth() < 9 else 8
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
