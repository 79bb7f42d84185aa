"""A run folder without a model, what answers for it, and a client of its server."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from fastapi.testclient import TestClient

from hatllm.config import Config
from hatllm.data.table_cache import table_hash
from hatllm.files import write_json
from hatllm.recommend.answers import catalogue_of, finder_of
from hatllm.recommend.recommender import FoundItem, Recommendation, Request
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet
from hatllm.serve.served_run import ServedRun
from hatllm.serve.service import Service

TITLES = [
    "Toy Story (1995)", "GoldenEye (1995)", "Twelve Monkeys (1995)", "Babe (1995)", "Seven (1995)",
]  # fmt: skip


class FakeRecommender:
    """Gives the catalogue in its order, and remembers how it was asked."""

    def __init__(self, titles: Sequence[str], config: Config) -> None:
        self.titles = titles
        self.config, self.answerer = config, None  # of an LLM run there would be one
        self.catalogue = catalogue_of(config)
        self.find = finder_of(config, self.catalogue)
        self.batches: list[list[Request]] = []
        self.before: Callable[[], Any] = lambda: None  # called before every answer

    def recommend_many(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        self.before()
        self.batches.append(list(requests))
        return [self._answer(request) for request in requests]

    def score(self, history: Sequence[Any], titles: Sequence[Any]) -> list[Recommendation]:
        self.before()
        return [self._of(rank, title) for rank, title in enumerate(titles, start=1)]

    def items(self, query: str, limit: int) -> list[FoundItem]:
        found = [title for title in self.titles if title.lower().startswith(query.lower()[:3])]
        places = [self.titles.index(title) + 1 for title in found[:limit]]
        return [FoundItem(place, self.titles[place - 1], f"s{place}") for place in places]

    def _answer(self, request: Request) -> list[Recommendation]:
        if "Seven (1995)" in request.history:
            raise ValueError("Seven is one too many")
        left_out = {*request.block, *(request.history if request.exclude_history else ())}
        allowed = self.titles if request.only is None else request.only
        kept = [title for title in allowed if title not in left_out]
        return [self._of(rank, title) for rank, title in enumerate(kept[: request.k], start=1)]

    def _of(self, rank: int, title: str) -> Recommendation:
        place = self.titles.index(title) + 1
        return Recommendation(rank, title, place, f"s{place}", -float(rank), -float(rank))


def write_run(folder: Path, titles: Sequence[str] = TITLES) -> Path:
    """What a server reads of a finished run; the settings come from elsewhere."""
    folder.mkdir(parents=True)
    ids = range(1, len(titles) + 1)
    items = pl.DataFrame(
        {"item_id": ids, "title": titles, "source_id": [f"s{i}" for i in ids]},
        schema={"item_id": pl.Int64, "title": pl.Utf8, "source_id": pl.Utf8},
    )
    items.write_parquet(folder / "items.parquet")
    identity = {"label": folder.name, "seed": 1, "catalogue_hash": table_hash(items)}
    write_json(folder / "run.json", identity)
    write_json(folder / "metrics.json", {"test": {"HR@10": 0.5}})
    pl.DataFrame(
        {"example_id": [7], "source_user_id": ["u7"], "history": [[1, 2]], "target": [3]}
    ).write_parquet(folder / "examples.parquet")
    pl.DataFrame({"example_id": [7], "target_rank": [4]}).write_parquet(
        folder / "predictions.parquet"
    )
    return folder


class Bench:
    """A server under test: its parts and a client."""

    def __init__(self, root: Path, config: Config, token: str | None, names: Sequence[str]) -> None:
        self.config, self.recommenders = config, {}
        folders = [write_run(root / name) for name in names]
        self.fleet = Fleet(folders, self.load)
        self.fleet.start()
        assert config.task.serve is not None
        self.service = Service.of(self.fleet, config.task.serve, token is not None)
        self.app = build_app(self.service, token)
        self.client = TestClient(
            self.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False
        )

    @property
    def recommender(self) -> FakeRecommender:
        """What answers for the default run."""
        return self.recommenders[self.fleet.run(None).name]

    def load(self, folder: Path) -> ServedRun:
        self.config.task.run_folder = str(folder)
        recommender = FakeRecommender(TITLES, self.config)
        self.recommenders[folder.name] = recommender
        return ServedRun(folder.name, self.config, recommender, None)
