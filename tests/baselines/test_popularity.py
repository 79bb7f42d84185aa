"""The popularity baseline against counts made by hand and by the standard library."""

import math

import polars as pl
import pytest
from few_items import popularity_predictions

from hatllm.baselines.popularity import (
    PSEUDO_COUNTS,
    rank_titles,
)

ITEMS = pl.DataFrame({"item_id": [0, 1, 2, 3, 4], "title": ["A", "B", "C", "B", "E"]})
# A occurs 4 times; B as item 1 three times and as item 3 twice: 5 together; C once; E never.
TRAIN = pl.DataFrame({"item_id": [0, 1, 2, 3], "count": [4, 3, 1, 2]})
VALID = pl.DataFrame({"target": [0, 0, 1, 2, 4]})
EXAMPLES = pl.DataFrame(
    {
        "example_id": [10, 11, 12, 13],
        "user_id": [1, 2, 3, 4],
        "history": [[0], [1, 2], [0, 1, 2], [4]],
        "target": [1, 0, 3, 4],
    }
)


def test_shared_titles_are_one_answer_with_their_counts_added() -> None:
    predictions = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=3)
    assert predictions["top_items"].to_list() == [[1, 0, 2]] * 4  # B, A, C
    assert predictions["target_rank"].to_list() == [1, 2, 1, None]
    assert predictions["ambiguous"].to_list() == [True, False, True, False]


def test_item_rank_expands_the_titles_in_ascending_id_order() -> None:
    predictions = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=3)
    assert predictions["target_item_rank"].to_list() == [1, 3, 2, None]  # 1, 3 | 0 | 2


def test_every_example_keeps_its_row_in_order_and_its_history() -> None:
    predictions = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=2)
    assert predictions["example_id"].to_list() == [10, 11, 12, 13]
    assert predictions["history_length"].to_list() == [1, 2, 3, 1]
    # Item 1 was in the history of example 11 and is recommended all the same.
    assert predictions["top_items"].to_list()[1] == [1, 0]


def test_log_probabilities_fall_along_the_list_and_the_target_has_that_of_its_title() -> None:
    predictions = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=4)
    more = 10.0  # the likeliest of PSEUDO_COUNTS for VALID, as below
    whole = 10 + 4 * more
    probs = predictions["top_log_probs"].explode().exp().to_list()[:4]
    assert probs == pytest.approx([(count + more) / whole for count in (5, 4, 1, 0)])
    of_targets = predictions["target_trie_log_prob"].exp().to_list()
    assert of_targets == pytest.approx([(count + more) / whole for count in (5, 4, 5, 0)])
    assert predictions["target_vocab_log_prob"].is_null().all()
    assert predictions.schema == {
        "example_id": pl.Int64,
        "user_id": pl.Int64,
        "target_item": pl.Int64,
        "target_rank": pl.Int64,
        "target_item_rank": pl.Int64,
        "top_items": pl.List(pl.Int64),
        "top_log_probs": pl.List(pl.Float64),
        "target_trie_log_prob": pl.Float64,
        "target_vocab_log_prob": pl.Float64,
        "history_length": pl.Int64,
        "ambiguous": pl.Boolean,
    }


@pytest.mark.parametrize("targets", [[0, 0, 1, 2, 4], [0, 1, 3], [4, 4, 2], [2, 4, 0, 1]])
def test_the_pseudo_count_is_the_one_that_makes_valid_likeliest(targets: list[int]) -> None:
    count = {0: 4, 1: 5, 2: 1, 3: 5, 4: 0}

    def nll(more: float) -> float:
        return -sum(math.log((count[item] + more) / (10 + 4 * more)) for item in targets)

    ranked = rank_titles(TRAIN, pl.DataFrame({"target": targets}), ITEMS)
    got = dict(ranked.select("item_id", "log_prob").iter_rows())
    assert -sum(got[item] for item in targets) == pytest.approx(min(map(nll, PSEUDO_COUNTS)))


def test_without_valid_rows_every_title_is_counted_once_more() -> None:
    ranked = rank_titles(TRAIN, VALID.clear(), ITEMS)
    probs = ranked.unique("rank", maintain_order=True)["log_prob"].exp().to_list()
    assert probs == pytest.approx([6 / 14, 5 / 14, 2 / 14, 1 / 14])


def test_a_list_longer_than_the_catalogue_ends_with_it() -> None:
    predictions = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=50)
    assert predictions["top_items"].list.len().to_list() == [4] * 4
    assert predictions["target_rank"].null_count() == 0


def test_ties_do_not_follow_the_item_id() -> None:
    items = pl.DataFrame({"item_id": range(200), "title": [f"t{i}" for i in range(200)]})
    ranked = rank_titles(TRAIN, VALID, items)["item_id"].to_list()
    unseen = [item for item in ranked if item > 3]
    first_half = sum(item < 102 for item in unseen[:98])
    assert 30 < first_half < 68  # by id it would be 98 (or 0)


def test_ties_are_stable_under_reordering_of_all_tables() -> None:
    items = pl.DataFrame({"item_id": range(50), "title": [f"t{i}" for i in range(50)]})
    expected = rank_titles(TRAIN, VALID, items)["item_id"].to_list()
    shuffled = items.sample(fraction=1.0, shuffle=True, seed=3)
    assert rank_titles(TRAIN.reverse(), VALID, shuffled)["item_id"].to_list() == expected


def test_int32_tables_give_the_same_predictions() -> None:
    target, history = pl.col("target").cast(pl.Int32), pl.col("history").cast(pl.List(pl.Int32))
    narrow = popularity_predictions(
        TRAIN.with_columns(pl.col("item_id").cast(pl.Int32)),
        VALID.with_columns(target),
        EXAMPLES.with_columns(target, history, pl.col("example_id", "user_id").cast(pl.Int32)),
        ITEMS.with_columns(pl.col("item_id").cast(pl.Int32)),
        top_k=3,
    )
    wide = popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=3)
    assert narrow.equals(wide)
    assert narrow.schema == wide.schema


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        popularity_predictions(TRAIN, VALID, EXAMPLES, ITEMS, top_k=0)
    stranger = EXAMPLES.with_columns(target=pl.lit(99))
    with pytest.raises(ValueError, match=r"examples\.target=99"):
        popularity_predictions(TRAIN, VALID, stranger, ITEMS, top_k=1)
