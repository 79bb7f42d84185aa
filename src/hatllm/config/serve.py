"""Settings of ``conf/task/serve.yaml`` under ``task.serve``."""

from dataclasses import dataclass
from ipaddress import ip_address

from hatllm.config.checks import check_positive, check_range

MOST_ANSWERS = 100  # K of one request
MOST_ITEMS = 10_000  # entries of any list of a request
LARGEST_BODY = 64 * 1024 * 1024  # bytes


@dataclass
class ServeConfig:
    """What a server answers, how requests become batches, and what it refuses."""

    host: str  # address that it listens on
    port: int  # 0 = any free one
    max_batch: int  # requests that are decoded together
    max_wait_ms: float  # how long the first request of a batch waits for others
    max_queue: int  # requests that wait; more are refused with 429
    request_timeout_seconds: float  # from arrival to answer
    max_body_bytes: int  # of a request
    max_history: int  # entries of a request's history
    max_candidates: int  # entries of a request's only, block and titles
    max_k: int  # titles a request may ask for
    max_restarts: int  # of the serving process within ten minutes; 0 = no process beside it
    replicas: int  # task.engine=ray: whole copies of the server
    log_titles: bool  # whether the log holds what was asked for
    cors_origins: list[str]  # pages of other origins that may call; [] = none

    def __post_init__(self) -> None:
        check_range("task.serve.port", self.port, 0, 65_535)
        check_range("task.serve.max_batch", self.max_batch, 1)
        check_range("task.serve.max_wait_ms", self.max_wait_ms, 0.0, 10_000.0)
        check_range("task.serve.max_queue", self.max_queue, 1)
        check_positive("task.serve.request_timeout_seconds", self.request_timeout_seconds)
        check_range("task.serve.max_body_bytes", self.max_body_bytes, 1, LARGEST_BODY)
        check_range("task.serve.max_history", self.max_history, 1, MOST_ITEMS)
        check_range("task.serve.max_candidates", self.max_candidates, 1, MOST_ITEMS)
        check_range("task.serve.max_k", self.max_k, 1, MOST_ANSWERS)
        check_range("task.serve.max_restarts", self.max_restarts, 0, 1000)
        check_range("task.serve.replicas", self.replicas, 1)
        for origin in self.cors_origins:
            if not origin.startswith(("http://", "https://")):
                raise ValueError(
                    f"task.serve.cors_origins={self.cors_origins} must hold origins such as "
                    f"https://example.org, not {origin!r}"
                )

    @property
    def is_local(self) -> bool:
        """Whether nobody but this machine can call."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
