"""The same server on Ray Serve: whole copies of it on one or many machines, behind Ray's proxies.

Each replica loads every run and forms its own batches. Ray starts another where one dies, sends
requests to those that have least to do, and listens on the head and wherever a replica is. All
machines need the run folders and the cache at the same paths (a shared file system).
"""

import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType

import torch

from hatllm.config import Config, ServeConfig
from hatllm.processes import Terminated
from hatllm.ray_cluster import Room, missing_package, room_on_ray
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet
from hatllm.serve.gate import Gate
from hatllm.serve.listening import listening_socket, token_of
from hatllm.serve.loading import config_to_serve, load_run
from hatllm.serve.service import Service
from hatllm.serve.supervisor import handling
from hatllm.serve.telemetry import log_line

NAME = "hatllm"  # of the application on the cluster
SECONDS_TO_CLOSE = 5  # beyond the last answer
POLL_SECONDS = 2.0
SECONDS_TO_TELL = 30.0  # between two lines while the replicas start
REMOVED = "task.engine=ray: somebody has removed the application from the cluster"


def serve_on_ray(folders: Sequence[Path], config: Config, words: Sequence[str]) -> None:
    """Answer until SIGTERM or Ctrl-C, on the cluster that this process can reach.

    Args:
        folders: Finished runs, absolute, the first is the default.
        config: How to serve.
        words: The command line's; settings of decoding go on top of each run's.

    Raises:
        ValueError: If Ray Serve is not installed or runs already, the cluster has too little room,
            anybody could call without a token, or a run cannot be loaded.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise missing_package(error) from error
    settings = config.task.serve
    assert settings is not None
    build = _builder(folders, config, words)
    each = _room_for(settings.replicas, config_to_serve(folders[0], config, words))
    _check_alone(serve)
    listening_socket(settings).close()  # taken already: said here, and not in Ray's logs
    with handling(_interrupt):  # not before Ray, which sets a handler of its own
        try:
            _start(serve, settings, each, build)
            _wait(serve)
        finally:
            _remove(serve)
    log_line(event="ended")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _room_for(replicas: int, config: Config) -> Room:
    """What each replica takes; refuses more than there is room for."""
    room = room_on_ray(config)
    if replicas > room.num_actors:
        raise ValueError(
            f"task.serve.replicas={replicas}: the cluster has room for {room.num_actors} with "
            f"{room.each} {room.kind} each"
        )
    return room


def _check_alone(serve: ModuleType) -> None:
    """Serve's address is the cluster's: whoever came second would not have his own."""
    status = serve.status()
    if status.proxies or status.applications:
        raise ValueError(
            "task.engine=ray: Ray Serve runs on this cluster already, under its own address; end "
            "it first (serve shutdown --yes), or start another cluster"
        )


def _start(serve: ModuleType, settings: ServeConfig, each: Room, build: Callable[[], Gate]) -> None:
    """Start the replicas; they are ready where this returns.

    Raises:
        ValueError: If they cannot start; a run that cannot be loaded says why.
    """
    host = settings.host.strip("[]")
    patience = settings.request_timeout_seconds + SECONDS_TO_CLOSE  # the replica answers before
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": settings.port, "request_timeout_s": patience},
    )
    application = serve.deployment(serve.ingress(build)()).options(
        name=NAME, num_replicas=settings.replicas, ray_actor_options=each.options,
        max_constructor_retry_count=1,
        # The replica's own queue refuses with 429 before Ray's does with 503.
        max_ongoing_requests=2 * (settings.max_batch + settings.max_queue),
        max_queued_requests=settings.max_queue, graceful_shutdown_timeout_s=patience,
    ).bind()  # fmt: skip
    target = serve.RunTarget(application, name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_applications_running=False)
    told = time.monotonic()
    while not _is_running(serve):
        time.sleep(POLL_SECONDS)
        if time.monotonic() - told > SECONDS_TO_TELL:
            told = time.monotonic()
            log_line(event="starting", ray="; ".join(_messages(serve)))
    address = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    log_line(event="ready", address=address, replicas=settings.replicas)


def _is_running(serve: ModuleType) -> bool:
    """Whether every replica answers; one that failed is an error."""
    application = serve.status().applications.get(NAME)
    if application is None:
        raise ValueError(REMOVED)
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        messages = [*_messages(serve), application.message]
        reasons = [reason for message in messages if (reason := reason_of(message))]
        raise ValueError(f"task.engine=ray: {[*reasons, application.message][0]}")
    return bool(application.status == "RUNNING")


def _messages(serve: ModuleType) -> list[str]:
    """What Ray Serve says of the replicas; a whole traceback where one failed."""
    application = serve.status().applications.get(NAME)
    return [] if application is None else [one.message for one in application.deployments.values()]


def reason_of(message: str) -> str | None:
    """The error itself in a message that holds a replica's traceback; None = there is none."""
    found = re.findall(r"^([\w.]*(?:Error|Exception))(?:: (.*))?$", message, flags=re.MULTILINE)
    reasons = [text or name for name, text in found if not text.startswith("Traceback")]
    return reasons[-1] if reasons else None


def _wait(serve: ModuleType) -> None:
    """Until a signal; Ray replaces replicas that die meanwhile."""
    try:
        while NAME in serve.status().applications:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # SIGTERM is one, too
        return
    raise ValueError(REMOVED)


def _remove(serve: ModuleType) -> None:
    """End once what is in flight is answered."""
    while NAME in serve.status().applications:
        with suppress(TimeoutError):  # Ray itself waits for a minute
            serve.delete(NAME)
    serve.shutdown()


def _builder(folders: Sequence[Path], config: Config, words: Sequence[str]) -> Callable[[], Gate]:
    """What a replica calls: the whole server with every run loaded."""
    settings = config.task.serve
    assert settings is not None
    token = token_of(settings)

    def build() -> Gate:
        torch.set_num_threads(config.num_threads or 1)
        fleet = Fleet(folders, partial(load_run, config=config, words=words))
        fleet.start()
        if fleet.failure is not None:
            raise fleet.failure
        # A reload would reach one replica of several.
        return build_app(Service.of(fleet, settings, may_reload=False), token)

    return build
