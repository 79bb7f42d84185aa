import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import padded
from torch import Tensor
from toys import schedule_of

from hatllm.masks.layer_masks import LayerMasks, Tokens, build_layer_masks, causal_visible
from hatllm.masks.patterns import PREFIX, RESPONSE

SETTINGS = [
    (scope, sees_self, target_is_item)
    for scope in ("items", "segments")
    for sees_self in (False, True)
    for target_is_item in (False, True)
]


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Segments of a whole prompt: prefix, items, response, title; any part may be missing."""
    items = draw(st.lists(st.integers(1, 3), max_size=4))
    parts = [[PREFIX] * draw(st.integers(0, 2))]
    parts += [[place] * length for place, length in enumerate(items)]
    parts += [[RESPONSE] * draw(st.integers(0, 2)), [len(items)] * draw(st.integers(0, 2))]
    return [segment for part in parts for segment in part] or [RESPONSE]


batches = st.lists(prompts(), min_size=1, max_size=3)


def tokens_of(rows: list[list[int]], side: str, extra: int = 0) -> tuple[Tokens, Tensor]:
    ids = [torch.zeros(len(row), dtype=torch.int64) for row in rows]
    return padded(rows, ids, side, extra)[1:]


def masks_of(
    rows: list[list[int]], side: str, setting: tuple[str, bool, bool] = ("items", False, True),
    extra: int = 0,
) -> tuple[LayerMasks, Tensor]:  # fmt: skip
    tokens, valid_BL = tokens_of(rows, side, extra)
    schedule = schedule_of("IFC", *setting)
    visible_BQK = causal_visible(valid_BL, valid_BL.shape[1])
    return build_layer_masks(schedule, tokens, tokens, visible_BQK), valid_BL


def unpadded(allowed_B1LL: Tensor, valid_BL: Tensor) -> list[Tensor]:
    return [
        allowed_LL[valid_L][:, valid_L]
        for allowed_LL, valid_L in zip(allowed_B1LL[:, 0], valid_BL, strict=True)
    ]


@pytest.mark.parametrize("setting", SETTINGS)
@settings(max_examples=25, deadline=None)
@given(rows=batches, side=st.sampled_from(["left", "right"]), extra=st.integers(0, 2))
def test_allowed_is_causal_without_padding_and_never_empty(
    setting: tuple[str, bool, bool], rows: list[list[int]], side: str, extra: int
) -> None:
    masks, valid_BL = masks_of(rows, side, setting, extra)
    for layer in range(3):
        for window in (None, 2):
            allowed_BQK = masks.of_layer(layer, window)[:, 0]
            assert not allowed_BQK.triu(1).any()
            of_valid_queries = allowed_BQK & valid_BL[:, :, None]
            assert not (of_valid_queries & ~valid_BL[:, None, :]).any()
            assert allowed_BQK.any(-1).all()


@pytest.mark.parametrize("setting", SETTINGS)
@settings(max_examples=25, deadline=None)
@given(rows=batches, extra=st.integers(0, 2))
def test_padding_on_either_side_gives_the_unpadded_masks(
    setting: tuple[str, bool, bool], rows: list[list[int]], extra: int
) -> None:
    left, left_valid = masks_of(rows, "left", setting, extra)
    right, right_valid = masks_of(rows, "right", setting, extra)
    for b, row in enumerate(rows):
        alone, _ = masks_of([row], "right", setting)
        for layer in range(3):
            for window in (None, 3):
                expected = alone.of_layer(layer, window)[0, 0]
                got = unpadded(left.of_layer(layer, window), left_valid)[b]
                assert torch.equal(got, expected)
                got = unpadded(right.of_layer(layer, window), right_valid)[b]
                assert torch.equal(got, expected)


@settings(deadline=None)
@given(batches, st.integers(1, 3))
def test_masks_of_the_last_tokens_are_the_last_rows(rows: list[list[int]], num: int) -> None:
    whole, valid_BL = masks_of(rows, "right")
    tokens = whole.key
    num = min(num, valid_BL.shape[1])
    last = tokens.select(slice(valid_BL.shape[1] - num, None))
    part = build_layer_masks(whole.schedule, last, tokens, causal_visible(valid_BL, num))
    for layer in range(3):
        for window in (None, 2):
            got = part.of_layer(layer, window)
            assert torch.equal(got, whole.of_layer(layer, window)[:, :, -num:])


def test_cross_sees_self_adds_the_diagonal_and_nothing_else() -> None:
    row = [PREFIX, 0, 0, 1, 1, RESPONSE, 2, 2]
    literal, _ = masks_of([row], "right", ("items", False, True))
    seeing, _ = masks_of([row], "right", ("items", True, True))
    added = seeing.of_layer(2)[0, 0] & ~literal.of_layer(2)[0, 0]
    assert added.int().tolist() == torch.diag(torch.tensor([0, 1, 1, 1, 1, 0, 1, 1])).tolist()
    assert torch.equal(seeing.of_layer(0), literal.of_layer(0))


def test_a_first_item_without_a_prefix_sees_itself_under_cross() -> None:
    masks, _ = masks_of([[0, 0, 1]], "right")
    assert masks.of_layer(2)[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]


def test_a_sliding_window_counts_the_query_and_skips_padding() -> None:
    masks, _ = masks_of([[PREFIX, 0, 0, 1], [PREFIX, 0]], "left")
    assert masks.of_layer(1, 2)[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]
    assert masks.of_layer(1, 2)[1, 0, 2:, 2:].int().tolist() == [[1, 0], [1, 1]]


def test_a_sliding_window_measures_restarted_positions_where_positions_restart() -> None:
    # The second item stands as close to the prefix as the first: what its layer computes must not
    # depend on how many items came before.
    masks, _ = masks_of([[PREFIX, 0, 0, 1, 1]], "right", ("segments", False, True))
    assert masks.of_layer(0, 2)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_visible_of_the_wrong_shape_is_refused() -> None:
    tokens, valid_BL = tokens_of([[PREFIX, 0]], "right")
    with pytest.raises(ValueError, match=r"visible_BQK must have shape \(1, 2, 2\), got"):
        build_layer_masks(schedule_of("F"), tokens, tokens, causal_visible(valid_BL, 1))


def test_what_a_pass_shares_is_made_once() -> None:
    masks, _ = masks_of([[PREFIX, 0]], "right")
    assert masks.of_layer(0, 2) is masks.of_layer(0, 2)
    mask = masks.mask(0, None)
    assert mask.bias(torch.float32) is masks.mask(0, None).bias(torch.float32)
    assert mask.bias(torch.float32).dtype != mask.bias(torch.bfloat16).dtype
    assert mask.blocks is masks.mask(0, None).blocks
