import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hatllm.data.prepare import Dataset, prepare_dataset

from .settings import data_config
from .test_amazon import write_lines
from .test_ready import write_ready

# Film 3 has no title; users 1 and 2 have four titled films each, user 3 only one.
HISTORIES = {1: [1, 2, 3, 4, 5], 2: [5, 4, 2, 1], 3: [1, 3]}
TITLES = {1: "One &amp; all", 2: "Two", 3: None, 4: "Four", 5: "Five"}


def interactions() -> pl.DataFrame:
    rows = [
        (user, item, 10 * user + place)
        for user, items in HISTORIES.items()
        for place, item in enumerate(items)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def items() -> pl.DataFrame:
    return pl.DataFrame({"item_id": TITLES.keys(), "title": TITLES.values()})


def ready_config(**overrides: Any) -> Any:
    settings = {"name": "films", "source": "amazon", "release": "2014", "category": "Films"}
    settings |= {"min_interactions": 2, "min_history_items": 1, "max_history_items": 2}
    return data_config(**settings | overrides)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ready(tmp_path / "films", interactions(), items())
    return tmp_path


def prepare(root: Path, **overrides: Any) -> Dataset:
    return prepare_dataset(ready_config(**overrides), root, root / "cache")


def rows(split: pl.DataFrame) -> list[tuple[Any, ...]]:
    return split.select("user_id", "history", "target", "timestamp").rows()


def test_ready_tables_become_examples(root: Path) -> None:
    dataset = prepare(root)
    assert rows(dataset.splits["train"]) == [(1, [1], 2, 11), (2, [5], 4, 21)]
    assert rows(dataset.splits["valid"]) == [(1, [1, 2], 4, 13), (2, [5, 4], 2, 22)]
    assert rows(dataset.splits["test"]) == [(1, [2, 4], 5, 14), (2, [4, 2], 1, 23)]
    assert dataset.items.rows() == [
        (1, "One & all", "1"),
        (2, "Two", "2"),
        (4, "Four", "4"),
        (5, "Five", "5"),
    ]
    assert dataset.users.rows() == [(1, "1"), (2, "2")]


def test_the_manifest_says_what_was_kept_and_why(root: Path) -> None:
    manifest = prepare(root).manifest
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["steps"] == [
        {"step": "read", "interactions": 11, "users": 3, "items": 5},
        {"step": "with a title", "interactions": 9, "users": 3, "items": 4},
        {"step": "2-core", "interactions": 8, "users": 2, "items": 4},
    ]
    counts = {reason: entry["count"] for reason, entry in manifest["bad_rows"].items()}
    assert counts == {"item without a title": 1, "interaction with an untitled item": 2}
    assert manifest["rows"]["test"] == {"before_sampling": 2, "after_sampling": 2}
    assert manifest["protocol"] == "leave_one_out"
    assert manifest["settings"]["min_interactions"] == 2
    assert str(root) not in json.dumps(manifest)  # results are compared between machines


def test_every_split_has_the_documented_columns(root: Path) -> None:
    for split in prepare(root).splits.values():
        assert split.schema == {
            "example_id": pl.Int64,
            "user_id": pl.Int64,
            "history": pl.List(pl.Int64),
            "target": pl.Int64,
            "timestamp": pl.Int64,
        }


def same_tables(one: Dataset, two: Dataset) -> bool:
    return (
        one.items.equals(two.items)
        and one.users.equals(two.users)
        and all(one.splits[name].equals(two.splits[name]) for name in one.splits)
    )


def test_a_second_call_reads_the_cache(root: Path) -> None:
    first, second = prepare(root), prepare(root)
    assert (first.manifest["cached"], second.manifest["cached"]) == (False, True)
    assert same_tables(first, second)
    volatile = ("timings", "peak_memory_mb", "cached")
    left, right = (
        {key: value for key, value in dataset.manifest.items() if key not in volatile}
        for dataset in (first, second)
    )
    assert left == right


def test_sampling_and_prompts_do_not_rebuild_the_tables(root: Path) -> None:
    full, sampled = prepare(root), prepare(root, test_rows=1, train_rows=1)
    assert sampled.manifest["cached"]
    assert sampled.splits["test"].height == 1
    assert sampled.splits["test"]["example_id"][0] in full.splits["test"]["example_id"]
    assert sampled.full_train.equals(full.splits["train"])
    assert sampled.manifest["rows"]["train"] == {"before_sampling": 2, "after_sampling": 1}
    assert sampled.manifest["data_hash"] == full.manifest["data_hash"]
    assert sampled.manifest["split_hash"] != full.manifest["split_hash"]
    assert sampled.manifest["split_hashes"]["valid"] == full.manifest["split_hashes"]["valid"]


def test_other_settings_or_source_files_rebuild_the_tables(root: Path) -> None:
    first = prepare(root)
    assert not prepare(root, max_history_items=1).manifest["cached"]
    titled = items().with_columns(pl.col("title").fill_null("Three"))
    write_ready(root / "films", interactions(), titled)
    changed = prepare(root)
    assert not changed.manifest["cached"]
    assert changed.manifest["data_hash"] != first.manifest["data_hash"]


@pytest.mark.parametrize("damaged", ["train.parquet", "manifest.json"])
def test_a_damaged_cache_is_built_anew(root: Path, damaged: str) -> None:
    first = prepare(root)
    (path,) = (root / "cache" / "prepared").glob(f"*/{damaged}")
    path.write_bytes(path.read_bytes()[:10])
    again = prepare(root)
    assert not again.manifest["cached"]
    assert same_tables(first, again)
    assert prepare(root).manifest["cached"]


def test_nothing_but_finished_tables_stays_in_the_cache(root: Path) -> None:
    prepare(root)
    names = [path.name for path in (root / "cache" / "prepared").iterdir()]
    assert sorted(name.partition(".")[2] for name in names) == ["", "lock"]


def test_published_files_give_the_same_data_as_ready_tables(root: Path) -> None:
    # Published files stand in the order of items; users count by first appearance there.
    by_item = interactions().sort("item_id", "user_id").rows()
    reviews = [
        json.dumps({"reviewerID": f"U{user}", "asin": f"A{item}", "unixReviewTime": time})
        for user, item, time in by_item
    ]
    metadata = [
        repr({"asin": f"A{item}"} | ({"title": t} if t else {})) for item, t in TITLES.items()
    ]
    (root / "raw").mkdir()
    write_lines(root / "raw" / "reviews_Films_5.json.gz", reviews)
    write_lines(root / "raw" / "meta_Films.json.gz", metadata)
    raw, ready = prepare(root, name="raw"), prepare(root)
    assert raw.items["source_id"].to_list() == ["A1", "A2", "A4", "A5"]
    assert raw.items.drop("source_id").equals(ready.items.drop("source_id"))
    assert same_splits(raw, ready)


def same_splits(one: Dataset, two: Dataset) -> bool:
    return all(one.splits[name].equals(two.splits[name]) for name in one.splits)


def test_custom_tables_give_the_same_splits_as_ready_tables(root: Path) -> None:
    interactions().write_csv(root / "seen.csv")
    items().write_ndjson(root / "films.jsonl")
    custom = prepare(
        root, source="custom", interactions_file="seen.csv", items_file="films.jsonl", name="mine"
    )
    assert same_splits(custom, prepare(root))


def test_ready_tables_of_another_release_are_noted(root: Path) -> None:
    notes = prepare(root, release="2018").manifest["notes"]
    assert notes == [
        "ready tables were used; data.release=2018 was not looked at",
        "times before 1990: 11, the earliest on 1970-01-01",
    ]


def test_settings_that_leave_no_example_are_refused_with_the_counts(root: Path) -> None:
    with pytest.raises(ValueError) as caught:
        prepare(root, min_interactions=5)
    message = str(caught.value)
    assert "data=films leaves no example" in message
    assert "5-core: 0 interactions" in message
    assert "Lower data.min_interactions=5" in message


def test_rows_that_stand_there_twice_are_dropped_and_counted(root: Path) -> None:
    once = prepare(root)
    twice = pl.concat([interactions(), interactions()])
    write_ready(root / "twice", twice, items())
    made = prepare(root, name="twice")
    assert same_tables(once, made)
    assert made.train_interactions.equals(once.train_interactions)
    assert made.manifest["data_hash"] == once.manifest["data_hash"]
    repeated = made.manifest["bad_rows"]["interaction that stands there twice"]
    assert repeated["count"] == 11
    assert repeated["samples"][0] == "user_id=1, item_id=1, timestamp=10"
    assert [step["interactions"] for step in made.manifest["steps"]] == [22, 11, 9, 8]


def test_the_same_item_at_another_time_stays(root: Path) -> None:
    later = interactions().with_columns(pl.col("timestamp") + 1000)
    write_ready(root / "again", pl.concat([interactions(), later]), items())
    made = prepare(root, name="again")
    assert "interaction that stands there twice" not in made.manifest["bad_rows"]
    assert made.manifest["steps"][0]["interactions"] == 22


def test_train_interactions_do_not_depend_on_sampling(root: Path) -> None:
    full, sampled = prepare(root), prepare(root, train_rows=1)
    expected = [(1, 1, 0), (1, 2, 1), (2, 5, 0), (2, 4, 1)]
    assert full.train_interactions.rows() == expected
    assert sampled.train_interactions.rows() == expected
    assert sampled.manifest["cached"]


def test_other_train_interactions_are_other_data_even_where_the_rows_are_the_same(
    root: Path,
) -> None:
    # A user too short for any row has a train interaction all the same.
    later = interactions().with_columns(pl.col("timestamp") + 1000)
    short = pl.DataFrame({"user_id": [9] * 3, "item_id": [1, 2, 4], "timestamp": [1, 2, 3]})
    write_ready(root / "films", pl.concat([interactions(), later]), items())
    write_ready(root / "more", pl.concat([interactions(), later, short]), items())
    settings = {"min_history_items": 3, "max_history_items": 3}
    one, other = (prepare(root, name=name, **settings) for name in ("films", "more"))
    assert same_tables(one, other)
    assert other.train_interactions.rows()[-1] == (9, 1, 0)
    assert one.manifest["data_hash"] != other.manifest["data_hash"]
