"""Fused lists against reciprocal ranks added up by hand."""

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatllm.baselines.fusion import best_share, fused_lists, fused_predictions, gain_of_shares
from hatllm.config import FusionConfig

ITEMS = pl.DataFrame(
    {"item_id": [1, 2, 3, 4, 5, 6], "title": ["A", "B", "C", "A", "D", "E"]}  # A stands twice
)


def frame(lists: list[list[int]], targets: list[int] | None = None) -> pl.DataFrame:
    targets = targets or [1] * len(lists)
    return pl.DataFrame(
        {
            "example_id": range(len(lists)), "user_id": range(len(lists)), "target_item": targets,
            "top_items": lists, "history_length": [2] * len(lists),
            "ambiguous": [target in (1, 4) for target in targets],
        },
        schema_overrides={"top_items": pl.List(pl.Int64), "example_id": pl.Int64},
    )  # fmt: skip


def by_hand(first: list[int], second: list[int], share: float, top_k: int) -> list[int]:
    scores: dict[int, float] = {}
    for items, weight in ((first, share), (second, 1 - share)):
        for rank, item in enumerate(items, start=1):
            scores[item] = scores.get(item, 0.0) + weight / (60 + rank)

    def key(item: int) -> tuple[float, float, float]:
        ranks = [x.index(item) if item in x else math.inf for x in (first, second)]
        return -scores[item], ranks[0], ranks[1]

    return sorted((item for item in scores if scores[item] > 0), key=key)[:top_k]


LISTS = st.lists(st.integers(1, 9), max_size=6, unique=True)


@given(st.lists(st.tuples(LISTS, LISTS), min_size=1, max_size=4), st.sampled_from([0, 0.3, 1]))
def test_lists_are_fused_as_by_hand(pairs: list[tuple[list[int], list[int]]], share: float) -> None:
    first, second = (frame([pair[place] for pair in pairs]) for place in (0, 1))
    found = fused_lists(first, second, share, constant=60, top_k=5)
    assert found["example_id"].to_list() == list(range(len(pairs)))
    for row, pair in zip(found.rows(named=True), pairs, strict=True):
        assert row["top_items"] == by_hand(*pair, share, 5)
        assert row["top_log_probs"] == sorted(row["top_log_probs"], reverse=True)


def test_ranks_are_of_titles_and_of_items() -> None:
    # Item 4 shares the title of item 1, which stands first in the fused list: title rank 1, item
    # rank 2. Item 3 is third by title, fourth by item. Item 6 is in neither list.
    first = frame([[1, 2, 3]] * 4, [4, 3, 6, 2])
    second = frame([[1, 2, 5]] * 4, [4, 3, 6, 2])
    found = fused_predictions(first, second, ITEMS, 0.6, 60, top_k=3)
    assert found["top_items"].to_list() == [[1, 2, 3]] * 4
    assert found["target_rank"].to_list() == [1, 3, None, 2]
    assert found["target_item_rank"].to_list() == [2, None, None, 3]
    assert found["target_trie_log_prob"].null_count() == 4


def test_the_share_is_the_one_that_ranks_valid_best_and_among_equals_the_first_runs() -> None:
    first, second = frame([[2, 3], [2, 3]], [5, 6]), frame([[5, 2], [6, 2]], [5, 6])
    gains = gain_of_shares(first, second, ITEMS, FusionConfig(constant=60.0, steps=4), top_k=2)
    assert list(gains) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (gains[0.0], gains[1.0]) == (1.0, 0.0)
    assert gains[0.25] == pytest.approx(1 / math.log2(3))
    assert best_share(gains) == 0.0
    assert best_share({0.0: 0.5, 0.5: 0.7, 1.0: 0.7}) == 1.0
