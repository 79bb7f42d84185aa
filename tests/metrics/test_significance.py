"""Holm's correction by hand, Wilcoxon's test against every sign flip."""

from itertools import product

import numpy as np
import polars as pl
import pytest

from hatllm.metrics.uncertainty import holm, wilcoxon_p_value


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
    flips = [abs((ranks * np.array(signs)).sum()) for signs in product((-1, 1), repeat=8)]
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
