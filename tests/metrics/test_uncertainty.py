"""Intervals and p values against exact enumeration, closed forms and known coverage."""

import itertools
import math
import statistics

import numpy as np
import polars as pl
import pytest
from frames import predictions_frame

from hatllm.metrics.uncertainty import (
    bootstrap_interval,
    holm,
    mean_and_standard_error,
    mean_and_std_over_seeds,
    paired_difference,
    sign_flip_p_value,
    summarize_differences,
    wilcoxon_p_value,
)


def test_mean_difference_is_first_minus_second() -> None:
    first, second = predictions_frame([1, 1, 3, None]), predictions_frame([1, None, 1, None])
    difference = paired_difference(first, second, "NDCG")
    assert difference.mean == pytest.approx((0 + 1 - 1 / 2 + 0) / 4)
    assert (difference.num_examples, difference.num_users) == (4, 4)


def test_a_metric_may_name_its_own_cut_off() -> None:
    first, second = predictions_frame([5, 5]), predictions_frame([None, None])
    assert paired_difference(first, second, "HR@3").mean == 0
    assert paired_difference(first, second, "HR").mean == 1
    assert paired_difference(first, second, "item_HR", k=4).mean == 0


def test_nll_differences_pair_by_example_id_not_by_row() -> None:
    first = predictions_frame([1, 1, 1], [-1.0, -2.0, -3.0])
    second = predictions_frame([1, 1, 1], [-2.0, -3.0, -4.0]).reverse()
    difference = paired_difference(first, second, "trie_NLL")
    assert (difference.mean, difference.low, difference.high) == (-1, -1, -1)
    assert difference.excludes_zero


def test_different_examples_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match="2 only in the first, 0 only in the second"):
        paired_difference(predictions_frame([1, 1, 1]), predictions_frame([1]), "HR")


def test_a_metric_that_one_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="second predictions have no trie_NLL"):
        paired_difference(predictions_frame([1], [-1.0]), predictions_frame([1]), "trie_NLL")


def test_equal_predictions_are_no_difference() -> None:
    frame = predictions_frame([1, 2, None, 4])
    difference = paired_difference(frame, frame, "NDCG")
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.p_value == 1
    assert not difference.excludes_zero


def test_bootstrap_interval_agrees_with_the_normal_one_for_many_users() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, size=4000)
    low, high = bootstrap_interval(values, np.ones(4000))
    margin = 1.96 * values.std(ddof=1) / math.sqrt(4000)
    assert low == pytest.approx(values.mean() - margin, abs=0.05 * margin)
    assert high == pytest.approx(values.mean() + margin, abs=0.05 * margin)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    samples = generator.normal(0.0, 1.0, size=(400, 60))
    intervals = [bootstrap_interval(row, np.ones(60), num_resamples=600) for row in samples]
    covered = sum(low <= 0 <= high for low, high in intervals)
    assert 360 <= covered <= 396  # 380 expected; the standard deviation is 4.4


def test_bootstrap_is_the_same_at_every_call() -> None:
    values = np.random.default_rng(2).normal(size=100)
    assert bootstrap_interval(values, np.ones(100)) == bootstrap_interval(values, np.ones(100))


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=100)
    monkeypatch.setattr("hatllm.metrics.uncertainty.MAX_KEPT", 0)
    whole = bootstrap_interval(values, np.ones(100))
    monkeypatch.setattr("hatllm.metrics.uncertainty.MAX_DRAWS", 700)
    assert bootstrap_interval(values, np.ones(100)) == pytest.approx(whole)


