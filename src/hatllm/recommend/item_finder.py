"""Which item of a run's catalogue an entry of a history names.

A number is an item id of the source files. A string is a title first, as the source files or the
catalogue have it and in any case, and else an id.
"""

import difflib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from unicodedata import normalize

import polars as pl

from hatllm.data.titles import clean_title, cut_title

FORMS_KEPT = 100_000  # strings that are no title letter by letter; a file repeats them


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
        ids, titles = items["item_id"].to_list(), items["title"].to_list()
        # Backwards: of items that share a title the first stays.
        self.by_title = dict(zip(reversed(titles), reversed(ids), strict=True))
        self.by_folded = dict(zip(map(_folded, reversed(titles)), reversed(ids), strict=True))
        self.title_of_folded = dict(
            zip(map(_folded, reversed(titles)), reversed(titles), strict=True)
        )
        self.by_folded.pop("", None)  # a title of tags only is not what an empty string names
        self.by_source = dict(zip(items["source_id"].to_list(), ids, strict=True))
        self._of_other_form = lru_cache(FORMS_KEPT)(self._find_other_form)

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
            found = self.by_folded.get(_folded(prepared))
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
    near = difflib.get_close_matches(entry, find.by_title, n=3, cutoff=0.4)
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
    begins = sorted(title for title in find.by_title if title.casefold().startswith(start))
    found = begins[:limit]
    if len(found) < limit:
        near = difflib.get_close_matches(start, find.by_folded, n=limit, cutoff=0.4)
        title_of = find.title_of_folded
        found += [title_of[name] for name in near if title_of[name] not in found]
    return found[:limit]


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
