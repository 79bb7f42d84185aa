from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from torch.utils.data import DataLoader
from toys import PROMPT, TITLES, Compose, toy_batch, toy_book, toy_frame

from hatllm.data.datamodule import Examples, MicroBatches

NUM_ROWS, GLOBAL = 37, 8  # 4 whole steps an epoch, 5 rows sit out
LENGTHS = np.random.default_rng(0).integers(20, 90, NUM_ROWS)


def steps_of(
    micro: int, world_size: int, steps_done: int = 0, seed: int = 1
) -> list[list[list[list[int]]]]:
    """One epoch as every process sees it: process, step, micro-batch, rows."""
    ranks = []
    for rank in range(world_size):
        sampler = MicroBatches(LENGTHS, GLOBAL, micro, rank, world_size, seed, lambda: steps_done)
        chunks = list(sampler)
        a = sampler.accumulation
        ranks.append([chunks[start : start + a] for start in range(0, len(chunks), a)])
    return ranks


def rows_of_steps(*args: int, **kwargs: int) -> list[list[int]]:
    ranks = steps_of(*args, **kwargs)
    return [
        sorted(row for chunks in step for chunk in chunks for row in chunk)
        for step in zip(*ranks, strict=True)
    ]


SHAPES = [(m, w) for w in (1, 2, 4) for m in (1, 2, 4, 8) if m * w <= GLOBAL]


@pytest.mark.parametrize(("micro", "world_size"), SHAPES)
def test_an_optimizer_step_has_the_same_rows_on_any_number_of_processes(
    micro: int, world_size: int
) -> None:
    assert rows_of_steps(micro, world_size) == rows_of_steps(GLOBAL, 1)


