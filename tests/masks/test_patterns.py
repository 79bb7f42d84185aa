from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatllm.masks.patterns import (
    PREFIX,
    RESPONSE,
    cross,
    full,
    intra,
    intra_segments,
    restart_positions,
)

Pattern = Callable[[Tensor, Tensor], Tensor]
PATTERNS = [full, intra, intra_segments, cross]

# prefix, item 0 of two tokens, item 1 of two tokens (the same film again), response, title.
PROMPT = [PREFIX, 0, 0, 1, 1, RESPONSE]
AS_ITEM, AS_RESPONSE = [*PROMPT, 2, 2], [*PROMPT, RESPONSE, RESPONSE]

BY_HAND = {
    ("full", "item"): """
        1 . . . . . . .
        1 1 . . . . . .
        1 1 1 . . . . .
        1 1 1 1 . . . .
        1 1 1 1 1 . . .
        1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1""",
    ("intra", "item"): """
        1 . . . . . . .
        1 1 . . . . . .
        1 1 1 . . . . .
        1 . . 1 . . . .
        1 . . 1 1 . . .
        1 1 1 1 1 1 . .
        1 . . . . 1 1 .
        1 . . . . 1 1 1""",
    ("intra", "response"): """
        1 . . . . . . .
        1 1 . . . . . .
        1 1 1 . . . . .
        1 . . 1 . . . .
        1 . . 1 1 . . .
        1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1""",
    ("intra_segments", "item"): """
        1 . . . . . . .
        1 1 . . . . . .
        1 1 1 . . . . .
        1 . . 1 . . . .
        1 . . 1 1 . . .
        1 . . . . 1 . .
        1 . . . . . 1 .
        1 . . . . . 1 1""",
    ("intra_segments", "response"): """
        1 . . . . . . .
        1 1 . . . . . .
        1 1 1 . . . . .
        1 . . 1 . . . .
        1 . . 1 1 . . .
        1 . . . . 1 . .
        1 . . . . 1 1 .
        1 . . . . 1 1 1""",
    ("cross", "item"): """
        1 . . . . . . .
        1 . . . . . . .
        1 . . . . . . .
        1 1 1 . . . . .
        1 1 1 . . . . .
        1 1 1 1 1 1 . .
        1 1 1 1 1 1 . .
        1 1 1 1 1 1 . .""",
    ("cross", "response"): """
        1 . . . . . . .
        1 . . . . . . .
        1 . . . . . . .
        1 1 1 . . . . .
        1 1 1 . . . . .
        1 1 1 1 1 1 . .
        1 1 1 1 1 1 1 .
        1 1 1 1 1 1 1 1""",
}

segments = st.lists(st.integers(-2, 4), min_size=1, max_size=12)


def matrix(drawing: str) -> Tensor:
    rows = [line.split() for line in drawing.strip().splitlines()]
    return torch.tensor([[cell == "1" for cell in row] for row in rows])


def within_causality(pattern: Pattern, segment: list[int]) -> Tensor:
    segment_BL = torch.tensor([segment])
    return pattern(segment_BL, segment_BL)[0].tril()


@pytest.mark.parametrize(("name", "title"), BY_HAND)
def test_a_pattern_is_the_matrix_drawn_by_hand(name: str, title: str) -> None:
    pattern = {p.__name__: p for p in PATTERNS}[name]
    segment = AS_ITEM if title == "item" else AS_RESPONSE
    assert torch.equal(within_causality(pattern, segment), matrix(BY_HAND[name, title]))


def test_a_repeated_item_is_two_segments() -> None:
    segment_BL = torch.tensor([[0, 0, 1]])  # one film watched twice: one item_id, two segments
    expected = matrix("1 . .\n1 1 .\n. . 1")
    assert torch.equal(intra(segment_BL, segment_BL)[0].tril(), expected)


@given(segments)
def test_inside_the_history_intra_or_cross_is_causal(segment: list[int]) -> None:
    items = [max(s, 0) for s in segment]
    union = within_causality(intra, items) | within_causality(cross, items)
    assert torch.equal(union, within_causality(full, items))
    both = within_causality(intra, items) & within_causality(cross, items)
    assert not both.any()


@given(segments)
def test_template_tokens_see_and_are_seen_in_every_pattern_of_scope_items(
    segment: list[int],
) -> None:
    template_L = torch.tensor(segment) < 0
    causal = torch.ones(len(segment), len(segment), dtype=torch.bool).tril()
    touched = (template_L[:, None] | template_L[None, :]) & causal
    for pattern in (full, intra, cross):
        assert within_causality(pattern, segment)[touched].all()


@given(segments, segments)
def test_a_pattern_of_chosen_queries_is_the_rows_of_the_whole(
    query: list[int], key: list[int]
) -> None:
    everything = torch.tensor([key + query])
    for pattern in PATTERNS:
        rows = pattern(torch.tensor([query]), everything)
        assert torch.equal(rows, pattern(everything, everything)[:, len(key) :])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_segments_of_the_wrong_rank_are_refused(pattern: Pattern) -> None:
    flat_L, segment_BL = torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"query_segment must have two dimensions, got \(3,\)"):
        pattern(flat_L, segment_BL)
    with pytest.raises(ValueError, match=r"key_segment must have two dimensions, got \(3,\)"):
        pattern(segment_BL, flat_L)


P, R = PREFIX, RESPONSE


@pytest.mark.parametrize(
    ("segment", "valid", "expected"),
    [
        # prefix of two, items of two, one and two tokens, response of two, title
        ([P, P, 0, 0, 1, 2, 2, R, R, 3], "1111111111", [0, 1, 2, 3, 2, 2, 3, 2, 3, 2]),
        # the title continues the response template
        ([P, 0, 0, R, R, R], "111111", [0, 1, 2, 1, 2, 3]),
        # padding on the right and on the left
        ([P, 0, 0, R, R, R], "111100", [0, 1, 2, 1, 0, 0]),
        ([R, R, P, 0, 0, R], "001111", [0, 0, 0, 1, 2, 1]),
        ([0, 0, 0, 0, 1, R], "001111", [0, 0, 0, 1, 0, 0]),
        # without a prefix, without a history
        ([0, 0, 1, R], "1111", [0, 1, 0, 0]),
        ([P, P, R, 0], "1111", [0, 1, 2, 2]),
    ],
)
def test_positions_restart_after_the_prefix(
    segment: list[int], valid: str, expected: list[int]
) -> None:
    valid_BL = torch.tensor([[c == "1" for c in valid]])
    assert restart_positions(torch.tensor([segment]), valid_BL).tolist() == [expected]


def test_rows_of_one_batch_restart_each_after_its_own_prefix() -> None:
    segment_BL = torch.tensor([[P, P, 0, 1], [P, 0, 0, 1]])
    expected = [[0, 1, 2, 2], [0, 1, 2, 1]]
    assert restart_positions(segment_BL, torch.ones(2, 4, dtype=torch.bool)).tolist() == expected
