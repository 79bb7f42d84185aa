"""Attention shares of a prompt small enough to write down."""

import polars as pl
import pytest
import torch

from hatllm.figures.attention_shares import (
    KINDS,
    draw_attention,
    group_shares,
    headline_ratios,
    mass_of_kinds,
    pair_kinds,
    with_shares,
)

# One token of prefix, item 0 of two tokens, item 1 of two, one token of response, one of padding.
SEGMENT_1L = torch.tensor([[-1, 0, 0, 1, 1, -2, -2]])
VALID_1L = torch.tensor([[True] * 6 + [False]])
# Weights of the four item tokens' queries over the first five keys, in hundredths.
HUNDREDTHS = [[50, 50, 0, 0, 0], [40, 10, 50, 0, 0], [20, 20, 30, 30, 0], [10, 0, 20, 40, 30]]


def written_weights() -> torch.Tensor:
    """Two heads that average to the written weights; template and padding queries see key 0."""
    weight_QK = torch.zeros(7, 7)
    weight_QK[:, 0] = 1
    weight_QK[1:5, :5] = torch.tensor(HUNDREDTHS) / 100
    difference_QK = torch.zeros(7, 7)
    difference_QK[2, 0], difference_QK[2, 1] = 0.1, -0.1
    return torch.stack([weight_QK + difference_QK, weight_QK - difference_QK])[None]


def made_up_masses(state: str = "before", cross: float = 0.9) -> pl.DataFrame:
    kinds = pair_kinds(SEGMENT_1L, VALID_1L)
    mass = mass_of_kinds(written_weights(), kinds) | {"cross": cross}
    rows = [("causal", state, 1, 0, "full", k, int(kinds[k].sum()), mass[k]) for k in KINDS]
    names = ["label", "state", "seed", "layer", "pattern", "kind", "pairs", "mass"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_pairs_are_counted_by_hand() -> None:
    counts = {kind: int(pairs.sum()) for kind, pairs in pair_kinds(SEGMENT_1L, VALID_1L).items()}
    # Four queries: each sees itself and the prefix; the second token of an item sees the first;
    # both tokens of item 1 see both of item 0. Template and padding tokens ask nothing.
    assert counts == {"self": 4, "intra": 2, "cross": 4, "template": 4}


def test_every_causal_pair_of_an_item_token_is_of_one_kind() -> None:
    kinds = pair_kinds(SEGMENT_1L, VALID_1L)
    times_QK = sum(of_kind_BQK[0].int() for of_kind_BQK in kinds.values())
    expected_QK = torch.ones(7, 7, dtype=torch.int32).tril()
    expected_QK[[0, 5, 6]] = 0
    assert torch.equal(times_QK, expected_QK)


def test_masses_are_the_written_weights_averaged_over_heads() -> None:
    mass = mass_of_kinds(written_weights(), pair_kinds(SEGMENT_1L, VALID_1L))
    assert mass == pytest.approx({"self": 1.6, "intra": 0.5, "cross": 0.7, "template": 1.2})
    assert sum(mass.values()) == pytest.approx(4)  # one for each query


def test_shares_and_ratios_follow_from_the_masses() -> None:
    shares = with_shares(made_up_masses(cross=0.7))
    assert shares["share"].to_list() == pytest.approx([0.4, 0.125, 0.175, 0.3])
    assert shares["share"].sum() == pytest.approx(1)
    assert shares["weight_per_pair"].to_list() == pytest.approx([0.4, 0.25, 0.175, 0.3])
    ((label, state, mass, pairs, per_pair),) = headline_ratios(shares).iter_rows()
    assert (label, state) == ("causal", "before")
    # 2.1 of mass on six pairs of the own item, 0.7 on four pairs across items.
    assert (mass, pairs, per_pair) == pytest.approx((3.0, 4 / 6, (2.1 / 6) / (0.7 / 4)))


def test_no_ratio_where_nothing_attends_across_items() -> None:
    ratios = headline_ratios(with_shares(made_up_masses(cross=0.0)))
    assert ratios["mass_ratio"].to_list() == [None]
    assert ratios["per_pair_ratio"].to_list() == [None]


def test_a_kind_without_pairs_has_no_weight_per_pair() -> None:
    one_item = pair_kinds(torch.tensor([[-1, 0]]), torch.ones(1, 2, dtype=torch.bool))
    assert not one_item["cross"].any()
    masses = made_up_masses().with_columns(pairs=pl.lit(0))
    assert with_shares(masses)["weight_per_pair"].null_count() == 4


def test_segments_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, L\)"):
        pair_kinds(SEGMENT_1L, VALID_1L[:, :3])


def test_the_figure_has_a_panel_a_mask_and_a_line_a_group_and_state() -> None:
    shares = with_shares(pl.concat([made_up_masses("before"), made_up_masses("after", cross=0.3)]))
    shares = pl.concat([shares, shares.with_columns(label=pl.lit("hatllm"))])
    figure = draw_attention(shares)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["causal", "hatllm"]
    assert [len(axes.lines) for axes in panels] == [6, 6]


def test_the_figure_averages_seeds() -> None:
    one, two = with_shares(made_up_masses(cross=0.7)), with_shares(made_up_masses(cross=1.7))
    both = pl.concat([one, two.with_columns(seed=pl.col("seed") + 1)])
    table = group_shares(both)
    cross = table.filter(pl.col("group") == "other items")["share"].item()
    assert cross == pytest.approx((0.7 / 4 + 1.7 / 5) / 2)
