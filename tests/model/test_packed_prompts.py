"""Packed prompts against padded ones, on batches made to share as much as they can."""

import pytest
import torch
from test_masked_lm import CLOSE, assert_same_gradients, gradients, with_lora
from torch import Tensor
from toys import PRESETS, Compose, schedule_of, toy_batch, toy_book, toy_lm

from hatllm.data.prompt import Batch
from hatllm.masks.schedule import Schedule, build_schedule
from hatllm.model.fast import stages
from hatllm.model.fast.packed_prompts import Packed, Segments, hidden_at
from hatllm.model.masked_lm import MaskedLM

# Histories that begin one another, equal ones, one apart, and a repeated item.
HISTORIES = [[3], [3, 25], [44, 52], [3, 25, 3, 11], [3, 25], [3, 25, 3], [44]]
TARGETS = [25, 3, 70, 20, 31, 11, 52]
PREFIX = len(toy_book().prefix)


@pytest.fixture(autouse=True, params=[stages.A_BAND, 0], ids=["one band", "a band a length"])
def price_of_a_band(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "A_BAND", request.param)


def batch_of(target_is_item: bool = True) -> Batch:
    return toy_batch(toy_book(), target_is_item, True, HISTORIES, TARGETS)


def padded_hidden(lm: MaskedLM, batch: Batch, row_M: Tensor, column_M: Tensor) -> Tensor:
    return lm.hidden_of_prompts(batch.input_ids_BL, batch.tokens, batch.valid_BL)[row_M, column_M]


def packed_hidden(lm: MaskedLM, batch: Batch, row_M: Tensor, column_M: Tensor) -> Tensor:
    return hidden_at(lm, batch, torch.from_numpy(toy_book().prefix), row_M, column_M)


def custom_schedules() -> list[Schedule]:
    return [
        schedule_of(letters, scope, target_is_item=target)
        for letters in ("IICF", "CIFI", "IIII")
        for scope in ("items", "segments")
        for target in (True, False)
    ]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", custom_schedules(), ids=repr)
def test_families_of_prompts_change_neither_states_nor_gradients(
    schedule: Schedule, backend: str
) -> None:
    lm, batch = toy_lm(schedule, backend), batch_of(schedule.target_is_item)
    with_lora(lm)
    asked = batch.target_row_T, batch.target_column_T
    plain, expected = gradients(lm, lambda: padded_hidden(lm, batch, *asked))
    packed, got = gradients(lm, lambda: packed_hidden(lm, batch, *asked))
    torch.testing.assert_close(packed, plain, **CLOSE)
    assert_same_gradients(got, expected)


@pytest.mark.thin()
@torch.no_grad()
@pytest.mark.parametrize("name", PRESETS)
def test_every_token_that_may_be_asked_for_is_right_alone_and_together(
    name: str, compose_config: Compose
) -> None:
    words = ["mask=custom", "mask.layers=ICFI"] if name == "custom" else [f"mask={name}"]
    schedule = build_schedule(compose_config(*words).mask, 4)
    lm, batch = toy_lm(schedule), batch_of()
    row_M, column_M = batch.valid_BL.nonzero(as_tuple=True)
    own = column_M >= PREFIX
    row_M, column_M = row_M[own], column_M[own]
    expected_MD = padded_hidden(lm, batch, row_M, column_M)
    torch.testing.assert_close(packed_hidden(lm, batch, row_M, column_M), expected_MD, **CLOSE)
    generator = torch.Generator().manual_seed(2)
    for size in (1, 2, 5):
        chosen = torch.randperm(len(row_M), generator=generator)[:size]
        got = packed_hidden(lm, batch, row_M[chosen], column_M[chosen])
        torch.testing.assert_close(got, expected_MD[chosen], **CLOSE)


def tokens_by_hand(batch: Batch, last: list[int]) -> int:
    """Different histories that no other begins with, and every prompt's own end, token by token."""
    book = toy_book()
    row_of = {int(item): row for row, item in enumerate(book.item_id_I)}
    history_tokens = {
        tuple(h): sum(len(book.history_item[row_of[item]]) for item in h) for h in HISTORIES
    }
    hosts = [
        h for h in history_tokens
        if not any(other != h and other[: len(h)] == h for other in history_tokens)
    ]  # fmt: skip
    own = sum(
        end + 1 - PREFIX - history_tokens[tuple(h)] for h, end in zip(HISTORIES, last, strict=True)
    )
    return sum(history_tokens[h] for h in hosts) + own


def test_no_token_runs_twice_and_none_after_the_last_one_asked_for() -> None:
    batch = batch_of()
    for beyond in (0, 2):
        last_B = batch.prompt_length_B - 1 + beyond
        packed = Packed.in_families(batch, PREFIX, last_B, width=32)
        assert len(packed.ids_T) == tokens_by_hand(batch, last_B.tolist())
    assert packed.valid_YQ.shape[0] == 2  # the families of 3 and of 44, 52


def test_a_prompt_that_nothing_is_asked_of_does_not_run_unless_another_needs_it() -> None:
    batch = batch_of()
    last_B = torch.full_like(batch.prompt_length_B, -1)
    last_B[1] = batch.prompt_length_B[1] - 1  # [3, 25], a guest of [3, 25, 3, 11]
    packed = Packed.in_families(batch, PREFIX, last_B, width=32)
    assert len(packed.ids_T) == int(last_B[1]) + 1 - PREFIX


def test_a_family_that_would_pad_all_others_is_not_made() -> None:
    # Twenty prompts of one history beside twenty short ones: all rows would be as long as all
    # titles of the first together.
    histories = [[3, 25, 31, 3, 25]] * 20 + [[10], [11], [44], [52], [70]] * 4
    targets = [20, 31, 44, 52] * 10
    batch = toy_batch(toy_book(), True, True, histories, targets)
    last_B = batch.valid_BL.sum(1) - 1
    assert Packed.in_families(batch, PREFIX, last_B, width=1).valid_YQ.shape[0] == 40
    assert Packed.in_families(batch, PREFIX, last_B, width=4096).valid_YQ.shape[0] == 6


def test_each_different_segment_runs_once_in_segment_layers() -> None:
    batch = batch_of()
    last_B = batch.valid_BL.sum(1) - 1
    segments = Segments.of(Packed.in_families(batch, PREFIX, last_B, width=32))
    book = toy_book()
    row_of = {int(item): row for row, item in enumerate(book.item_id_I)}
    different = {tuple(book.response.tolist())}
    different |= {tuple(book.history_item[row_of[i]].tolist()) for h in HISTORIES for i in h}
    different |= {tuple(book.target[row_of[i]][:-1].tolist()) for i in TARGETS}
    got = [tuple(ids[ids >= 0].tolist()) for ids in segments.ids_SL]
    assert sorted(got) == sorted(different)
