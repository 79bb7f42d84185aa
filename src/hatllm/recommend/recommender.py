"""A finished run from Python: `hatllm.load("outputs/RUN").recommend(["Toy Story (1995)"])`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from omegaconf import OmegaConf

from hatllm.compose import checked, with_finished_run
from hatllm.config import Config
from hatllm.recommend.answerer import LlmAnswerer, answerer_of
from hatllm.recommend.answers import Answer, Answerer, Asked, catalogue_of
from hatllm.recommend.item_finder import ItemFinder, items_named, nearest_titles, why_unknown
from hatllm.recommend.new_items import with_new_items
from hatllm.recommend.other_mask import answerer_under
from hatllm.runs.folder import load_config
from hatllm.runs.run_files import read_identity, read_metrics

MOST_TITLES = 100  # k of one request
MASKS_KEPT = 4  # other masks that stay ready


@dataclass(frozen=True)
class Request:
    """What is asked for one history. Entries are titles or the source files' item ids."""

    history: Sequence[Any]  # oldest first
    k: int = 10  # titles at most, 1 to MOST_TITLES
    exclude_history: bool = False  # titles of the whole history are no answers
    only: Sequence[Any] | None = None  # titles that alone may be answered; None = all
    block: Sequence[Any] = field(default=())  # titles that are no answers
    mask: str | None = None  # under which the weights answer; None = the run's own


class Recommendation(NamedTuple):
    """One recommended title."""

    rank: int  # from 1
    title: str
    item_id: int  # of items that share the title the first
    source_id: str  # the same item in the source files
    score: float  # log_prob / length ** decode.length_penalty
    log_prob: float  # nats, over the whole catalogue


class FoundItem(NamedTuple):
    """One title of the catalogue."""

    item_id: int
    title: str
    source_id: str


class Info(NamedTuple):
    """What a run is."""

    name: str  # of its folder
    label: str  # as tables call it
    model: str
    mask: str | None  # letters of its layers' patterns; None = no LLM
    metrics: dict[str, dict[str, float]]  # split -> name -> value


