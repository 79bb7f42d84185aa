import hashlib
import random

import polars as pl
import pytest

from hatllm.data.split import (
    in_sequence_order,
    sample_rows,
    split_sequences,
    train_interactions,
)
from hatllm.data.train_interactions import interactions_of, sequence_rows

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


def test_leave_one_out_tests_the_last_item_and_trains_on_all_before_the_last_two() -> None:
    splits = split_sequences(interactions(SMALL), "leave_one_out", 10, 1)
    assert examples(splits["train"]) == [(1, [11], 12, 200), (1, [11, 12], 13, 300)]
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
                "leave_one_out": True,
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


def triples(table: pl.DataFrame) -> list[tuple[int, int, int]]:
    return list(table.select("user_id", "item_id", "place").rows())


@pytest.mark.parametrize("protocol", ["all_prefixes", "leave_one_out"])
def test_all_before_a_users_last_two_is_train_whether_or_not_it_makes_a_row(protocol: str) -> None:
    found = train_interactions(interactions(SMALL), protocol, 2, 2)
    # User 2 has one item before its last two and no train row; user 3 has none.
    assert triples(found) == [(1, 11, 0), (1, 12, 1), (1, 13, 2), (2, 21, 0)]
    assert examples(split_sequences(interactions(SMALL), protocol, 2, 2)["train"]) == [
        (1, [11, 12], 13, 300)
    ]


def test_a_sliding_window_holds_what_stands_in_some_train_row_once() -> None:
    # Train rows (first 4 of 5): 11 12 > 13, 12 13 > 14, 21 22 > 23, 31 > 32; 15 is a test target.
    found = train_interactions(interactions(SMALL), "sliding_window", 2, 1)
    assert triples(found) == [
        (1, 11, 0), (1, 12, 1), (1, 13, 2), (1, 14, 3),
        (2, 21, 0), (2, 22, 1), (2, 23, 2), (3, 31, 0), (3, 32, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("protocol", ["sliding_window", "all_prefixes", "leave_one_out"])
@pytest.mark.parametrize("seed", range(4))
def test_train_rows_laid_together_give_the_interactions_back(protocol: str, seed: int) -> None:
    generator = random.Random(seed)
    # Few items, so that sequences repeat themselves and overlap with themselves.
    rows = [
        (generator.randrange(9), generator.randrange(3), generator.randrange(40))
        for _ in range(150)
    ]
    table = interactions(rows)
    expected = train_interactions(table, protocol, 4, 2)
    train = split_sequences(table, protocol, 4, 2)["train"]
    found = interactions_of(train)
    with_row = expected.filter(pl.col("user_id").is_in(train["user_id"].unique().implode()))
    assert triples(found) == triples(with_row)
    assert found.height > train.height > 20


def test_rows_with_gaps_count_no_item_twice_that_they_may_share() -> None:
    rows = pl.DataFrame(
        {
            "user_id": [1, 2, 1, 1],
            "history": [[1, 2, 3], [8], [3, 4, 5], [8, 9]],
            "target": [4, 9, 6, 7],
            "timestamp": [10, 5, 20, 30],
        }
    )
    # 3 4 is the end of 1 2 3 4; 8 9 follows nothing of user 1.
    assert triples(interactions_of(rows)) == [
        *((1, item, place) for place, item in enumerate([1, 2, 3, 4, 5, 6, 8, 9, 7])),
        (2, 8, 0), (2, 9, 1),
    ]  # fmt: skip


def test_a_repeated_window_is_a_new_target_every_time() -> None:
    rows = pl.DataFrame(
        {"user_id": [1] * 3, "history": [[5, 5]] * 3, "target": [5] * 3, "timestamp": [7] * 3}
    )
    assert interactions_of(rows)["item_id"].to_list() == [5] * 5


def sequence(*lengths: int) -> pl.DataFrame:
    """Users 1, 2, ... with items user * 100 + place."""
    rows = [
        (user, 100 * user + place, place)
        for user, length in enumerate(lengths, start=1)
        for place in range(length)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "place"], orient="row")


def test_a_sequence_is_cut_from_its_end_into_pieces_that_share_one_item() -> None:
    rows = sequence_rows(sequence(6, 1, 3), 2, every_position=True)
    assert list(rows.rows()) == [
        (1, [100], 101),
        (1, [101, 102], 103),
        (1, [103, 104], 105),
        (3, [300, 301], 302),
    ]


def test_a_model_that_learns_from_the_target_alone_gets_one_row_a_target() -> None:
    rows = sequence_rows(sequence(4, 2), 2, every_position=False)
    assert list(rows.rows()) == [
        (1, [100], 101),
        (1, [100, 101], 102),
        (1, [101, 102], 103),
        (2, [200], 201),
    ]


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("longest", [1, 2, 3, 7, 50])
def test_every_interaction_but_the_first_is_a_target_once(longest: int, every: bool) -> None:
    table = sequence(1, 2, 3, 7, 8, 9, 30)
    rows = sequence_rows(table, longest, every)
    lists = zip(rows["history"].to_list(), rows["target"], strict=True)
    learned = [[*(history[1:] if every else []), target] for history, target in lists]
    asked = [item for items in learned for item in items]
    assert sorted(asked) == table.filter(pl.col("place") > 0)["item_id"].to_list()
    assert rows["history"].list.len().is_between(1, longest).all()


def numbered(num_rows: int) -> pl.DataFrame:
    return pl.DataFrame({"example_id": range(num_rows), "target": range(num_rows)})


def test_a_sample_keeps_the_order_of_the_rows() -> None:
    sampled = sample_rows(numbered(1000), 100, seed=42)
    assert sampled.height == 100
    assert sampled["example_id"].is_sorted()
    assert sampled["example_id"].to_list() != list(range(100))


def test_a_smaller_sample_lies_inside_a_larger_one() -> None:
    small, large = (set(sample_rows(numbered(1000), n, seed=7)["example_id"]) for n in (50, 400))
    assert small < large


def test_the_sample_depends_on_the_seed_alone() -> None:
    one, again, other = (sample_rows(numbered(500), 20, seed)["example_id"] for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_the_sample_is_spread_evenly() -> None:
    mean = sample_rows(numbered(10_000), 2_000, seed=3)["example_id"].to_numpy().mean()
    assert abs(mean - 5_000) < 4 * 10_000 / (12 * 2_000) ** 0.5  # four standard errors


def test_no_limit_or_a_large_one_keeps_all_rows() -> None:
    assert sample_rows(numbered(10), None, seed=1).height == 10
    assert sample_rows(numbered(10), 11, seed=1).height == 10


def splitmix64(example_id: int, seed: int) -> int:
    """The same rank in plain integers."""
    limit = 2**64
    x = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little")
    x = (x + example_id * 0x9E3779B97F4A7C15) % limit
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % limit
    x = (x ^ x >> 27) * 0x94D049BB133111EB % limit
    return x ^ x >> 31


def test_the_sample_is_the_same_on_every_machine() -> None:
    lowest = sorted(range(100), key=lambda example_id: splitmix64(example_id, 42))[:5]
    sampled = sample_rows(numbered(100), 5, seed=42)["example_id"].to_list()
    assert sampled == sorted(lowest) == [19, 44, 47, 81, 88]
