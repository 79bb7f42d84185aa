"""Finds the items that a user names, by title or by the source files' id."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import polars as pl

from hatllm.data.titles import clean_title, cut_title


class Found(NamedTuple):
    """The items of a history, and what was in it that is none."""

    items: list[int]  # ids, oldest first
    unknown: list[Any]  # entries that name no item, null among them


class ItemFinder:
    """Numbers are ids of the source files; texts are titles, in any case, and after these ids.

    A title is also found as it stands in the user's own file: with its entities, blanks and line
    breaks, and in full where titles were cut.
    """

    def __init__(self, items: pl.DataFrame, max_title_characters: int | None = None) -> None:
        """Index a catalogue.

        Args:
            items: item_id, title, source_id.
            max_title_characters: ``data.max_title_characters`` of the run.
        """
        self.max_title_characters = max_title_characters
        ids, titles = items["item_id"].to_list(), items["title"].to_list()

        def first_of(names: Iterable[str]) -> dict[str, int]:
            # Backwards: of items that share a name the first stays.
            return dict(reversed(list(zip(names, ids, strict=True))))

        self.by_title = first_of(titles)
        self.by_folded = first_of(title.casefold() for title in titles)
        self.by_cleaned = first_of(clean_title(title).casefold() for title in titles)
        self.by_source = first_of(map(str, items["source_id"].to_list()))

    def __call__(self, entry: Any) -> int | None:
        """The item that a user names; None = there is no such item."""
        if isinstance(entry, bool) or entry is None:
            return None
        if isinstance(entry, int | float):
            whole = int(entry) if isinstance(entry, float) and entry.is_integer() else entry
            return self.by_source.get(str(whole))
        text = str(entry)
        found = self.by_title.get(text, self.by_folded.get(text.casefold()))
        if found is None:  # rare: cleaning costs more than looking up
            found = self.by_cleaned.get(self._as_in_the_catalogue(text))
        return self.by_source.get(text.strip()) if found is None else found

    def _as_in_the_catalogue(self, text: str) -> str:
        title = clean_title(text)
        if self.max_title_characters is not None:
            title = cut_title(title, self.max_title_characters)
        return title.casefold()

    def newest(self, history: list[Any], max_items: int) -> Found:
        """The items of the newest entries; the older ones are not looked at.

        Args:
            history: Titles or ids, oldest first.
            max_items: Entries that count: ``data.max_history_items``.
        """
        entries = history[-max_items:]
        found = [(entry, self(entry)) for entry in entries]
        items = [item for _, item in found if item is not None]
        return Found(items, [entry for entry, item in found if item is None])

    def both_ways(self) -> str | None:
        """A line about texts that are the title of one item and the id of another; None = none."""
        both = [
            name for name, item in self.by_title.items() if self.by_source.get(name, item) != item
        ]
        if not both:
            return None
        return (
            f"{len(both)} titles are also the id of another item, such as {both[0]!r}: a text is "
            "read as the title, a JSON number as the id"
        )
