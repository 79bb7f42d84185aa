"""Requests that wait become batches, and one thread calls the models, one batch at a time.

A batch is the oldest request and those behind it that the same function answers. torch computes
with all its threads for one call, so that a second call beside it would make both slower.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from hatllm.serve.refusal import Refusal

# From what several requests ask to what each is answered, in their order.
Answer = Callable[[Sequence[Any]], Sequence[Any]]
SLOWEST_RETRY = 60  # seconds that a refused client is asked to wait at most


@dataclass
class Job:
    """One request that waits for the model."""

    answer: Answer
    asked: Any
    deadline: float  # of time.monotonic()
    joins: bool  # whether it may share a call with others
    future: "Future[Any]" = field(default_factory=Future)
    begun: float = field(default_factory=time.monotonic)
    batch_size: int = 0  # requests of the call that answered it
    waited: float = 0.0  # seconds before the call


class Batcher:
    """A bounded queue and the thread that empties it."""

    def __init__(
        self,
        max_batch: int,
        max_wait_seconds: float,
        max_queue: int,
        observe: Callable[[int, float], None],
    ) -> None:
        """Start the thread.

        Args:
            max_batch: Requests of one call, at most.
            max_wait_seconds: How long the first of a batch waits for others.
            max_queue: Requests that wait, at most.
            observe: Told the requests and the seconds of every call.
        """
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait_seconds, max_queue
        self.observe = observe
        self.seconds_a_request = 0.0  # of the latest calls, a moving mean
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def submit(self, answer: Answer, asked: Any, deadline: float, joins: bool = True) -> Job:
        """Put a request behind the others.

        Args:
            answer: What answers it; requests of one function are answered together.
            asked: What is handed to it.
            deadline: Of time.monotonic(); later it is not begun.
            joins: Whether it may share a call with others.

        Raises:
            Refusal: If the queue is full (429), or the server ends (503).
        """
        job = Job(answer, asked, deadline, joins)
        with self._changed:
            if self._is_closed:
                raise Refusal(503, "ending", "the server is ending", retry_after=1)
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()
        return job

    def check_room(self) -> None:
        """Refuse where the queue is full.

        Raises:
            Refusal: 429, with the seconds after which to come again.
        """
        if len(self._waiting) >= self.max_queue:
            message = f"{self.max_queue} requests wait already; try again later"
            raise Refusal(429, "queue_full", message, retry_after=self._seconds_to_empty())

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _seconds_to_empty(self) -> int:
        return min(max(1, ceil(len(self._waiting) * self.seconds_a_request)), SLOWEST_RETRY)

    def _work(self) -> None:
        while batch := self._next_batch():
            live = [job for job in batch if _is_wanted(job)]
            if live:
                self._call(live)

    def _next_batch(self) -> list[Job]:
        """The oldest request and those that join it; empty = the end."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if not self._waiting:
                return []
            first = self._waiting[0]
            until = first.begun + self.max_wait
            while self._may_grow(first) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            batch = self._joining(first)[: self.max_batch]
            taken = {id(job) for job in batch}
            self._waiting = deque(job for job in self._waiting if id(job) not in taken)
            return batch

    def _may_grow(self, first: Job) -> bool:
        is_full = len(self._joining(first)) >= self.max_batch
        return first.joins and not is_full and not self._is_closed

    def _joining(self, first: Job) -> list[Job]:
        if not first.joins:
            return [first]
        return [job for job in self._waiting if job.joins and job.answer == first.answer]

    def _call(self, jobs: list[Job]) -> None:
        """Answer a batch; where it cannot be answered as a whole, each request on its own."""
        start = time.monotonic()
        for job in jobs:
            job.batch_size, job.waited = len(jobs), start - job.begun
        try:
            answers = jobs[0].answer([job.asked for job in jobs])
        except Exception as error:  # whatever a model raises belongs to those who asked
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self._call([job])
            return
        seconds = time.monotonic() - start
        mean = seconds / len(jobs)
        self.seconds_a_request += (mean - self.seconds_a_request) / (
            4 if self.seconds_a_request else 1
        )
        self.observe(len(jobs), seconds)
        for job, found in zip(jobs, answers, strict=True):
            job.future.set_result(found)


def _is_wanted(job: Job) -> bool:
    """Whether somebody waits for the answer still; from here on nobody can withdraw it."""
    if time.monotonic() >= job.deadline:
        job.future.cancel()
    return job.future.set_running_or_notify_cancel()
