"""What the server needs of a recommender."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Request:
    history: list[Any]
    k: int
    exclude_history: bool
    only: list[Any] | None
    block: list[Any]


class Recommendation(NamedTuple):
    rank: int
    title: str
    item_id: int
    source_id: str
    score: float
    log_prob: float


class Recommends(Protocol):
    def recommend_many(self, requests: Sequence[Request]) -> list[list[Recommendation]]: ...

    def score(self, history: list[Any], titles: list[Any]) -> list[Recommendation]: ...

    def items(self, query: str, limit: int) -> "list[FoundItem]": ...


class FoundItem(NamedTuple):
    item_id: int
    title: str
    source_id: str
