"""Whom item tokens attend to: themselves, their own item, other items or the template.

The motivation of arXiv:2510.10955 in numbers. Queries are the tokens of history items; every causal
pair of such a query and a key is of exactly one kind, so the shares of the kinds sum to 1.

Dimension key: B batch, H heads, L sequence, Q query position, K key position (Q = K = L).
"""

import polars as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from hatllm.figures.draw_masks import OTHER_PATTERN, PATTERN_COLOURS
from hatllm.figures.saving import BLUE, GREY, INK, ORANGE, tidy
from hatllm.masks.layer_masks import causal_visible

KINDS = ("self", "intra", "cross", "template")
# The columns that name one row of the shares table, beside the kind and the seed.
LAYER = ("label", "state", "layer", "pattern")
# A line a group of kinds: a token belongs to its own item.
GROUPS = {"own item": ("self", "intra"), "other items": ("cross",), "template": ("template",)}
COLOURS = {"own item": BLUE, "other items": ORANGE, "template": GREY}
STYLES = {"before": (0, (3, 2)), "after": "-"}
PANEL_INCHES = (3.5, 2.7)
MAX_COLUMNS = 3
STRIP = 0.055  # height of the schedule's strip, in shares


def pair_kinds(segment_BL: Tensor, valid_BL: Tensor) -> dict[str, Tensor]:
    """Sort the causal pairs whose query is a history item's token into kinds.

    Args:
        segment_BL: Segment of each token, below 0 = template. Shape (B, L), int64.
        valid_BL: False on padding. Shape (B, L), bool.

    Returns:
        Kind -> of_kind_BQK, bool, shape (B, L, L). ``self``: the key is the query; ``intra``: an
        earlier token of the same segment; ``cross``: a token of another item's segment;
        ``template``: template text. A pair counts whether or not a mask blocks it.

    Raises:
        ValueError: If the shapes differ or are not (B, L).
    """
    if segment_BL.ndim != 2 or segment_BL.shape != valid_BL.shape:
        raise ValueError(
            f"segment_BL and valid_BL must have one shape (B, L), got {tuple(segment_BL.shape)} "
            f"and {tuple(valid_BL.shape)}"
        )
    q_BQ1, k_B1K = segment_BL[:, :, None], segment_BL[:, None, :]
    causal_BQK = causal_visible(valid_BL, valid_BL.shape[1])
    counted_BQK = causal_BQK & valid_BL[:, :, None] & (q_BQ1 >= 0)
    own_QK = torch.eye(valid_BL.shape[1], dtype=torch.bool, device=valid_BL.device)
    same_BQK = q_BQ1 == k_B1K
    return {
        "self": counted_BQK & own_QK,
        "intra": counted_BQK & same_BQK & ~own_QK,
        "cross": counted_BQK & ~same_BQK & (k_B1K >= 0),
        "template": counted_BQK & (k_B1K < 0),
    }


def mass_of_kinds(weight_BHQK: Tensor, kinds: dict[str, Tensor]) -> dict[str, float]:
    """Add up attention weights over all pairs of a kind, averaged over heads.

    Args:
        weight_BHQK: Attention weights; a query's weights sum to 1. Shape (B, H, L, L), float.
        kinds: From `pair_kinds`.

    Returns:
        Kind -> mass. Over all kinds the masses sum to the number of queries.
    """
    weight_BQK = weight_BHQK.mean(1, dtype=torch.float32)
    return {
        kind: float(weight_BQK[of_kind_BQK].sum(dtype=torch.float64))
        for kind, of_kind_BQK in kinds.items()
    }


def with_shares(masses: pl.DataFrame) -> pl.DataFrame:
    """Add what the masses mean.

    Args:
        masses: One row a kind of a layer of a run: the columns of `LAYER`, ``seed``, ``kind``,
            ``pairs`` (their number) and ``mass``.

    Returns:
        The same rows with ``share``, the part of its queries' attention the kind gets, and
        ``weight_per_pair``, mass over pairs (null where there is no such pair).
    """
    total = pl.col("mass").sum().over(*LAYER, "seed")
    per_pair = pl.when(pl.col("pairs") > 0).then(pl.col("mass") / pl.col("pairs"))
    return masses.with_columns(share=pl.col("mass") / total, weight_per_pair=per_pair)


def headline_ratios(shares: pl.DataFrame) -> pl.DataFrame:
    """The paper's two figures for every label and state, over all layers and seeds.

    ``self`` counts as intra here: a token belongs to its own item.

    Args:
        shares: From `with_shares`.

    Returns:
        Columns ``label``, ``state``, then ``mass_ratio``: attention mass on the query's own item
        over that on other items; ``pair_ratio``: number of cross pairs over number of intra pairs;
        ``per_pair_ratio``: mean weight of an intra pair over that of a cross pair, which is their
        product. Null where nothing attends across items, or no history has two.
    """

    def total(column: str, *kinds: str) -> pl.Expr:
        return pl.col(column).filter(pl.col("kind").is_in(kinds)).sum()

    sums = shares.group_by("label", "state", maintain_order=True).agg(
        intra_mass=total("mass", "self", "intra"),
        cross_mass=total("mass", "cross"),
        intra_pairs=total("pairs", "self", "intra"),
        cross_pairs=total("pairs", "cross"),
    )
    attends = pl.col("cross_mass") > 0
    ratios = sums.select(
        "label",
        "state",
        mass_ratio=pl.when(attends).then(pl.col("intra_mass") / pl.col("cross_mass")),
        pair_ratio=pl.when(pl.col("intra_pairs") > 0).then(
            pl.col("cross_pairs") / pl.col("intra_pairs")
        ),
    )
    return ratios.with_columns(per_pair_ratio=pl.col("mass_ratio") * pl.col("pair_ratio"))


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
    tidy(axes, label, grid="y")
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
