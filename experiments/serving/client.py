"""Requests over loopback: one after the other, as fast as answers come, or at a given rate."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

Body = dict[str, Any]
SECONDS_IDLE = 2.0  # of a connection before it is dropped; the server drops them after 5
PATIENCE = 120.0  # seconds for one answer, above the server's own limit


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    status: int  # 0 = no answer
    seconds: float  # from when it was due to its answer: waiting for a free socket counts
    batch_size: int  # requests decoded with it; 0 = none


async def ask(client: httpx.AsyncClient, body: Body, due: float) -> Outcome:
    """Send one request and wait."""
    try:
        answer = await client.post("/v1/recommend", json=body)
    except httpx.HTTPError:
        return Outcome(0, time.perf_counter() - due, 0)
    size = answer.json()["batch_size"] if answer.status_code == 200 else 0
    return Outcome(answer.status_code, time.perf_counter() - due, size)


def client_of(address: str, num_sockets: int) -> httpx.AsyncClient:
    """A client that keeps so many connections at most."""
    limits = httpx.Limits(
        max_connections=num_sockets, max_keepalive_connections=num_sockets,
        keepalive_expiry=SECONDS_IDLE,
    )  # fmt: skip
    return httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits)


async def one_by_one(address: str, bodies: Sequence[Body]) -> list[Outcome]:
    """Each request when the one before is answered."""
    async with client_of(address, 1) as client:
        return [await ask(client, body, time.perf_counter()) for body in bodies]


async def at_once(address: str, bodies: Sequence[Body], num_clients: int) -> list[Outcome]:
    """As many clients, each asking again when it is answered: what the server can do."""
    waiting = list(reversed(bodies))
    found: list[Outcome] = []

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            found.append(await ask(client, waiting.pop(), time.perf_counter()))

    async with client_of(address, num_clients) as client:
        await asyncio.gather(*(work(client) for _ in range(num_clients)))
    return found


async def arrivals(rate: float, seconds: float, seed: int) -> AsyncIterator[float]:
    """Come back when the next request is due (Poisson arrivals), with when that was.

    Args:
        rate: Requests a second.
        seconds: How long they come.
        seed: Of the arrivals.
    """
    draw, start, due = random.Random(seed), time.perf_counter(), 0.0
    while (due := due + draw.expovariate(rate)) < seconds:
        if (wait := start + due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        yield start + due


async def at_rate(
    address: str, bodies: Sequence[Body], rate: float, seconds: float, num_sockets: int, seed: int
) -> list[Outcome]:
    """Requests that come whether or not the server keeps up.

    Args:
        address: Of the server.
        bodies: What is asked, over and over.
        rate: Requests a second.
        seconds: How long they come.
        num_sockets: Connections at most.
        seed: Of the arrivals.
    """
    tasks: list[asyncio.Task[Outcome]] = []
    async with client_of(address, num_sockets) as client:
        async for due in arrivals(rate, seconds, seed):
            body = bodies[len(tasks) % len(bodies)]
            tasks.append(asyncio.create_task(ask(client, body, due)))
        return list(await asyncio.gather(*tasks))
