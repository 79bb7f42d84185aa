"""task=recommend: the next titles for a history that a user types, or for a file of histories."""

import difflib
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hatllm.config import Config
from hatllm.tasks.answerer import Answerer, catalogue_of
from hatllm.tasks.histories import ItemFinder

console = Console()


def recommend(config: Config) -> None:
    """Answer for ``task.history``, or for every history of ``data.histories``.

    Args:
        config: A finished run's settings with the command line's on top.

    Raises:
        ValueError: If there is no history, or an item is not in the catalogue (names the nearest).
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
    history = resolve_history(config.task.history, items)
    (answers,) = Answerer(config, num_histories=1)([history])
    title = dict(zip(items["item_id"].to_list(), items["title"].to_list(), strict=True))
    table = Table(title=escape("history: " + " → ".join(title[item] for item in history)))
    # With a length penalty the titles stand by log-probability over length.
    by_score = config.decode.length_penalty != 0 and config.decode.is_beam
    for column in ("rank", "title", *["score"] * by_score, "log-probability", "item id"):
        table.add_column(column)
    for rank, answer in enumerate(answers, start=1):
        numbers = [answer.score] * by_score + [answer.log_prob]
        cells = [escape(title[answer.item_id]), *(f"{number:.2f}" for number in numbers)]
        table.add_row(str(rank), *cells, str(answer.item_id))
    console.print(table)


def resolve_history(history: list[Any], items: pl.DataFrame) -> list[int]:
    """Item ids of a history given as titles or as ids of the source files.

    Args:
        history: Oldest first.
        items: item_id, title, source_id.

    Returns:
        Item ids; of items that share a title the first.

    Raises:
        ValueError: If an entry is neither; names the nearest titles.
    """
    find, found = ItemFinder(items), []
    for entry in history:
        item = find(entry)
        if item is None:
            near = difflib.get_close_matches(str(entry), find.by_title, n=3, cutoff=0.4)
            hint = f"; near: {', '.join(map(repr, near))}" if near else ""
            raise ValueError(f"task.history: {entry!r} is neither a title nor an item id{hint}")
        found.append(item)
    return found
