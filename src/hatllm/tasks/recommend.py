"""task=recommend: the next titles for a history that a user types, or for a file of histories."""

from collections.abc import Iterator

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hatllm.config import Config
from hatllm.recommend.answerer import answerer_of
from hatllm.recommend.answers import Answer, Asked, catalogue_of, finder_of
from hatllm.recommend.histories import History, read_history
from hatllm.recommend.item_finder import (
    ItemFinder,
    items_named,
    note_on_titles_that_are_ids,
    why_unknown,
)

console = Console()


def recommend(config: Config) -> None:
    """Answer for ``task.history``, or for every history of ``data.histories``.

    Args:
        config: A finished run's settings with the command line's on top.

    Raises:
        ValueError: If there is no history, or no item of it is in the catalogue (names the
            nearest).
    """
    if config.data.histories is not None:
        from hatllm.recommend.bulk import recommend_in_bulk

        recommend_in_bulk(config)
        return
    if not config.task.history:
        raise ValueError(
            'task=recommend needs task.history=\'["Title one","Title two"]\' or data.histories=FILE'
        )
    items = catalogue_of(config)
    find = finder_of(config, items)
    history = typed_history(config, find)
    strings = [entry for entry in config.task.history if isinstance(entry, str)]
    notes = [note_on_titles_that_are_ids(items, strings), *_skipped_notes(history, find)]
    asked = _asked(config, history, find)
    (answers,) = answerer_of(config, items, num_histories=1)([asked])
    for note in filter(None, notes):
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    # With a length penalty the titles stand by log-probability over length.
    by_score = config.decode.length_penalty != 0 and config.decode.is_beam
    console.print(_table(history, answers, items, by_score))


def _asked(config: Config, history: History, find: ItemFinder) -> Asked:
    """What is asked for the typed history, with ``task.only`` and ``task.block``."""
    decode, task = config.decode, config.task
    block = items_named(task.block, find, "task.block")
    if decode.exclude_history:
        older = (find(entry) for entry in task.history[: -config.data.max_history_items])
        block += [*history.item_ids, *(item for item in older if item is not None)]
    only = None if task.only is None else items_named(task.only, find, "task.only")
    return Asked(history.item_ids, decode.top_k, block, only)


def typed_history(config: Config, find: ItemFinder) -> History:
    """What is read of ``task.history``.

    Args:
        config: The run's settings with the command line's on top.
        find: Of its catalogue.

    Raises:
        ValueError: If no entry that is read names an item; names the nearest titles.
    """
    history = read_history(config.task.history, find, config.data.max_history_items)
    if not history.item_ids:
        shown = "; ".join(why_unknown(entry, find) for entry in reversed(history.skipped))
        raise ValueError(f"task.history: {shown}")
    return history


def _skipped_notes(history: History, find: ItemFinder) -> Iterator[str]:
    num_read = len(history.item_ids) + len(history.skipped)
    if history.skipped:
        why = "; ".join(why_unknown(entry, find) for entry in history.skipped)
        yield f"{len(history.skipped)} of {num_read} entries skipped: {why}"


def _table(history: History, answers: list[Answer], items: pl.DataFrame, by_score: bool) -> Table:
    """The answers, best first, under the names that the source files give items."""
    ids = items["item_id"].to_list()
    title = dict(zip(ids, items["title"].to_list(), strict=True))
    source = dict(zip(ids, items["source_id"].to_list(), strict=True))
    table = Table(title=escape("history: " + " → ".join(map(title.__getitem__, history.item_ids))))
    for column in ("rank", "title", *["score"] * by_score, "log-probability", "item id"):
        table.add_column(column)
    for rank, answer in enumerate(answers, start=1):
        numbers = [answer.score] * by_score + [answer.log_prob]
        cells = [escape(title[answer.item_id]), *(f"{number:.2f}" for number in numbers)]
        table.add_row(str(rank), *cells, escape(source[answer.item_id]))
    return table
