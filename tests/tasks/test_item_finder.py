"""Histories as users write them, on the catalogue of tests/cases/numeric_titles."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hatllm.data.titles import prepared_titles
from hatllm.tasks.item_finder import ItemFinder

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def items() -> pl.DataFrame:
    table = pl.read_csv(CASES / "numeric_titles" / "t.csv", infer_schema=False)
    titles = prepared_titles(table["title"], clean=True)
    return pl.DataFrame(
        {"item_id": range(table.height), "source_id": table["item_id"]}
    ).with_columns(title=titles)


def source_ids(items: pl.DataFrame, history: list[Any], max_items: int = 10) -> list[str]:
    found = ItemFinder(items).newest(history, max_items).items
    return [items["source_id"][item] for item in found]


def histories(name: str) -> dict[str, list[Any]]:
    lines = (CASES / "histories" / name).read_text().splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return {row["user_id"]: row["history"] for row in rows}


def test_numbers_are_ids_and_texts_are_titles_first(items: pl.DataFrame) -> None:
    rows = histories("raw_titles.jsonl")
    assert source_ids(items, rows["ints"]) == ["101", "104", "103"]
    assert source_ids(items, rows["ints"]) == source_ids(items, rows["titles"])
    assert source_ids(items, rows["with115"]) == ["101", "115", "103"]
    assert source_ids(items, rows["strings"]) == ["101", "115", "103"]  # "104" is a title
    assert source_ids(items, [104.0, "100", True]) == ["104", "100"]
    said = ItemFinder(items).both_ways()
    assert said is not None and "1 titles" in said and "'104'" in said


def test_titles_are_found_as_they_stand_in_the_users_own_file(items: pl.DataFrame) -> None:
    rows = histories("raw_titles.jsonl")
    assert source_ids(items, rows["raw_amp"]) == source_ids(items, rows["shown_amp"]) == ["117"]
    assert source_ids(items, rows["nl"]) == ["119"]


def test_titles_that_were_cut_are_found_in_full() -> None:
    catalogue = pl.DataFrame({"item_id": [5], "title": ["A very long"], "source_id": ["x"]})
    assert ItemFinder(catalogue)("A very  long title") is None
    assert ItemFinder(catalogue, max_title_characters=12)("A very  long title") == 5


def test_what_is_unknown_is_skipped_and_counted(items: pl.DataFrame) -> None:
    rows = histories("raw_titles.jsonl")
    find = ItemFinder(items)
    assert find.newest(rows["unknown"], 10).unknown == ["Nope"]
    assert find.newest(rows["null"], 10).unknown == [None]
    assert (
        len(find.newest(rows["unknown"], 10).items) == len(find.newest(rows["null"], 10).items) == 1
    )


def test_the_newest_entries_are_taken_before_unknown_ones_are_skipped(items: pl.DataFrame) -> None:
    rows = histories("oldunknown.jsonl")
    assert source_ids(items, rows["u1"]) == source_ids(items, rows["u2"])
    assert ItemFinder(items).newest(rows["u1"], 10).unknown == []
    assert ItemFinder(items).newest(rows["u1"], 13).unknown == ["Gone title"]


def test_of_items_that_share_a_title_the_first_is_meant() -> None:
    catalogue = pl.DataFrame(
        {"item_id": [1, 2, 3], "title": ["Heat", "heat", "Heat"], "source_id": ["a", "b", "c"]}
    )
    find = ItemFinder(catalogue)
    assert [find("Heat"), find("heat"), find("HEAT"), find("c")] == [1, 2, 1, 3]