@pytest.mark.parametrize(("micro", "world_size"), SHAPES)
def test_every_process_does_the_same_number_of_full_micro_batches(
    micro: int, world_size: int
) -> None:
    for process in steps_of(micro, world_size):
        assert [len(chunks) for chunks in process] == [GLOBAL // (micro * world_size)] * 4
        assert {len(chunk) for chunks in process for chunk in chunks} == {micro}


def test_users_stay_together_and_are_shuffled() -> None:
    user_G = np.repeat([5, 3, 9, 1, 7], [4, 12, 2, 16, 3])
    orders = []
    for seed in (1, 2):
        sampler = MicroBatches(LENGTHS, GLOBAL, 4, 0, 1, seed, lambda: 0, user_G)
        rows = [row for chunk in sampler for row in chunk]
        users = user_G[rows]
        assert len(set(rows)) == NUM_ROWS // GLOBAL * GLOBAL
        # Each user's rows side by side, in their own order; one may be cut where the epoch begins.
        assert (np.diff(users) != 0).sum() + 1 <= len(set(users)) + 1
        whole = [(np.diff(np.array(rows)[users == user]) == 1).all() for user in set(users)]
        assert sum(whole) >= len(whole) - 1
        orders.append(rows)
    assert orders[0] != orders[1]


def test_a_process_takes_its_whole_share_where_that_is_less_than_a_micro_batch(
    compose_config: Compose,
) -> None:
    words = ["trainer.global_batch_size=8", "trainer.micro_batch_size=8"]
    assert compose_config(*words).trainer.rows_a_pass == 8
    assert compose_config(*words, "trainer=ddp", "trainer.devices=2").trainer.rows_a_pass == 4


def test_an_epoch_holds_each_row_at_most_once_and_whole_steps_only() -> None:
    rows = [row for step in rows_of_steps(2, 2) for row in step]
    assert len(rows) == len(set(rows)) == NUM_ROWS // GLOBAL * GLOBAL
    assert set(rows) <= set(range(NUM_ROWS))


@pytest.mark.parametrize(("micro", "world_size"), [(2, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("step", range(9))
def test_resuming_from_a_step_goes_on_with_exactly_the_rest(
    micro: int, world_size: int, step: int
) -> None:
    epoch_start = step // 4 * 4
    whole = steps_of(micro, world_size, epoch_start)
    rest = steps_of(micro, world_size, step)
    for process, resumed in zip(whole, rest, strict=True):
        assert resumed == process[step - epoch_start :]


def test_where_to_begin_is_asked_when_an_epoch_starts() -> None:
    done = [0]
    sampler = MicroBatches(LENGTHS, GLOBAL, 4, 0, 1, 1, lambda: done[0])
    epochs = []
    for epoch in range(3):
        done[0] = 4 * epoch
        epochs.append(list(sampler))
    for before, after in pairwise(epochs):
        assert before != after
        assert {row for chunk in before for row in chunk} != {row for c in after for row in c}


def test_epochs_and_seeds_draw_other_orders_and_the_same_seed_the_same() -> None:
    assert rows_of_steps(2, 1) == rows_of_steps(2, 1)
    assert rows_of_steps(2, 1) != rows_of_steps(2, 1, seed=2)
    assert rows_of_steps(2, 1) != rows_of_steps(2, 1, steps_done=4)


def test_neighbours_in_length_share_a_micro_batch() -> None:
    for process in steps_of(2, 1):
        for chunks in process:
            lengths = [LENGTHS[row] for chunk in chunks for row in chunk]
            assert lengths == sorted(lengths)


@pytest.mark.parametrize("num_rows", [0, 7])
def test_too_few_rows_is_an_error_that_names_the_setting(num_rows: int) -> None:
    with pytest.raises(
        ValueError, match=rf"trainer.global_batch_size=8 must be at most {num_rows}"
    ):
        MicroBatches(LENGTHS[:num_rows], GLOBAL, 2, 0, 1, 1, lambda: 0)


def test_as_many_rows_as_one_step_are_enough() -> None:
    sampler = MicroBatches(LENGTHS[:GLOBAL], GLOBAL, 4, 0, 1, 1, lambda: 0)
    assert len(sampler) == len(list(sampler)) == 2


def test_a_loader_yields_the_planned_batches_as_prompts() -> None:
    book = toy_book()
    histories, targets = [[3, 10], [44], [11, 25, 52], [70]] * 2, [20, 3, 44, 52] * 2
    examples = Examples.of(toy_frame(histories, targets), 10)
    sampler = MicroBatches(examples.prompt_lengths(book, True), GLOBAL, 4, 0, 1, 1, lambda: 0)
    loader = DataLoader(
        range(8), batch_sampler=sampler,
        collate_fn=lambda rows: examples.batch(book, np.asarray(rows), True, True),
    )  # fmt: skip
    batches = list(loader)
    seen = sorted(int(i) for batch in batches for i in batch.example_id_B)
    assert seen == examples.example_id_G.tolist()


def test_prompt_lengths_are_the_valid_tokens_of_the_batch() -> None:
    book, frame = toy_book(), toy_frame()
    examples = Examples.of(frame, 10)
    for with_target in (False, True):
        batch = toy_batch(book, True, with_target)
        lengths = examples.prompt_lengths(book, with_target)
        assert lengths.tolist() == batch.valid_BL.sum(1).tolist()


def test_a_history_keeps_its_newest_items() -> None:
    examples = Examples.of(toy_frame([[3, 10, 11, 20], [44]], [25, 25]), 2)
    assert [history.tolist() for history in examples.histories] == [[11, 20], [44]]
    assert len(examples) == 2


def test_an_empty_split_has_no_lengths() -> None:
    frame = toy_frame([], []).cast({"example_id": pl.Int64, "target": pl.Int64})
    lengths = Examples.of(frame, 5).prompt_lengths(toy_book(), True)
    assert lengths.tolist() == []


def test_toy_titles_fit_the_toy_prompt() -> None:
    assert all("{title}" in text for text in (PROMPT.history_item, PROMPT.target))
    assert len(set(TITLES.values())) == len(TITLES) - 1
