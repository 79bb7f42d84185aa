"""One finished run as a server holds it: what answers, its catalogue, its settings and numbers."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from hatllm.compose import PLACES
from hatllm.config import Config
from hatllm.data.sources.source_tables import read_parquet
from hatllm.model.export import exported_patterns
from hatllm.recommend.other_mask import mask_names
from hatllm.recommend.recommender import Recommendation, Recommender, Request
from hatllm.runs.run_files import EXAMPLES_FILE, PREDICTIONS_FILE, read_identity, read_metrics
from hatllm.serve.refusal import Refusal
from hatllm.serve.schema import (
    Ranked,
    RecommendRequest,
    RunSummary,
    ScoreRequest,
    User,
    WhyAnswer,
    WhyRequest,
)
from hatllm.serve.what_if import WhatIf, check_mask, check_what_if, recommend_if


class UserTable:
    """The rows of a run's test split."""

    def __init__(self, folder: Path, title: Mapping[int, str], max_history_items: int) -> None:
        """Read examples and predictions.

        Args:
            folder: The run's; without the two files there are no users.
            title: Of each item id.
            max_history_items: Newest items that the run reads.
        """
        self.title, self.max_history_items = title, max_history_items
        examples, predictions = folder / EXAMPLES_FILE, folder / PREDICTIONS_FILE
        self.rows = pl.DataFrame()
        if examples.exists() and predictions.exists():
            columns = ["example_id", "source_user_id", "history", "target"]
            ranks = read_parquet(predictions, ["example_id", "target_rank"])
            self.rows = read_parquet(examples, columns).join(
                ranks, on="example_id", maintain_order="left"
            )

    def __len__(self) -> int:
        return self.rows.height

    def page(self, offset: int, limit: int) -> list[User]:
        """Some of them, in the order of the split."""
        return [
            User(
                user=user,
                history=[self.title[item] for item in history[-self.max_history_items :]],
                target=self.title[target],
                target_rank=rank,
            )
            for _, user, history, target, rank in self.rows.slice(offset, limit).iter_rows()
        ]


Explain = Callable[[str, list[int], int], WhyAnswer]  # run, history, title as item ids
ExplainUnder = Callable[[str | None], Explain]  # mask; None = the run's own
NUM_NEAREST = 3  # titles named beside an unknown one
NO_SETTINGS = (*PLACES, "logger", "experiment", "scale", "run_name")  # they made no number


