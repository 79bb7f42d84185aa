"""The numbers of a run against values worked out by hand."""

import math

import polars as pl
import pytest
from frames import popularity_alone, predictions_frame

from hatllm.metrics.from_predictions import evaluate_predictions, example_metrics
from hatllm.metrics.slices import target_slices

ITEMS = pl.DataFrame({"item_id": [0, 1, 2, 3, 4], "title": ["A", "B", "C", "D", "D"]})
# Item 0 occurs six times, item 1 three times, item 2 twice, item 3 once, item 4 never.
TRAIN = pl.DataFrame({"item_id": [0] * 6 + [1] * 3 + [2] * 2 + [3]})


def evaluate(predictions: pl.DataFrame, cut_offs: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    slices = popularity_alone(predictions, TRAIN)
    return evaluate_predictions(predictions, ITEMS, slices, cut_offs)


def test_metrics_equal_hand_fractions() -> None:
    metrics = evaluate(predictions_frame([1, 3, None, 7]))
    assert metrics["HR@1"] == pytest.approx(1 / 4)
    assert metrics["HR@5"] == pytest.approx(2 / 4)
    assert metrics["NDCG@10"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert metrics["MRR@10"] == pytest.approx((1 + 1 / 3 + 1 / 7) / 4)
    assert metrics["num_examples"] == 4


def test_item_metrics_use_the_rank_by_item_id() -> None:
    frame = predictions_frame([1, 2], target_item_rank=[2, None])
    metrics = evaluate(frame)
    assert (metrics["HR@1"], metrics["item_HR@1"]) == (1 / 2, 0)
    assert (metrics["HR@5"], metrics["item_HR@5"]) == (1, 1 / 2)
    assert metrics["item_NDCG@10"] == pytest.approx(1 / math.log2(3) / 2)


def test_nll_is_the_mean_of_minus_the_log_probability() -> None:
    metrics = evaluate(predictions_frame([1, None], [-1.0, -4.0]))
    assert metrics["trie_NLL"] == pytest.approx(2.5)
    assert metrics["vocab_NLL"] == pytest.approx(5.0)
    # deviations of -1.5 and 1.5: std = sqrt(4.5), over sqrt(2)
    assert metrics["trie_NLL_se"] == pytest.approx(1.5)


def test_standard_error_of_a_hit_rate_is_that_of_a_proportion() -> None:
    metrics = evaluate(predictions_frame([1, 1, 1, None]))
    assert metrics["HR@10_se"] == pytest.approx(math.sqrt(3 / 4 * 1 / 4 / 3))


def test_a_model_without_log_probabilities_has_no_nll() -> None:
    metrics = evaluate(predictions_frame([1, 2]))
    assert not [name for name in metrics if "NLL" in name]


def test_repeated_examples_count_once() -> None:
    frame = predictions_frame([1, None, 4], [-1.0, -2.0, -3.0])
    padded = pl.concat([frame, frame.head(2)])  # what a distributed sampler does
    assert evaluate(padded) == evaluate(frame)


def test_order_of_the_rows_changes_no_bit() -> None:
    frame = predictions_frame([1, 2, 3, None, 5, 6], [-0.1, -0.2, -0.3, -0.7, -1.1, -2.3])
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    assert evaluate(shuffled) == evaluate(frame)


@pytest.mark.parametrize("gap", [None, math.nan, -math.inf])
def test_a_missing_log_probability_is_an_error_that_names_the_example(gap: float | None) -> None:
    frame = predictions_frame([1, 1, 1], [-1.0, gap, -1.0])
    with pytest.raises(ValueError, match=r"target_trie_log_prob.*1 of 3 examples.*example_id=1"):
        evaluate(frame)


def test_no_predictions_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        evaluate(predictions_frame([]))


def test_slices_cut_train_interactions_into_thirds() -> None:
    # 12 interactions: 6 of item 0 fill the first third and more (head); item 1 begins at 6/12
    # (mid); item 2 begins at 9/12 and item 3 at 11/12 (tail); item 4 never occurs.
    slices = target_slices(pl.Series([4, 3, 2, 1, 0, 0]), TRAIN)
    assert slices.to_list() == ["unseen", "tail", "tail", "mid", "head", "head"]


def test_items_of_equal_popularity_share_a_slice() -> None:
    train = pl.DataFrame({"item_id": [1, 2, 3, 4]})
    assert target_slices(pl.Series([4, 3, 2, 1]), train).to_list() == ["head"] * 4


def test_slice_metrics_add_up_to_the_whole() -> None:
    targets = [0, 1, 2, 3, 4, 0]
    frame = predictions_frame([1, 2, None, 4, None, 9], [-1.0] * 6, target_item=targets)
    metrics = evaluate(frame)
    names = ("unseen", "tail", "mid", "head")
    assert [metrics[f"{name}/count"] for name in names] == [1, 2, 1, 2]
    whole = sum(metrics[f"{name}/count"] * metrics[f"{name}/NDCG@10"] for name in names) / 6
    assert whole == pytest.approx(metrics["NDCG@10"])
    assert metrics["unseen/trie_NLL"] == 1.0
    # Two targets of the head, ranks 1 and 9: their standard error is half of what they differ by.
    assert metrics["head/NDCG@10_se"] == pytest.approx((1 - 1 / math.log2(10)) / 2)
    assert metrics["no_words_no_transition/NDCG@10"] == pytest.approx(metrics["NDCG@10"])
    assert metrics["unseen_target_share"] == pytest.approx(1 / 6)


def test_an_empty_slice_has_a_count_and_nothing_else() -> None:
    metrics = evaluate(predictions_frame([1]))
    assert [name for name in metrics if name.startswith("tail/")] == ["tail/count"]


def test_an_example_without_slices_is_an_error() -> None:
    frame = predictions_frame([1, 2])
    with pytest.raises(ValueError, match="example_id=1 of the predictions has no slices"):
        evaluate_predictions(frame, ITEMS, popularity_alone(frame[:1], TRAIN), (10,))


def test_coverage_counts_titles_and_ambiguity_counts_examples() -> None:
    frame = predictions_frame([1, 1], top_items=[[0, 1], [1, 3]], ambiguous=[True, False])
    metrics = evaluate(frame)
    assert metrics["coverage@10"] == pytest.approx(3 / 4)  # five items, four titles
    assert metrics["ambiguous_title_rate"] == pytest.approx(1 / 2)


def test_means_of_example_metrics_are_the_metrics() -> None:
    frame = predictions_frame([1, 3, None], [-1.0, -2.0, -6.0])
    values = example_metrics(frame, cut_offs=(5, 10))
    metrics = evaluate(frame)
    for name in ("HR@5", "NDCG@10", "item_MRR@10", "trie_NLL", "vocab_NLL"):
        assert values[name].mean() == pytest.approx(metrics[name])


def test_a_list_of_four_has_metrics_at_four_and_none_at_ten() -> None:
    frame = predictions_frame([1, 4, None], top_items=[[0, 1, 2, 3], [1, 2], [3]])
    metrics = evaluate(frame, (1, 4))
    assert (metrics["HR@1"], metrics["HR@4"]) == pytest.approx((1 / 3, 2 / 3))
    assert metrics["NDCG@4"] == pytest.approx((1 + 1 / math.log2(5)) / 3)
    assert metrics["head/HR@4"] == metrics["HR@4"]
    assert metrics["coverage@4"] == 1.0
    assert not [name for name in metrics if name.endswith(("@5", "@10", "@10_se"))]


def test_slices_and_coverage_take_ten_where_there_is_more() -> None:
    frame = predictions_frame([15], top_items=[[0] * 14 + [1]])
    metrics = evaluate(frame, (5, 10, 20))
    assert (metrics["HR@10"], metrics["HR@20"], metrics["head/HR@10"]) == (0, 1, 0)
    assert metrics["coverage@10"] == pytest.approx(1 / 4)
    assert "head/HR@20" not in metrics
