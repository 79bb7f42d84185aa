import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hatllm.data.prepare import Dataset, prepare_dataset
from hatllm.data.sources.windows import hold_out

from .settings import data_config

TITLES = {"1": "one", "2": "two", "3": "three", "4": "", "5": "five &amp; six"}
HEADER = "user_id,item_ids,timestamp\n"


def write_windows(folder: Path, splits: dict[str, list[tuple[int, list[int], int]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        lines = [f'{user},"{item_ids}",{time}\n' for user, item_ids, time in rows]
        (folder / f"{name}.csv").write_text(HEADER + "".join(lines))
    (folder / "id2name4Rec.json").write_text(json.dumps(TITLES))


def prepare(tmp_path: Path, **overrides: Any) -> Dataset:
    settings = {
        "name": "mine",
        "source": "windows",
        "clean_titles": False,
        "max_history_items": 3,
        "min_history_items": 2,
    }
    config = data_config(**settings | overrides)
    return prepare_dataset(config, tmp_path, tmp_path / "cache")


def rows(split: pl.DataFrame) -> list[tuple[Any, ...]]:
    return split.select("user_id", "history", "target", "timestamp").rows()


def test_windows_become_examples_in_file_order(tmp_path: Path) -> None:
    write_windows(
        tmp_path / "mine",
        {
            "train": [(7, [1, 2, 3], 50), (8, [3, 2, 1, 5, 3], 40)],
            "valid": [(7, [2, 3, 1], 60)],
            "test": [(9, [3, 1, 2], 70)],
        },
    )
    dataset = prepare(tmp_path)
    assert rows(dataset.splits["train"]) == [(7, [1, 2], 3, 50), (8, [2, 1, 5], 3, 40)]
    assert rows(dataset.splits["valid"]) == [(7, [2, 3], 1, 60)]
    assert rows(dataset.splits["test"]) == [(9, [3, 1], 2, 70)]
    assert dataset.splits["test"]["example_id"].to_list() == [3]
    assert dataset.items["title"].to_list() == ["one", "two", "three", "five &amp; six"]
    assert dataset.users.rows() == [(7, "7"), (8, "8"), (9, "9")]
    assert dataset.manifest["protocol"] == "windows"
    assert dataset.manifest["holdout"] is None


def test_unusable_windows_are_dropped_and_counted(tmp_path: Path) -> None:
    write_windows(
        tmp_path / "mine",
        {
            "train": [(1, [1, 2, 3], 5), (1, [1, 2, 9], 6), (2, [4, 2, 1], 7), (3, [1, 2], 8)],
            "valid": [(1, [1, 2, 3], 9)],
            "test": [(1, [1, 2, 3], 9)],
        },
    )
    with (tmp_path / "mine" / "train.csv").open("a") as file:
        file.write('5,"[1, 2, x]",9\nfive,"[1, 2, 3]",9\n5,"[1, 2, 3]",soon\n')
    dataset = prepare(tmp_path)
    assert rows(dataset.splits["train"]) == [(1, [1, 2], 3, 5)]
    counts = {reason: entry["count"] for reason, entry in dataset.manifest["bad_rows"].items()}
    assert counts == {
        "unreadable row of train.csv": 2,
        "bad timestamp in train.csv": 1,
        "train window with fewer than 2 history items": 1,
        "train window with an unknown item": 1,
        "train window with an untitled item": 1,
        "item without a title": 1,
    }
    unknown = dataset.manifest["bad_rows"]["train window with an unknown item"]
    assert unknown["samples"] == ["user_id=1, item_ids=[1, 2, 9], timestamp=6"]


def test_the_newest_tenth_of_train_is_valid_where_there_is_none(tmp_path: Path) -> None:
    train = [(user, [1, 2, 3], 100 - user) for user in range(20)]  # newest first
    write_windows(tmp_path / "mine", {"train": train, "test": [(1, [1, 2, 3], 200)]})
    dataset = prepare(tmp_path, holdout_fraction=0.1)
    assert dataset.splits["valid"]["timestamp"].to_list() == [100, 99]
    assert dataset.splits["train"]["timestamp"].to_list() == list(range(98, 80, -1))
    assert dataset.full_train.height == 18
    assert "newest 0.1 of train (2 of 20 rows) is valid" in dataset.manifest["holdout"]


def test_in_time_order_the_last_rows_are_held_out_even_among_ties() -> None:
    train = pl.DataFrame({"user_id": [1, 2, 3, 4], "timestamp": [5, 6, 6, 6]})
    kept, held_out, _ = hold_out(train, 0.5)
    assert kept["user_id"].to_list() == [1, 2]
    assert held_out["user_id"].to_list() == [3, 4]


def test_windows_that_stand_there_again_are_kept_and_noted(tmp_path: Path) -> None:
    # User 4721 of the published Books took one item 13 times: windows of stride 1 are equal.
    train = [(1, [2, 2, 2], 5), (1, [2, 2, 2], 5), (2, [1, 2, 3], 5)]
    test = [(1, [1, 2, 3], 9)]
    write_windows(tmp_path / "mine", {"train": train, "valid": test, "test": test})
    dataset = prepare(tmp_path)
    assert dataset.splits["train"].height == 3
    note = "1 train windows stand there again and are kept (as published)"
    assert dataset.manifest["notes"][-1] == note


def test_each_interaction_of_overlapping_windows_is_counted_once(tmp_path: Path) -> None:
    train = [(7, [1, 2, 3], 50), (8, [5, 5, 1], 51), (7, [2, 3, 1], 52), (7, [3, 1, 1], 53)]
    test = [(7, [1, 1, 5], 60)]
    write_windows(tmp_path / "mine", {"train": train, "valid": test, "test": test})
    found = prepare(tmp_path).train_interactions
    assert found.rows() == [
        (7, 1, 0), (7, 2, 1), (7, 3, 2), (7, 1, 3), (7, 1, 4),
        (8, 5, 0), (8, 5, 1), (8, 1, 2),
    ]  # fmt: skip


def test_another_train_file_can_be_named(tmp_path: Path) -> None:
    write_windows(
        tmp_path / "mine",
        {
            "train": [(1, [1, 2, 3], 5)] * 4,
            "train_2": [(2, [1, 2, 3], 5)] * 2,
            "test": [(1, [1, 2, 3], 9)],
        },
    )
    dataset = prepare(tmp_path, train_file="train_2.csv", folder="mine", name="other")
    assert dataset.splits["train"]["user_id"].to_list() == [2, 2]
    assert dataset.name == "other"


def test_without_data_root_the_message_says_what_belongs_there(tmp_path: Path) -> None:
    config = data_config(name="mine", source="windows")
    with pytest.raises(ValueError, match=r"data_root=null must name .* mine/ with train\.csv"):
        prepare_dataset(config, None, tmp_path)


def test_a_missing_file_is_named_with_the_folder(tmp_path: Path) -> None:
    write_windows(tmp_path / "mine", {"train": [(1, [1, 2, 3], 5)]})
    with pytest.raises(ValueError, match=r"mine lacks test\.csv") as caught:
        prepare(tmp_path)
    assert f"data_root={str(tmp_path)!r}" in str(caught.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_windows(tmp_path / "mine", {"train": [], "test": []})
    (tmp_path / "mine" / "train.csv").write_text("user,item_ids,timestamp\n")
    with pytest.raises(ValueError, match="no column 'user_id', only user, item_ids, timestamp"):
        prepare(tmp_path)


def test_titles_that_are_no_object_are_refused(tmp_path: Path) -> None:
    write_windows(tmp_path / "mine", {"train": [], "test": []})
    (tmp_path / "mine" / "id2name4Rec.json").write_text('["one"]')
    with pytest.raises(ValueError, match="must be a JSON object of item id -> title"):
        prepare(tmp_path)
