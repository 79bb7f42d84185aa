"""Which validation's weights are exported, how long none was better, and the sentence about it."""

from math import nan

import pytest

from hatllm.metrics.best_step import (
    Validation,
    best_of,
    exported,
    is_lower_better,
    num_without_better,
    why,
)

NDCG = "val/NDCG@10"
Curve = list[tuple[float, float | None]]


def validations(curve: Curve) -> list[Validation]:
    """With these values and NLLs, ten steps apart."""
    return [Validation(10 * (n + 1), value, nll) for n, (value, nll) in enumerate(curve)]


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        ([(0.1, 9.0), (0.3, 9.5), (0.2, 8.0)], 20),
        ([(0.0, 9.2), (0.0, 9.0), (0.0, 8.8), (0.0, 8.9)], 30),  # equal: the lower NLL
        ([(0.2, 9.0), (0.2, 9.0), (0.1, 8.0)], 20),  # equal in both: the later
        ([(0.2, None), (0.2, None), (0.1, None)], 20),  # a decoder without an NLL
        ([(nan, 8.0), (0.0, 9.0), (nan, 7.0)], 20),
        ([(0.1, nan), (0.1, 9.0), (0.1, nan)], 20),
    ],
)
def test_the_best_is_by_the_metric_then_by_nll_then_the_later(curve: Curve, step: int) -> None:
    best = best_of(validations(curve), NDCG)
    assert best is not None and best.step == step


def test_an_nll_that_is_monitored_is_best_where_it_is_lowest() -> None:
    curve = validations([(9.0, 9.0), (8.5, 8.5), (8.7, 8.7)])
    assert best_of(curve, "val/trie_NLL") == curve[1]
    assert [is_lower_better(name) for name in (NDCG, "val/vocab_NLL")] == [False, True]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], 0),
        ([(0.1, 9.0)], 0),
        ([(0.1, 9.0), (0.0, 8.0), (0.05, 8.0)], 2),
        ([(0.0, 9.0), (0.0, 8.9), (0.0, 8.8)], 0),  # a lower NLL is better
        ([(0.0, 9.0), (0.0, 9.0), (0.0, 9.0)], 2),  # the same again is not
        ([(0.0, None), (0.0, None)], 1),
    ],
)
def test_patience_counts_a_lower_nll_as_better_and_an_equal_one_as_nothing_new(
    curve: Curve, expected: int
) -> None:
    assert num_without_better(validations(curve), NDCG) == expected


@pytest.mark.parametrize(
    ("curve", "sentence"),
    [
        ([], "the last step, because no validation was due"),
        ([(0.1, 9.0)], "the only validation, val/NDCG@10 0.1000"),
        ([(0.1, 9.0), (0.3, 9.5)], "val/NDCG@10 0.3000 is the highest of 2 validations"),
        (
            [(0.0, 9.2), (0.0, 9.0), (0.0, 8.8)],
            "val/NDCG@10 0.0000 is the highest of 3 validations, as after 2 others; of these it "
            "has the lowest val/trie_NLL (8.800)",
        ),
        (
            [(0.2, 9.0), (0.2, 9.0), (0.1, 8.0)],
            "val/NDCG@10 0.2000 is the highest of 3 validations, as after 1 other; of 2 equal in "
            "that it is the latest",
        ),
    ],
)
def test_a_sentence_says_what_decided(curve: Curve, sentence: str) -> None:
    assert why(validations(curve), NDCG) == sentence


def test_without_a_validation_the_last_step_is_exported() -> None:
    found = exported([], NDCG, 7)
    assert (found["step"], found["value"]) == (7, None)
    found = exported(validations([(0.1, 9.0), (0.3, 9.5), (0.2, 8.0)]), NDCG, 33)
    assert (found["step"], found["of_steps"], found["value"]) == (20, 33, 0.3)
    assert (found["monitor"], found["val/trie_NLL"]) == (NDCG, 9.5)
