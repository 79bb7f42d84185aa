"""Whom item tokens attend to: themselves, their own item, other items or the template.

The motivation of arXiv:2510.10955 in numbers. Queries are the tokens of history items; every causal
pair of such a query and a key is of exactly one kind, so the shares of the kinds sum to 1.

Dimension key: B batch, H heads, L sequence, Q query position, K key position (Q = K = L).
"""

import polars as pl
import torch
from torch import Tensor

from hatllm.masks.layer_masks import causal_visible

KINDS = ("self", "intra", "cross", "template")
# The columns that name one row of the shares table, beside the kind and the seed.
LAYER = ("label", "state", "layer", "pattern")


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
