"""One rule for what stands behind a number, against cells written by hand."""

import polars as pl
import pytest

from hatllm.tables.numbers import (
    Number,
    columns_of,
    cut_offs_of,
    format_value,
    no_hits_note,
    over_seeds,
    paired_metrics,
    ranking_metrics,
    users_without_a_hit,
)
from hatllm.tables.paired_arms import numbers_of
from hatllm.tables.run_report import metrics_table


@pytest.mark.parametrize(
    ("error", "spread", "expected"),
    [
        (0.036, 0.012, "0.0680 ± 0.0360 (0.0120)"),
        (0.036, None, "0.0680 ± 0.0360"),  # one seed has no deviation over seeds
        (None, 0.012, "0.0680 (0.0120)"),  # one user has no error over users
        (None, None, "0.0680"),
    ],
)
def test_users_stand_behind_the_sign_and_seeds_in_parentheses(
    error: float | None, spread: float | None, expected: str
) -> None:
    assert format_value("HR@10", 0.068, error, spread) == expected


def test_one_seed_has_no_deviation_over_seeds_and_one_user_no_error_over_users() -> None:
    frame = pl.DataFrame({"example_id": [0, 1], "user_id": [7, 7], "HR@10": [0.0, 1.0]})
    number = numbers_of({1: frame}, ["HR@10", "trie_NLL"])
    assert number == {"HR@10": Number(0.5, None, None, {1: 0.5})}
    assert over_seeds({1: 0.25, 2: 0.75}).std == pytest.approx(0.125**0.5)
    assert columns_of("HR@10", number["HR@10"]) == {
        "HR@10": 0.5, "HR@10_se": None, "HR@10_std": None,
    }  # fmt: skip


def test_a_number_that_is_alike_for_all_users_stands_alone() -> None:
    assert format_value("HR@10", 0.0, 0.0, 0.0) == "0.0000"
    assert format_value("NDCG@10", 0.0, 1e-19) == "0.0000"
    assert format_value("HR@10", 0.1, 0.02, 0.0) == "0.1000 ± 0.0200 (0.0000)"


def test_without_a_hit_the_rate_is_bounded_by_the_rule_of_three() -> None:
    # 0.985 ** 200 = 0.049: a rate of 3 / 200 goes without a hit among 200 in 5 % of samples.
    assert (1 - 3 / 200) ** 200 == pytest.approx(0.05, abs=0.002)
    note = no_hits_note([200, 16, 200])
    assert note.endswith("at 95 % the rate is below 0.0150 (200 users) or 0.1875 (16 users)")
    assert "below 1.0000 (2 users)" in no_hits_note([2])
    assert no_hits_note([]) == ""


def test_only_rates_that_are_shown_are_explained() -> None:
    metrics = {"test": {"HR@1": 0.0, "HR@10": 0.1, "num_users": 7.0}}
    assert users_without_a_hit(metrics, ["HR@10", "NDCG@10"]) == []
    assert users_without_a_hit(metrics, ["HR@1", "HR@10"]) == [7.0]


def test_columns_follow_the_cut_offs_and_slices_take_ten_or_the_largest() -> None:
    assert cut_offs_of(["HR@10", "HR@10_se", "item_HR@3", "HR@1", "NDCG@7"]) == (1, 10)
    assert ranking_metrics((1, 5, 20)) == ("HR@5", "HR@20", "NDCG@5", "NDCG@20")
    assert ranking_metrics((1,)) == ("HR@1", "NDCG@1")
    assert paired_metrics((1, 5, 10, 20)) == ("NDCG@10", "trie_NLL")
    assert paired_metrics((1, 4)) == ("NDCG@4", "trie_NLL")


def test_the_terminal_shows_no_error_of_zero_and_says_what_zero_may_be() -> None:
    values = {"HR@4": 0.0, "HR@4_se": 0.0, "NDCG@4": 0.0, "NDCG@4_se": 0.0, "trie_NLL": 5.4321,
              "trie_NLL_se": 0.05, "num_examples": 300.0, "num_users": 300.0}  # fmt: skip
    table = metrics_table({"test": values})
    assert list(table.columns[0].cells) == ["HR@4", "NDCG@4", "trie_NLL", "vocab_NLL"]
    assert list(table.columns[1].cells) == ["0.0000", "0.0000", "5.432 ± 0.050", "–"]
    assert "± is the standard error over users" in str(table.caption)
    assert "below 0.0100 (300 users)" in str(table.caption)
