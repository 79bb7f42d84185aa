"""What the routes share: runs, queue and figures; and how a request waits for its answer."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from hatllm.config import ServeConfig
from hatllm.serve.batcher import Answer, Batcher, Job
from hatllm.serve.fleet import Fleet
from hatllm.serve.gate import Passage
from hatllm.serve.refusal import Refusal
from hatllm.serve.schema import Entry
from hatllm.serve.telemetry import Telemetry

GONE = 499  # what nginx calls a client that left before its answer


@dataclass
class Service:
    """One server's parts."""

    fleet: Fleet
    batcher: Batcher
    telemetry: Telemetry
    config: ServeConfig
    may_reload: bool  # only where a token is set

    @classmethod
    def of(cls, fleet: Fleet, config: ServeConfig, may_reload: bool) -> "Service":
        """Start the thread that calls the models."""
        telemetry = Telemetry()
        batcher = Batcher(
            config.max_batch, config.max_wait_ms / 1000, config.max_queue, telemetry.observe_call
        )
        telemetry.watch_queue(lambda: batcher.num_waiting)
        return cls(fleet, batcher, telemetry, config, may_reload)

    async def ask(
        self, request: Request, answer: Answer, asked: Any, joins: bool
    ) -> tuple[Any, Job]:
        """Wait for the model's answer.

        Args:
            request: Of the client; if it leaves, nothing is computed for it any more.
            answer: What answers, see `Batcher.submit`.
            asked: What is handed to it.
            joins: Whether it may share a call with others.

        Returns:
            The answer, and what is known of how it came about.

        Raises:
            Refusal: If the queue is full, or the time is over, or what is asked does not fit.
        """
        passage = passage_of(request)
        deadline = passage.start + self.config.request_timeout_seconds
        job = self.batcher.submit(answer, asked, deadline, joins)
        waiting = asyncio.wrap_future(job.future)
        left = asyncio.ensure_future(_client_left(request))
        seconds = max(deadline - time.monotonic(), 0)
        try:
            await asyncio.wait({waiting, left}, timeout=seconds, return_when="FIRST_COMPLETED")
            return self._answer_of(job, left.done()), job
        finally:
            left.cancel()
            job.future.cancel()  # nothing, where it is answered
            passage.log |= {"batch": job.batch_size, "waited": round(job.waited, 4)}

    def _answer_of(self, job: Job, has_left: bool) -> Any:
        future = job.future
        if future.done() and not future.cancelled():
            try:
                return future.result()
            except ValueError as error:  # what the model refuses of this request
                raise Refusal(422, "refused", str(error)) from error
        if has_left:
            raise Refusal(GONE, "client_left", "nobody waits for the answer")
        limit = self.config.request_timeout_seconds
        raise Refusal(504, "timeout", f"no answer within {limit} seconds", retry_after=1)


def check_length(field: str, entries: list[Entry] | None, limit: int) -> None:
    """Refuse a list that is longer than the server takes.

    Raises:
        Refusal: 422.
    """
    if entries is not None and len(entries) > limit:
        message = f"{field} has {len(entries)} entries; at most {limit} are taken"
        raise Refusal(422, "too_long", message, field)


def passage_of(request: Request) -> Passage:
    """The request as the gate knows it."""
    passage = request.scope["state"]["passage"]
    assert isinstance(passage, Passage)
    return passage


async def _client_left(request: Request) -> None:
    """End when the client closes the connection; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