class Recommender:
    """Answers of one finished run, an LLM's or a baseline's."""

    def __init__(self, config: Config) -> None:
        """Load the run.

        Args:
            config: Its settings, with ``task.run_folder``.

        Raises:
            ValueError: If something that it has learned is missing or does not fit.
        """
        assert config.task.run_folder is not None
        self.config, self.folder = config, Path(config.task.run_folder)
        self.catalogue = catalogue_of(config)
        self.answerer = answerer_of(config, self.catalogue, num_histories=1)
        self.find = ItemFinder(
            self.catalogue, config.data.clean_titles, config.data.max_title_characters
        )
        self._item = _items_by_id(self.catalogue)
        self._under_mask: dict[str, Answerer] = {}  # the last used one is the last

    def answerer_under(self, mask: str | None) -> Answerer:
        """What answers under another mask, with the same weights.

        Args:
            mask: A preset of ``conf/mask`` such as ``causal``, or one letter a layer (I, F, C);
                None = the run's own.

        Raises:
            ValueError: If the run has no masks, there is no such mask, or it does not fit.
        """
        if mask is None:
            return self.answerer
        found = self._under_mask.pop(mask, None) or answerer_under(self.answerer, mask)
        self._under_mask[mask] = found
        if len(self._under_mask) > MASKS_KEPT:
            del self._under_mask[next(iter(self._under_mask))]
        return found

    def recommend(
        self,
        history: Sequence[Any],
        k: int = 10,
        exclude_history: bool = False,
        only: Sequence[Any] | None = None,
        block: Sequence[Any] = (),
        skip_unknown: bool = False,
        mask: str | None = None,
    ) -> list[Recommendation]:
        """The best titles for one history.

        Args:
            history: Titles or item ids of the source files, oldest first; the model reads the
                newest ``data.max_history_items``.
            k: Titles at most, 1 to MOST_TITLES. Above ``decode.beam_width`` the beam grows to k.
            exclude_history: Whether titles of the whole history are no answers. A run with
                ``decode.exclude_history=true`` excludes them always.
            only: Titles that alone may be answered; None = all.
            block: Titles that are no answers.
            skip_unknown: Leave entries out that name no item, where another of those that are read
                does; no older one takes their place.
            mask: What if the layers saw something else, as in `answerer_under`; LLM runs.

        Returns:
            Best first; fewer than k where fewer are allowed. Log-probabilities are those over the
            whole catalogue, not renormalised over what is allowed.

        Raises:
            ValueError: If an entry names no item (says the nearest titles), k is out of range, or
                the mask does not fit.
        """
        if skip_unknown:
            older, history = self._known(history)
            if exclude_history or self.config.decode.exclude_history:
                block = [*block, *older]
        return self.recommend_many([Request(history, k, exclude_history, only, block, mask)])[0]

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        """As `recommend`, for many requests at once, each with its own k, titles and mask.

        The answers are those of one request after the other: titles and ranks are the same,
        log-probabilities up to the rounding of float32 sums over another padding.
        """
        lists: dict[tuple[Any, ...], list[int]] = {}
        asked = [self._asked(request, lists) for request in requests]
        rows_of_mask: dict[str | None, list[int]] = defaultdict(list)
        for row, request in enumerate(requests):
            rows_of_mask[request.mask].append(row)
        found: list[list[Recommendation]] = [[] for _ in requests]
        for mask, rows in rows_of_mask.items():
            answers = self.answerer_under(mask)([asked[row] for row in rows])
            for row, titles in zip(rows, answers, strict=True):
                found[row] = self._ranked(titles)
        return found

    def score(
        self, history: Sequence[Any], titles: Sequence[Any], mask: str | None = None
    ) -> list[Recommendation]:
        """The log-probability of each of some titles, whatever a search would find.

        Args:
            history: As in `recommend`.
            titles: Candidates, titles or item ids.
            mask: As in `recommend`.

        Returns:
            The candidates, best first. LLM runs: by teacher forcing, what ``decode=exact`` gives.
            Baselines: the log-softmax of their scores among all titles.

        Raises:
            ValueError: If an entry names no item, or the run's decoder has no such number.
        """
        history_ids = self._history(history)
        candidates = items_named(titles, self.find, "titles")
        found = self.answerer_under(mask).score(history_ids, candidates)
        return self._ranked(found)

    def items(self, query: str, limit: int = 10) -> list[FoundItem]:
        """Titles that begin like a query, then those that are spelled nearly so.

        Args:
            query: The beginning of a title, in any case.
            limit: Titles at most.
        """
        titles = nearest_titles(self.find, query, limit)
        return [self._item[self.find.by_title[title]] for title in titles]

    def add_items(self, titles: Sequence[str]) -> list[int]:
        """Put titles into the catalogue that training never saw, for this object alone.

        An LLM reads and ranks them as any other title; the title rule counts its words anew.

        Args:
            titles: Those that are there already stay as they are.

        Returns:
            Item ids, in the titles' order.

        Raises:
            ValueError: If the run knows items by id, or a title has no text.
        """
        known = self.catalogue.height
        self.catalogue, self.answerer, item_ids = with_new_items(
            self.config, self.catalogue, self.answerer, self.find, titles
        )
        added = self.catalogue.slice(known)
        self._under_mask.clear()
        self.find.add(added)
        self._item |= _items_by_id(added)
        return item_ids

    def settings(self) -> dict[str, Any]:
        """All settings of the run, groups as dictionaries."""
        found = OmegaConf.to_container(OmegaConf.structured(self.config))
        assert isinstance(found, dict)
        return {str(name): value for name, value in found.items()}

    @property
    def info(self) -> Info:
        """What the run is and what it reached."""
        mask = None
        if isinstance(self.answerer, LlmAnswerer):
            mask = self.answerer.parts.schedule.letters
        label = str(read_identity(self.folder, "label")["label"])
        name = self.folder.resolve().name
        return Info(name, label, self.config.model.name, mask, read_metrics(self.folder))

    def _asked(self, request: Request, lists: dict[tuple[Any, ...], list[int]]) -> Asked:
        if not 1 <= request.k <= MOST_TITLES:
            raise ValueError(f"k={request.k} must be between 1 and {MOST_TITLES}")
        history = self._history(request.history)
        exclude = items_named(request.block, self.find, "block")
        if request.exclude_history or self.config.decode.exclude_history:
            exclude = [*exclude, *history]
        only = None
        if request.only is not None:
            # Requests that share a list share the nodes that it leaves.
            key = tuple(request.only)
            if key not in lists:
                lists[key] = items_named(key, self.find, "only")
            only = lists[key]
        return Asked(history, request.k, exclude, only)

    def _history(self, history: Sequence[Any]) -> list[int]:
        if not len(history):
            raise ValueError("history=[] must hold at least one title or item id")
        return items_named(history, self.find, "history")

    def _known(self, history: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The entries that name an item: older ones, which no model reads, and the newest.

        Raises:
            ValueError: If none of the newest does.
        """
        split = max(len(history) - self.config.data.max_history_items, 0)
        known = [entry for entry in history[split:] if self.find(entry) is not None]
        if not known and len(history):
            shown = "; ".join(why_unknown(entry, self.find) for entry in history[split:])
            raise ValueError(f"history: {shown}")
        return [entry for entry in history[:split] if self.find(entry) is not None], known

    def _ranked(self, answers: Sequence[Answer]) -> list[Recommendation]:
        found = []
        for rank, answer in enumerate(answers, start=1):
            item = self._item[answer.item_id]
            row = (rank, item.title, item.item_id, item.source_id, answer.score, answer.log_prob)
            found.append(Recommendation(*row))
        return found


def _items_by_id(items: pl.DataFrame) -> dict[int, FoundItem]:
    rows = items.select("item_id", "title", "source_id").iter_rows()
    return {row[0]: FoundItem._make(row) for row in rows}


def load(folder: str | Path, settings: Sequence[str] = ()) -> Recommender:
    """Load a finished run.

    Args:
        folder: The run's folder.
        settings: Changes such as ``decode.beam_width=20``; what may be changed is what
            ``task=recommend`` may.

    Raises:
        ValueError: If there is no finished run, or a setting would make it another one.
    """
    saved = load_config(Path(folder), "folder")
    composed: Any = OmegaConf.merge(
        OmegaConf.structured(Config), saved, OmegaConf.from_dotlist(list(settings))
    )
    composed.task.name, composed.task.run_folder = "recommend", str(folder)
    return Recommender(checked(with_finished_run(composed, list(settings), saved)))
