import random

import polars as pl
import pytest

from hatllm.data.split import in_sequence_order, split_sequences

Interaction = tuple[int, int, int]  # user, item, time
Example = tuple[int, list[int], int, int]  # user, history, target, time


def interactions(rows: list[Interaction]) -> pl.DataFrame:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64}
    return in_sequence_order(pl.DataFrame(rows, schema=schema, orient="row"))


def examples(split: pl.DataFrame) -> list[Example]:
    return list(split.select("user_id", "history", "target", "timestamp").rows())


# User 1 has five items, user 2 three, user 3 two.
SMALL = [
    (1, 11, 100), (1, 12, 200), (2, 21, 150), (1, 13, 300), (2, 22, 250),
    (3, 31, 400), (1, 14, 400), (2, 23, 500), (3, 32, 600), (1, 15, 700),
]  # fmt: skip


def test_sliding_window_cuts_windows_by_target_time_eight_to_one_to_one() -> None:
    splits = split_sequences(interactions(SMALL), "sliding_window", 2, 1)
    # Windows of 3: user 1 ends at 300, 400, 700; user 2 at 500; user 3 is short, one window at 600.
    expected = [
        (1, [11, 12], 13, 300),
        (1, [12, 13], 14, 400),
        (2, [21, 22], 23, 500),
        (3, [31], 32, 600),
        (1, [13, 14], 15, 700),
    ]
    assert examples(splits["train"]) == expected[:4]  # floor(0.8 x 5) = 4
    assert examples(splits["valid"]) == []  # floor(0.9 x 5) = 4
    assert examples(splits["test"]) == expected[4:]


def test_sliding_window_leaves_out_users_shorter_than_the_shortest_history() -> None:
    splits = split_sequences(interactions(SMALL), "sliding_window", 2, 2)
    users = [row[0] for split in splits.values() for row in examples(split)]
    assert users == [1, 1, 2, 1]


def test_all_prefixes_makes_every_prefix_an_example() -> None:
    splits = split_sequences(interactions(SMALL), "all_prefixes", 3, 1)
    assert examples(splits["train"]) == [(1, [11], 12, 200), (1, [11, 12], 13, 300)]
    assert examples(splits["valid"]) == [(1, [11, 12, 13], 14, 400), (2, [21], 22, 250)]
    assert examples(splits["test"]) == [
        (1, [12, 13, 14], 15, 700),
        (2, [21, 22], 23, 500),
        (3, [31], 32, 600),
    ]


def test_leave_one_out_gives_one_example_of_each_split_a_user() -> None:
    splits = split_sequences(interactions(SMALL), "leave_one_out", 10, 1)
    assert examples(splits["train"]) == [(1, [11, 12], 13, 300)]
    assert examples(splits["valid"]) == [(1, [11, 12, 13], 14, 400), (2, [21], 22, 250)]
    assert examples(splits["test"]) == [
        (1, [11, 12, 13, 14], 15, 700),
        (2, [21, 22], 23, 500),
        (3, [31], 32, 600),
    ]


def test_items_of_one_time_keep_the_order_of_the_file() -> None:
    rows = [(1, 30, 5), (1, 10, 5), (1, 20, 5), (1, 40, 1)]
    splits = split_sequences(interactions(rows), "leave_one_out", 10, 3)
    assert examples(splits["test"]) == [(1, [40, 30, 10], 20, 5)]


def test_windows_of_one_time_keep_the_order_of_users() -> None:
    rows = [(user, item, 7) for user in (3, 1, 2) for item in (1, 2)]
    splits = split_sequences(interactions(rows), "sliding_window", 5, 1)
    assert [row[0] for split in splits.values() for row in examples(split)] == [1, 2, 3]


def test_a_repeated_item_stays_in_the_history() -> None:
    rows = [(1, 5, 1), (1, 5, 2), (1, 5, 3)]
    splits = split_sequences(interactions(rows), "leave_one_out", 10, 1)
    assert examples(splits["test"]) == [(1, [5, 5], 5, 3)]


@pytest.mark.parametrize("protocol", ["sliding_window", "all_prefixes", "leave_one_out"])
def test_example_ids_count_through_train_valid_and_test(protocol: str) -> None:
    splits = split_sequences(interactions(SMALL), protocol, 2, 1)
    ids = [i for name in ("train", "valid", "test") for i in splits[name]["example_id"]]
    assert ids == list(range(len(ids)))


def slow_examples(
    rows: list[Interaction], protocol: str, longest: int, shortest: int
) -> list[Example]:
    """Every example of one protocol in the order of users, by plain loops."""
    found: list[Example] = []
    for user in sorted({row[0] for row in rows}):
        own = sorted((row for row in rows if row[0] == user), key=lambda row: row[2])
        items = [row[1] for row in own]
        for end in range(len(items)):
            history = items[max(0, end - longest) : end]
            last = end == len(items) - 1
            wanted = {
                "sliding_window": len(history) == longest or (last and end < longest),
                "all_prefixes": True,
                "leave_one_out": end >= len(items) - 3,
            }
            if len(history) >= shortest and wanted[protocol]:
                found.append((user, history, items[end], own[end][2]))
    return found


@pytest.mark.parametrize("protocol", ["sliding_window", "all_prefixes", "leave_one_out"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_examples_equal_those_of_plain_loops(protocol: str, seed: int) -> None:
    generator = random.Random(seed)
    rows = [
        (generator.randrange(12), generator.randrange(30), generator.randrange(8))
        for _ in range(120)
    ]
    splits = split_sequences(interactions(rows), protocol, 4, 2)
    found = [row for name in ("train", "valid", "test") for row in examples(splits[name])]
    expected = slow_examples(rows, protocol, 4, 2)
    if protocol == "sliding_window":
        assert found == sorted(expected, key=lambda row: row[3])
    assert sorted(found) == sorted(expected)


def test_an_unknown_protocol_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"data\.protocol='random'"):
        split_sequences(interactions(SMALL), "random", 2, 1)
