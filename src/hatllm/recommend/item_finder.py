"""Which item of a run's catalogue an entry of a history names.

A number is an item id of the source files. A string is a title first, as the source files or the
catalogue have it and in any case, and else an id.
"""

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from unicodedata import normalize

import polars as pl
from rapidfuzz.distance import Indel
from rapidfuzz.process import extract as most_alike

from hatllm.data.titles import clean_title, cut_title

FORMS_KEPT = 100_000  # strings that are no title letter by letter; a file repeats them
MOST_UNLIKE = 0.39  # share of the spelling below which titles are not near
MANY_CHARACTERS = 200  # of a text that is looked for
NAMES_A_PART = 50_000


class ItemFinder:
    """Finds items by title or by the source files' id."""

    def __init__(
        self, items: pl.DataFrame, clean_titles: bool, max_title_characters: int | None
    ) -> None:
        """Index a catalogue.

        Args:
            items: item_id, title, source_id.
            clean_titles: Whether its titles were cleaned (``data.clean_titles``).
            max_title_characters: Where they were cut (``data.max_title_characters``).
        """
        self.clean_titles, self.max_title_characters = clean_titles, max_title_characters
        self.by_title: dict[str, int] = {}
        self.title_of_folded: dict[str, str] = {}
        self.by_source: dict[str, int] = {}
        self._of_other_form = lru_cache(FORMS_KEPT)(self._find_other_form)
        self.add(items)

    def add(self, items: pl.DataFrame) -> None:
        """Know these items too; of items that share a title the first stays.

        Args:
            items: item_id, title, source_id.
        """
        for item, title, source in items.select("item_id", "title", "source_id").iter_rows():
            self.by_title.setdefault(title, item)
            if folded := _folded(title):  # one of tags only is not what an empty string names
                self.title_of_folded.setdefault(folded, title)
            self.by_source[source] = item
        self._of_other_form.cache_clear()

    def __call__(self, entry: Any) -> int | None:
        """The item that an entry names; None = there is no such item."""
        if isinstance(entry, str):
            item = self.by_title.get(entry)
            return self._of_other_form(entry) if item is None else item
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            return None
        whole = isinstance(entry, float) and entry.is_integer()  # as pandas writes ids
        return self.by_source.get(str(int(entry) if whole else entry))

    def _find_other_form(self, text: str) -> int | None:
        """The item of a string that is no title of the catalogue letter by letter."""
        prepared = clean_title(text) if self.clean_titles else text
        if self.max_title_characters is not None:
            prepared = cut_title(prepared, self.max_title_characters)
        found = self.by_title.get(prepared)
        if found is None:
            title = self.title_of_folded.get(_folded(prepared))
            found = None if title is None else self.by_title[title]
        return self.by_source.get(text) if found is None else found


def _folded(title: str) -> str:
    """What titles have in common that differ in case, blanks, HTML or composed letters only."""
    while (cleaned := clean_title(title)) != title:
        title = cleaned
    return normalize("NFC", title).casefold()


def is_missing(entry: Any) -> bool:
    """Whether an entry is no entry: null, or the NaN that pandas writes for it."""
    return entry is None or entry != entry


def why_unknown(entry: Any, find: ItemFinder) -> str:
    """Why an entry names no item, with the nearest titles."""
    if is_missing(entry):
        return "null"
    if not isinstance(entry, str):
        hint = "; in quotes it is a title" if find(str(entry)) is not None else ""
        return f"{entry} is no item id{hint}"
    near = nearly_spelt(find, entry, 3)
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    return f"{entry!r} is neither a title nor an item id{hint}"


def nearest_titles(find: ItemFinder, query: str, limit: int) -> list[str]:
    """Titles that begin like a query, in the order of the alphabet, then nearly equal ones.

    Args:
        find: Of a catalogue.
        query: Any text; case does not count.
        limit: Titles at most.
    """
    start = query.strip().casefold()
    if not start:
        return []
    begins = (title for title in find.by_title if title.casefold().startswith(start))
    found = heapq.nsmallest(limit, begins)
    if len(found) < limit:
        near = nearly_spelt(find, query, limit + len(found))
        found += [title for title in near if title not in found]
    return found[:limit]


def nearly_spelt(find: ItemFinder, text: str, limit: int) -> list[str]:
    """Titles by how much of their spelling they share with a text, the first one first at a tie.

    That is 2 s / (a + b): s characters in common, in their order (the longest common subsequence),
    of a and b characters; from MOST_UNLIKE on.

    Args:
        find: Of a catalogue.
        text: Any; case, blanks and HTML do not count.
        limit: Titles at most.
    """
    text = _folded(text)
    names = list(find.title_of_folded)
    if len(text) > MANY_CHARACTERS:  # each name costs more; most are too short to be near
        shortest = len(text) * MOST_UNLIKE / (2 - MOST_UNLIKE)  # 2 s / (a + b) with s = a
        names = [name for name in names if len(name) >= shortest]
    found: list[tuple[str, float, int]] = []
    # In parts, between which other threads get their turn.
    for start in range(0, len(names), NAMES_A_PART):
        part = most_alike(
            text, names[start : start + NAMES_A_PART], limit=limit,
            scorer=Indel.normalized_similarity, score_cutoff=MOST_UNLIKE,
        )  # fmt: skip
        found += [(name, share, start + place) for name, share, place in part]
    best = heapq.nsmallest(limit, found, key=lambda one: (-one[1], one[2]))
    return [find.title_of_folded[name] for name, _, _ in best]


def items_named(entries: Sequence[Any], find: ItemFinder, field: str) -> list[int]:
    """The items that all entries name.

    Args:
        entries: Titles or item ids.
        find: Of the run's catalogue.
        field: What holds them, for messages.

    Raises:
        ValueError: For the first that names none.
    """
    found = []
    for entry in entries:
        item = find(entry)
        if item is None:
            raise ValueError(f"{field}: {why_unknown(entry, find)}")
        found.append(item)
    return found


def note_on_titles_that_are_ids(items: pl.DataFrame, strings: list[str] | None) -> str | None:
    """What a reader of the answers should know where one string is a title and another item's id.

    Args:
        items: item_id, title, source_id.
        strings: Of the histories; None = any could be among them.

    Returns:
        One sentence with an example; None = no string is both.
    """
    titled = items.select(key=pl.col("title").str.to_lowercase(), titled="source_id")
    named = items.select("source_id", key=pl.col("source_id").str.to_lowercase())
    both = named.join(titled, on="key").filter(pl.col("source_id") != pl.col("titled"))
    if strings is not None:
        both = both.filter(pl.col("source_id").is_in(strings))
    if both.is_empty():
        return None
    text, item = both.sort("source_id").select("source_id", "titled").row(0)
    others = both["source_id"].n_unique() - 1
    more = f" (and {others} more such)" if others else ""
    return (
        f'the string "{text}" is the title of item {item} and the id of another item{more}: a '
        "string is read as a title first, a number as an id"
    )