class ServedRun:
    """A run's answers; whatever is asked of them is checked first."""

    def __init__(
        self, name: str, config: Config, recommender: Recommender, explain: ExplainUnder | None
    ) -> None:
        """Read what lies in the run's folder.

        Args:
            name: What requests call it.
            config: Its settings, with the folder.
            recommender: What answers for it.
            explain: What explains its answers; None = nothing can.
        """
        assert config.task.run_folder is not None
        self.name, self.config, self.recommender = name, config, recommender
        self.explain = explain
        self.folder = Path(config.task.run_folder)
        self.find = recommender.find
        self.title = titles_of(recommender)
        self.users = UserTable(self.folder, self.title, config.data.max_history_items)
        self.patterns = exported_patterns(self.folder)
        self.identity = read_identity(self.folder)
        self.metrics: dict[str, dict[str, float | None]] = _sendable(read_metrics(self.folder))

    def recommend(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        """The best titles of every request, in one call of the model."""
        return self.recommender.recommend_many(requests)

    def recommend_if(self, asked: Sequence[WhatIf]) -> list[list[Recommendation]]:
        """The best titles of every request, each under its own search."""
        return recommend_if(self.recommender, asked)

    def score(self, asked: Sequence[ScoreRequest]) -> list[list[Recommendation]]:
        """The candidates of every request, best first."""
        return [self.recommender.score(one.history, one.titles) for one in asked]

    def what_if_of(self, body: RecommendRequest) -> WhatIf | None:
        """The mask and search that the request asks for; None = the run's own.

        Raises:
            Refusal: 422, where the run has no such search, or as `request_of`.
        """
        if body.beam_width is None and body.temperature is None and body.mask is None:
            return None
        asked = WhatIf(self.request_of(body), body.beam_width, body.temperature)
        check_what_if(self.recommender, asked)
        return asked

    def request_of(self, body: RecommendRequest) -> Request:
        """What the recommender is asked.

        Raises:
            Refusal: 422 for the first entry that names no item, with the nearest titles.
        """
        self.check("history", body.history)
        self.check("only", body.only or ())
        self.check("block", body.block)
        return Request(body.history, body.k, body.exclude_history, body.only, body.block, body.mask)

    def why_request_of(self, body: WhyRequest) -> tuple[list[int], int, str | None]:
        """History and title as item ids, and the mask.

        Raises:
            Refusal: 422 if nothing explains this run, or an entry names no item.
        """
        if self.explain is None:
            message = f"model={self.config.model.name} has no path through a trie to show"
            raise Refusal(422, "no_why", message, "run")
        self.check("history", body.history)
        item = self.find(body.title)
        if item is None:
            raise self.unknown("title", body.title)
        if body.mask is not None:
            check_mask(self.recommender, body.mask)
        history = [found for entry in body.history if (found := self.find(entry)) is not None]
        return history, item, body.mask

    def why(self, asked: Sequence[tuple[list[int], int, str | None]]) -> list[WhyAnswer]:
        """How each title came about."""
        assert self.explain is not None
        return [self.explain(mask)(self.name, history, item) for history, item, mask in asked]

    def check(self, field: str, entries: Iterable[Any]) -> None:
        """Refuse entries that name no item.

        Raises:
            Refusal: 422 for the first of them, with the nearest titles.
        """
        for place, entry in enumerate(entries):
            if self.find(entry) is None:
                raise self.unknown(f"{field}[{place}]", entry)

    def unknown(self, field: str, entry: Any) -> Refusal:
        """The refusal of an entry that names no item."""
        what, near = "an item id", []
        if isinstance(entry, str):
            what = "a title"
            near = [item.title for item in self.recommender.items(entry, NUM_NEAREST)]
        message = f"{field} names no item of the run: not {what} of its catalogue"
        return Refusal(422, "unknown_title", message, field, near)

    def summary(self, is_default: bool) -> RunSummary:
        """The run in one line."""
        config = self.config
        is_llm = config.model.kind == "llm"
        return RunSummary(
            name=self.name, label=self.identity["label"], data=config.data.name, seed=config.seed,
            kind=config.model.kind, model=config.model.name,
            loss=config.loss.name if is_llm else None, mask=config.mask.name if is_llm else None,
            masks=mask_names() if is_llm else [],
            decoder=config.decode.name if is_llm else None,
            num_titles=len({*self.title.values()}), is_default=is_default,
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The settings that made its numbers, without paths of this machine."""
        groups = {k: v for k, v in asdict(self.config).items() if k not in NO_SETTINGS}
        found = _sendable(groups)
        assert isinstance(found, dict)
        return found


def titles_of(recommender: Recommender) -> dict[int, str]:
    """The title of each item id."""
    return dict(recommender.catalogue.select("item_id", "title").iter_rows())


def ranked(found: Iterable[Recommendation]) -> list[Ranked]:
    """Recommendations as they are sent; no JSON number is infinite."""
    return [
        Ranked(
            rank=one.rank, title=one.title, item_id=one.item_id, source_id=one.source_id,
            score=_finite(one.score), log_prob=_finite(one.log_prob),
        )
        for one in found
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sendable(value: Any) -> Any:
    """The same with the last part of every whole path in its place, and no infinite number."""
    match value:
        case dict():
            return {key: _sendable(inner) for key, inner in value.items()}
        case list():
            return [_sendable(inner) for inner in value]
        case str() if Path(value).is_absolute():
            return Path(value).name
        case float() if not math.isfinite(value):
            return None
    return value
