"""A finished run's answers to requests that each have their own settings."""

import difflib
from collections.abc import Sequence
from typing import Any

import polars as pl

from hatllm.config import Config
from hatllm.recommend.answerer import answerer_of
from hatllm.recommend.answers import Answer, finder_of
from hatllm.serve.shape import FoundItem, Recommendation, Request


class Answering:
    """What a server asks."""

    def __init__(self, config: Config, items: pl.DataFrame) -> None:
        self.answerer = answerer_of(config, items, num_histories=None)
        self.find = finder_of(config, items)
        self.top_k = config.decode.top_k
        self.item = {item: (title, source) for item, title, source in
                     items.select("item_id", "title", "source_id").iter_rows()}  # fmt: skip

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        for one in requests:
            if one.only is not None or one.block or one.exclude_history or one.k > self.top_k:
                raise ValueError(f"k above {self.top_k}, exclude_history, only and block: not yet")
        found = self.answerer([[self.find(entry) for entry in one.history] for one in requests])
        return [self._named(answers[: one.k]) for one, answers in zip(requests, found, strict=True)]

    def _named(self, answers: list[Answer]) -> list[Recommendation]:
        return [
            Recommendation(rank, self.item[a.item_id][0], a.item_id, self.item[a.item_id][1],
                           a.score, a.log_prob)
            for rank, a in enumerate(answers, start=1)
        ]  # fmt: skip

    def score(self, history: list[Any], titles: list[Any]) -> list[Recommendation]:
        raise ValueError("titles cannot be scored yet")

    def items(self, query: str, limit: int) -> list[FoundItem]:
        folded = query.casefold()
        titles = {title: item for item, (title, _) in reversed(self.item.items())}
        begin = [title for title in titles if title.casefold().startswith(folded)]
        near = difflib.get_close_matches(query, titles, limit, 0.4)
        chosen = list(dict.fromkeys([*begin, *near]))[:limit]
        return [FoundItem(titles[t], t, self.item[titles[t]][1]) for t in chosen]
