"""What an answerer is asked, what it gives, and the catalogue that it answers from."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import polars as pl

from hatllm.config import Config
from hatllm.data.table_cache import table_hash
from hatllm.recommend.item_finder import ItemFinder
from hatllm.runs.folder import load_items
from hatllm.runs.run_files import RUN_FILE, read_identity


class Answer(NamedTuple):
    """One recommended title."""

    item_id: int  # of items that share the title the first
    score: float  # log_prob / length ** decode.length_penalty, of the title's tokens
    log_prob: float  # nats; titles that became the same tokens share their probability


class Asked(NamedTuple):
    """What is asked for one history."""

    history: Sequence[int]  # item ids, oldest first, at least one
    k: int  # titles at most
    exclude: Sequence[int]  # item ids whose titles are no answers
    only: Sequence[int] | None  # item ids whose titles alone are answers; None = all


class Answerer(Protocol):
    """Finds the best titles for histories of item ids."""

    def __call__(self, asked: Sequence[Asked]) -> list[list[Answer]]:
        """The best titles for each history, best first; fewer than k where fewer are allowed."""
        ...

    def score(self, history: Sequence[int], item_ids: Sequence[int]) -> list[Answer]:
        """The titles of some items as they would be answered, best first.

        Raises:
            ValueError: If the run ranks by something that a title alone does not have.
        """
        ...


def asked_of(config: Config, histories: Sequence[Sequence[int]]) -> list[Asked]:
    """What the run's settings ask for some histories."""
    exclude = config.decode.exclude_history
    return [Asked(h, config.decode.top_k, h if exclude else (), None) for h in histories]


def catalogue_of(config: Config) -> pl.DataFrame:
    """The finished run's items: item_id, title, source_id.

    Raises:
        ValueError: If they are missing, damaged, or not those that the run was made with.
    """
    assert config.task.run_folder is not None
    folder = Path(config.task.run_folder)
    items = load_items(folder)
    identity = read_identity(folder)
    if not isinstance(identity, dict) or identity.get("catalogue_hash") != table_hash(items):
        raise ValueError(
            f"task.run_folder={str(folder)!r}: its items.parquet is not the catalogue that the run "
            f"was made with, by the catalogue_hash of its {RUN_FILE}; give the folder as it was"
        )
    return items


def finder_of(config: Config, items: pl.DataFrame) -> ItemFinder:
    """What finds the items of a run's catalogue by the titles and ids of its source files."""
    return ItemFinder(items, config.data.clean_titles, config.data.max_title_characters)
