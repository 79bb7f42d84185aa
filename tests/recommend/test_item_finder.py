"""Which item an entry of a history names."""

import math
import random

import polars as pl
import pytest

from hatllm.recommend import item_finder
from hatllm.recommend.histories import History, read_history
from hatllm.recommend.item_finder import (
    ItemFinder,
    nearest_titles,
    nearly_spelt,
    note_on_titles_that_are_ids,
)

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


def characters_in_common(one: str, other: str) -> int:
    """The longest common subsequence, by the table that every textbook has."""
    before = [0] * (len(other) + 1)
    for letter in one:
        row = [0]
        for place, against in enumerate(other):
            longest = max(before[place + 1], row[place])
            row.append(before[place] + 1 if letter == against else longest)
        before = row
    return before[-1]


def test_near_spelling_ranks_as_the_plain_computation_does(monkeypatch) -> None:
    monkeypatch.setattr(item_finder, "NAMES_A_PART", 7)  # ties across parts, too
    monkeypatch.setattr(item_finder, "MANY_CHARACTERS", 5)
    draw = random.Random(5)
    letters = ["".join(draw.choices("abc ", k=draw.randint(1, 9))) for _ in range(60)]
    titles = list(dict.fromkeys(" ".join(text.split()) or "b" for text in letters))
    find = finder(titles, list(map(str, range(len(titles)))))
    for query in ("ab c", "Cab", "aabbcc", "c", "abcabcabc", "zzz"):
        share = {
            title: 2 * characters_in_common(query.lower(), title) / (len(query) + len(title))
            for title in titles
        }
        ranked = sorted((t for t in titles if share[t] >= 0.39), key=lambda t: -share[t])
        for limit in (1, 5, 100):
            assert nearly_spelt(find, query, limit) == ranked[:limit]
            begins = sorted(t for t in titles if t.startswith(query.lower()))[:limit]
            rest = [t for t in ranked[: limit + len(begins)] if t not in begins]
            assert nearest_titles(find, query, limit) == [*begins, *rest][:limit]


def test_items_that_come_later_are_found_as_if_they_had_been_there() -> None:
    titles = ["Salt", "7", "<b></b>", "salt", "Pepper", "Salt", "PEPPER &amp; Salt", "Sugar"]
    ids = ["7", "2", "3", "4", "5", "6", "Salt", "2"]
    whole = catalogue(titles, ids)
    at_once, later = (
        ItemFinder(items, clean_titles=True, max_title_characters=None)
        for items in (whole, whole.head(4))
    )
    entries = [*titles, *ids, "SALT", "sugar", "pepper & salt", "", 7, 2]
    assert later("sugar") is None  # remembered as unknown
    later.add(whole.slice(4))
    assert [later(entry) for entry in entries] == [at_once(entry) for entry in entries]
    assert nearest_titles(later, "peper", 3) == nearest_titles(at_once, "peper", 3)
