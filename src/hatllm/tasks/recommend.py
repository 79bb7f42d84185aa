"""task=recommend: the next titles for a history that a user types, or for a file of histories."""

import difflib
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hatllm.config import Config
from hatllm.tasks.answerer import Answerer, catalogue_of
from hatllm.tasks.item_finder import ItemFinder

console = Console()


def recommend(config: Config) -> None:
    """Answer for ``task.history``, or for every history of ``data.histories``.

    Args:
        config: A finished run's settings with the command line's on top.

    Raises:
        ValueError: If there is no history, or no item of the catalogue in it (names the nearest).
    """
    if config.data.histories is not None:
        from hatllm.tasks.bulk import recommend_in_bulk

        recommend_in_bulk(config)
        return
    if not config.task.history:
        raise ValueError(
            'task=recommend needs task.history=\'["Title one","Title two"]\' or data.histories=FILE'
        )
    items = catalogue_of(config)
    history = resolve_history(config, items)
    (answers,) = Answerer(config, num_histories=1)([history])
    ids = items["item_id"].to_list()
    title = dict(zip(ids, items["title"].to_list(), strict=True))
    source = dict(zip(ids, items["source_id"].to_list(), strict=True))
    table = Table(title=escape("history: " + " → ".join(title[item] for item in history)))
    # With a length penalty the titles stand by log-probability over length.
    by_score = config.decode.length_penalty != 0 and config.decode.is_beam
    for column in ("rank", "title", *["score"] * by_score, "log-probability", "item id"):
        table.add_column(column)
    for rank, answer in enumerate(answers, start=1):
        numbers = [answer.score] * by_score + [answer.log_prob]
        cells = [escape(title[answer.item_id]), *(f"{number:.2f}" for number in numbers)]
        table.add_row(str(rank), *cells, escape(str(source[answer.item_id])))
    console.print(table)


def resolve_history(config: Config, items: pl.DataFrame) -> list[int]:
    """Item ids of ``task.history``; what names no item is skipped and said.

    Args:
        config: task.history, and how much of a history is read.
        items: item_id, title, source_id.

    Returns:
        Item ids, oldest first; of items that share a title the first.

    Raises:
        ValueError: If no entry names an item; names the nearest titles.
    """
    find = ItemFinder(items, config.data.max_title_characters)
    if (note := find.both_ways()) is not None:
        console.print(f"note: {note}", markup=False)
    found = find.newest(config.task.history or [], config.data.max_history_items)
    lines = [_no_item(entry, find) for entry in found.unknown]
    if not found.items:
        raise ValueError(f"task.history: {'; '.join(lines)}")
    for line in lines:
        console.print(f"skipped: {line}", markup=False)
    return found.items


def _no_item(entry: Any, find: ItemFinder) -> str:
    near = difflib.get_close_matches(str(entry), find.by_title, n=3, cutoff=0.4)
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    return f"{entry!r} is neither a title nor an item id{hint}"
