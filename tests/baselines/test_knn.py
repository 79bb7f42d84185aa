"""Neighbours against counts made by hand and by nested loops."""

from collections import Counter
from itertools import permutations

import polars as pl
import pytest

from hatllm.baselines import knn
from hatllm.baselines.knn import knn_rule, neighbours
from hatllm.config import KnnConfig

ITEMS = pl.DataFrame({"item_id": [1, 2, 3, 4, 9], "title": ["A", "B", "C", "D", "E"]})
# Sequences {1, 2, 3}, {1, 2}, {2, 3} (2 twice: counted once), {4, 1}; 9 never.
TRAIN = pl.DataFrame(
    {"user_id": [1, 1, 1, 2, 2, 3, 3, 3, 4, 4], "item_id": [1, 2, 3, 1, 2, 2, 2, 3, 4, 1]}
)
PLAIN = KnnConfig(train_on="full", num_neighbours=100, shrinkage=0.0, balance=0.5)
RULE = knn_rule(neighbours(TRAIN, PLAIN), ITEMS)


def examples(*histories: list[int], target: int = 3) -> pl.DataFrame:
    numbers = range(len(histories))
    return pl.DataFrame(
        {
            "example_id": numbers,
            "user_id": numbers,
            "history": list(histories),
            "target": [target] * len(histories),
        }
    )


def test_similarities_are_meetings_over_the_root_of_both_counts() -> None:
    # Counts: item 1 in 3 sequences, 2 in 3, 3 in 2, 4 in 1. Items 1 and 2 meet twice.
    found = {(i, j): s for i, j, s in neighbours(TRAIN, PLAIN).iter_rows()}
    expected = {
        (1, 2): 2 / 3, (1, 3): 1 / 6**0.5, (2, 3): 2 / 6**0.5, (1, 4): 1 / 3**0.5,
    }  # fmt: skip
    assert found == pytest.approx(expected | {(j, i): s for (i, j), s in expected.items()})


def test_shrinkage_and_balance_stand_where_the_formula_has_them() -> None:
    config = KnnConfig(train_on="full", num_neighbours=100, shrinkage=20.0, balance=0.25)
    found = {(i, j): s for i, j, s in neighbours(TRAIN, config).iter_rows()}
    assert found[(3, 2)] == pytest.approx(2 / (22**0.25 * 23**0.75))
    assert found[(2, 3)] == pytest.approx(2 / (23**0.25 * 22**0.75))


@pytest.mark.parametrize("at_a_time", [1, 50, 4_000_000])
def test_meetings_equal_nested_loops(at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "MEETINGS_AT_A_TIME", at_a_time)
    rows = [[(7 * r + 3 * step * (1 + r % 3)) % 20 for step in range(6)] for r in range(40)]
    train = pl.DataFrame({"user_id": range(40), "item_id": rows}).explode("item_id")
    meetings: Counter[tuple[int, int]] = Counter()
    counts: Counter[int] = Counter()
    for row in rows:
        meetings.update(permutations(set(row), 2))
        counts.update(set(row))
    expected = {(i, j): n / (counts[i] * counts[j]) ** 0.5 for (i, j), n in meetings.items()}
    found = {(i, j): s for i, j, s in neighbours(train, PLAIN).iter_rows()}
    assert found == pytest.approx(expected)


def test_the_last_item_alone_decides_and_is_no_neighbour_of_itself() -> None:
    table = RULE.predictions(examples([4, 1], [2, 1], [4, 2]), ITEMS, top_k=3)
    assert table["top_items"].to_list() == [
        [2, 4, 3],
        [2, 4, 3],
        [3, 1, table["top_items"][2][2]],
    ]
    assert table["top_items"][2][2] in (4, 2, 9)  # the rest scores 0
    assert table["target_rank"].to_list() == [3, 3, 1]
    assert table["history_length"].to_list() == [2, 2, 2]


def test_only_the_nearest_neighbours_score() -> None:
    config = KnnConfig(train_on="full", num_neighbours=1, shrinkage=0.0, balance=0.5)
    assert neighbours(TRAIN, config).filter(item_id=1)["neighbour"].to_list() == [2]


def test_an_unseen_last_item_gives_every_user_the_same_list() -> None:
    table = RULE.predictions(examples([9], [9]), ITEMS, top_k=5)
    first, second = table["top_items"].to_list()
    assert first == second and sorted(first) == [1, 2, 3, 4, 9] and first != [1, 2, 3, 4, 9]


def test_an_item_outside_the_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match=r"examples\.history=7 is not an item_id"):
        RULE.predictions(examples([7]), ITEMS, top_k=1)
    with pytest.raises(ValueError, match=r"examples\.target=7 is not an item_id"):
        RULE.predictions(examples([1], target=7), ITEMS, top_k=1)
