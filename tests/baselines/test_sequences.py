"""What the models learn from, against rows written out."""

import polars as pl
import pytest
import torch
from few_items import IDS, ITEMS, NUM_ITEMS, cycle

from hatllm.baselines.sequences import sequences_of, training_states

ROWS = pl.DataFrame({"history": [[5, 8, 5, 11], [14]], "target": [17, 5]})
ID_ARRAY = ITEMS["item_id"].to_numpy()


def test_rows_are_numbers_padded_on_the_right() -> None:
    found = sequences_of(ROWS, ID_ARRAY, 5)
    pad = NUM_ITEMS
    assert found.history_GL.tolist() == [[0, 1, 0, 2, pad], [3, pad, pad, pad, pad]]
    assert found.length_G.tolist() == [4, 1]
    assert found.target_G.tolist() == [4, 0]


def test_long_histories_keep_their_newest_items() -> None:
    found = sequences_of(ROWS, ID_ARRAY, 2)
    assert found.history_GL.tolist() == [[0, 2], [3, NUM_ITEMS]]


def test_the_newest_of_rows_are_those_that_a_shorter_reading_has() -> None:
    whole = sequences_of(ROWS, ID_ARRAY, 5)
    for longest in (1, 2, 3, 7):
        found, expected = whole.newest(longest), sequences_of(ROWS, ID_ARRAY, longest)
        assert found.history_GL.tolist() == expected.history_GL.tolist()
        assert found.length_G.tolist() == expected.length_G.tolist()
    last = whole.cut(slice(1, 2))
    assert (len(last), last.target_G.tolist(), last.history_GL[0, 0].item()) == (1, [0], 3)


@pytest.mark.parametrize(
    ("every", "states", "targets"),
    [(False, [[3], [10]], [4, 0]), (True, [[0], [1], [2], [3], [10]], [1, 0, 2, 4, 0])],
)
def test_every_position_learns_the_item_after_it(
    every: bool, states: list[list[int]], targets: list[int]
) -> None:
    rows = sequences_of(ROWS, ID_ARRAY, 5)
    hidden_BLD = torch.stack([torch.arange(5), 10 + torch.arange(5)])[:, :, None]
    found = training_states(hidden_BLD, rows.history_GL, rows.length_G, rows.target_G, every)
    assert (found[0].tolist(), found[1].tolist()) == (states, targets)


def test_an_empty_history_is_refused() -> None:
    empty = pl.DataFrame(
        {"history": [[], [5]], "target": [5, 5]}, schema_overrides={"history": pl.List(pl.Int64)}
    )
    with pytest.raises(ValueError, match="must hold at least one item"):
        sequences_of(empty, ID_ARRAY, 3)


def test_the_cycle_of_the_tests_is_a_cycle() -> None:
    row = cycle().row(3, named=True)
    assert row["history"] == IDS[3:7] and row["target"] == IDS[7]
