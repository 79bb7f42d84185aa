"""Requests of all kinds, and what each has to be answered with."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx

from experiments.serving.client import Body

JSON = {"Content-Type": "application/json"}
LEFT = 0  # the client did not wait for an answer
SECONDS_TO_LEAVE = 0.05  # after which a client gives up
SECONDS_A_PIECE = 0.2  # of a slow body

Send = Callable[[httpx.AsyncClient, Body], Awaitable[int]]


async def good(client: httpx.AsyncClient, body: Body) -> int:
    """A history that the model answers."""
    return (await client.post("/v1/recommend", json=body)).status_code


async def score(client: httpx.AsyncClient, body: Body) -> int:
    """Candidates after a history."""
    asked = {"history": body["history"], "titles": body["history"]}
    return (await client.post("/v1/score", json=asked)).status_code


async def why(client: httpx.AsyncClient, body: Body) -> int:
    """How a title comes about."""
    asked = {"history": body["history"], "title": body["history"][0]}
    return (await client.post("/v1/why", json=asked)).status_code


async def what_if(client: httpx.AsyncClient, body: Body) -> int:
    """The same history at another temperature."""
    return (await client.post("/v1/recommend", json=body | {"temperature": 2.0})).status_code


async def search(client: httpx.AsyncClient, body: Body) -> int:
    """A title by near spelling."""
    query = {"query": body["history"][0][1:12] or "x"}
    return (await client.get("/v1/items", params=query)).status_code


async def unknown(client: httpx.AsyncClient, body: Body) -> int:
    """A title that no item has."""
    asked = {"history": [*body["history"], "No such title as this one"]}
    return (await client.post("/v1/recommend", json=asked)).status_code


async def wrong(client: httpx.AsyncClient, body: Body) -> int:
    """A field that does not fit."""
    return (await client.post("/v1/recommend", json=body | {"k": "ten"})).status_code


async def no_json(client: httpx.AsyncClient, body: Body) -> int:
    """Half a body."""
    return (await client.post("/v1/recommend", content='{"history": [', headers=JSON)).status_code


async def large(client: httpx.AsyncClient, body: Body) -> int:
    """A body above the limit."""
    return (await client.post("/v1/recommend", content=b" " * 300_000, headers=JSON)).status_code


async def slow(client: httpx.AsyncClient, body: Body) -> int:
    """A body in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        content = httpx.Request("POST", "http://x", json=body).content
        for start in range(0, len(content), 64):
            await asyncio.sleep(SECONDS_A_PIECE)
            yield content[start : start + 64]

    answer = await client.post("/v1/recommend", content=pieces(), headers=JSON)
    return answer.status_code


async def leaving(client: httpx.AsyncClient, body: Body) -> int:
    """A client that does not wait for its answer."""
    try:
        async with asyncio.timeout(SECONDS_TO_LEAVE):
            return await good(client, body)
    except TimeoutError:
        return LEFT


KINDS: dict[str, tuple[Send, int, frozenset[int]]] = {  # what, how often, right answers
    "good": (good, 50, frozenset({200})),
    "score": (score, 5, frozenset({200})),
    "why": (why, 5, frozenset({200})),
    "what if": (what_if, 5, frozenset({200})),
    "search": (search, 10, frozenset({200})),
    "unknown title": (unknown, 5, frozenset({422})),
    "wrong field": (wrong, 5, frozenset({422})),
    "no JSON": (no_json, 2, frozenset({400, 422})),
    "too large": (large, 1, frozenset({413})),
    "slow body": (slow, 5, frozenset({200})),
    "client leaves": (leaving, 7, frozenset({LEFT, 200})),
}


def drawn_kinds(seed: int) -> Callable[[], str]:
    """A function that draws the next kind, as often as KINDS says."""
    draw = random.Random(seed)
    names: Sequence[str] = list(KINDS)
    weights = [often for _, often, _ in KINDS.values()]
    return lambda: draw.choices(names, weights)[0]
