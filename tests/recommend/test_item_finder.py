"""Which item an entry of a history names."""

import math

import polars as pl
import pytest

from hatllm.recommend.histories import History, read_history
from hatllm.recommend.item_finder import ItemFinder, note_on_titles_that_are_ids

LONG = "The long way home, told from its end"


def finder(titles: list[str], ids: list[str], cut: int | None = None) -> ItemFinder:
    return ItemFinder(catalogue(titles, ids), clean_titles=True, max_title_characters=cut)


def catalogue(titles: list[str], ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": range(len(titles)), "title": titles, "source_id": ids})


@pytest.mark.parametrize(
    ("entry", "item"),
    [
        (7, 0),
        (7.0, 0),  # as pandas writes ids beside a gap
        ("7", 1),
        ("9", 1),
        ("seven", 0),
        (7.5, None),
        (True, None),
        (None, None),
        (math.nan, None),
        (math.inf, None),
        (["Seven"], None),
        (8, None),
        ("", None),
        ("  ", None),
    ],
)
def test_a_number_is_an_id_and_a_string_a_title_first(entry: object, item: int | None) -> None:
    assert finder(["Seven", "7"], ["7", "9"])(entry) == item


def test_titles_of_the_users_own_file_are_found() -> None:
    find = finder(["Tom & Jerry (1992)", "Cafe\u0301 Noir", "A B"], ["DE-00/07", "2", "3"])
    raw = {
        "Tom &amp;amp; Jerry  (1992)": 0,
        "tom &amp; jerry (1992)": 0,
        "Caf\u00e9 Noir": 1,
        "Cafe\u0301 Noir": 1,
        "A\nB": 2,
        "<b>A</b> B": 2,
        "DE-00/07": 0,
    }
    assert {text: find(text) for text in raw} == raw


def test_a_title_that_was_cut_is_found_by_the_whole() -> None:
    find = finder(["The long way home,"], ["1"], cut=20)
    assert find(LONG) == find(LONG.upper()) == find("The long way home,") == 0
    assert finder(["The long way home,"], ["1"])(LONG) is None


def test_titles_that_were_not_cleaned_are_found_as_they_are_and_as_they_read() -> None:
    items = catalogue(["Salt &amp; Pepper", "Salt & Pepper"], ["1", "2"])
    find = ItemFinder(items, clean_titles=False, max_title_characters=None)
    assert find("Salt &amp; Pepper") == 0
    assert find("Salt & Pepper") == 1
    assert find("salt  & pepper") == 0  # of titles that read alike the first


def test_the_newest_entries_are_read_and_unknown_ones_among_them_skipped() -> None:
    find = finder(["A", "B", "C"], ["1", "2", "3"])
    entries = ["A", "x", "B", None, "C"]
    assert read_history(entries, find, 3) == History([1, 2], [None])
    assert read_history(entries, find, 4) == History([1, 2], ["x", None])
    assert read_history(["A", "x"], find, 1) == History([], ["x"])
    assert read_history(["A", "B"], find, 9) == History([0, 1], [])


def test_a_title_that_is_another_items_id_is_said_once_with_an_example() -> None:
    items = catalogue(["104", "B", "IT", "2"], ["115", "104", "4", "it"])
    note = note_on_titles_that_are_ids(items, None)
    assert note is not None
    assert 'the string "104" is the title of item 115 and the id of another item' in note
    assert "(and 1 more such)" in note
    only = note_on_titles_that_are_ids(items, ["it", "B"])
    assert only is not None and 'the string "it" is the title of item 4' in only
    assert note_on_titles_that_are_ids(items, ["B"]) is None
    assert note_on_titles_that_are_ids(catalogue(["7", "B"], ["7", "8"]), None) is None