@pytest.mark.parametrize("num_users", [1, 2, 255, 300])
def test_kept_draws_give_the_interval_of_drawing_again(
    num_users: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(3)
    totals, counts = generator.normal(size=num_users), generator.integers(1, 5, num_users) * 1.0
    kept = bootstrap_interval(totals, counts, 500)
    again = bootstrap_interval(2 * totals, counts, 500)  # from the draws that the first has left
    monkeypatch.setattr("hatllm.metrics.uncertainty.MAX_KEPT", 0)
    assert kept == pytest.approx(bootstrap_interval(totals, counts, 500), rel=1e-12)
    assert again == pytest.approx([2 * bound for bound in kept], rel=1e-12)


def test_users_are_drawn_whole() -> None:
    generator = np.random.default_rng(5)
    by_user = generator.normal(size=300)
    once = pl.DataFrame({"user_id": range(300), "difference": by_user})
    repeated = pl.concat([once] * 9)  # nine copies of each user bring no knowledge
    first, second = summarize_differences(once), summarize_differences(repeated)
    assert (second.low, second.high) == pytest.approx((first.low, first.high))
    assert second.standard_error == pytest.approx(first.standard_error)
    assert second.p_value == first.p_value


def test_sign_flip_p_value_agrees_with_all_sign_assignments() -> None:
    values = np.random.default_rng(3).normal(0.4, 1.0, size=12)
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    exact = (np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean()
    # 10,000 draws: the standard deviation is below 0.005
    assert sign_flip_p_value(values) == pytest.approx(exact, abs=0.02)


def test_sign_flip_p_value_of_a_clear_difference_is_the_smallest_possible() -> None:
    assert sign_flip_p_value(np.full(100, 0.5)) == pytest.approx(1 / 10_001)


def test_mean_and_standard_error_agree_with_the_standard_library() -> None:
    values = [0.5, 1.5, 4.0, 4.5]
    mean, error = mean_and_standard_error(pl.Series(values), pl.Series([1, 2, 3, 4]))
    assert mean == statistics.mean(values)
    assert error == pytest.approx(statistics.stdev(values) / 2)


def test_spread_over_seeds_agrees_with_the_standard_library() -> None:
    values = [0.031, 0.029, 0.033]
    mean, std = mean_and_std_over_seeds(values)
    assert (mean, std) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    assert math.isnan(mean_and_std_over_seeds([0.03])[1])


def test_holm_multiplies_the_smallest_by_all_and_the_largest_by_one() -> None:
    p_values = {"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.005}
    # in order: d 4 x 0.005, b 3 x 0.01, c 2 x 0.03, a 0.04, but not below c's
    expected = {"a": 0.06, "b": 0.03, "c": 0.06, "d": 0.02}
    assert holm(p_values) == pytest.approx(expected)
    assert list(holm(p_values)) == ["a", "b", "c", "d"]


def test_holm_leaves_a_single_comparison_alone_and_stops_at_one() -> None:
    assert holm({"only": 0.2}) == {"only": 0.2}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_wilcoxon_is_the_share_of_sign_flips_that_are_as_extreme() -> None:
    differences = [0.3, -0.1, 0.5, 0.2, 0.7, -0.4, 0.6, 0.8]
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = abs((ranks * np.sign(differences)).sum())
    flips = [abs((ranks * np.array(signs)).sum()) for signs in itertools.product((-1, 1), repeat=8)]
    expected = np.mean([flip >= observed for flip in flips])
    table = pl.DataFrame({"user_id": range(8), "difference": differences})
    assert wilcoxon_p_value(table) == pytest.approx(expected)


def test_a_user_counts_once_and_one_without_a_difference_not_at_all() -> None:
    table = pl.DataFrame({"user_id": [1, 2, 3, 4], "difference": [0.4, 0.2, -0.1, 0.5]})
    more = pl.DataFrame(
        {"user_id": [1, 2, 3, 4, 4, 5], "difference": [0.4, 0.2, -0.1, 0.3, 0.2, 0]}
    )
    assert wilcoxon_p_value(more) == wilcoxon_p_value(table)
    assert wilcoxon_p_value(pl.DataFrame({"user_id": [1, 2], "difference": [0.0, 0.0]})) == 1.0
