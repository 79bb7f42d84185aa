"""What Prometheus reads, and the log: one JSON line a request."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hatllm_requests_total", "Answered requests.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "hatllm_request_seconds", "From arrival to answer.", ["route"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "hatllm_batch_size", "Requests of one model call.", buckets=SIZES,
            registry=self.registry,
        )  # fmt: skip
        self.model_seconds = Histogram(
            "hatllm_model_seconds", "Seconds of one model call.", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "hatllm_in_flight", "Requests that are not answered yet.", registry=self.registry
        )
        self.ready = Gauge("hatllm_ready", "1 = ready for requests.", registry=self.registry)
        self.queue = Gauge(
            "hatllm_queue_length", "Requests that wait for the model.", registry=self.registry
        )

    def observe_call(self, num_requests: int, seconds: float) -> None:
        """Count one model call."""
        self.batch_size.observe(num_requests)
        self.model_seconds.observe(seconds)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the length of the queue whenever somebody asks."""
        self.queue.set_function(length)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


def log_line(**fields: Any) -> None:
    """Write one JSON line to the error output."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
    print(json.dumps(line), file=sys.stderr, flush=True)
