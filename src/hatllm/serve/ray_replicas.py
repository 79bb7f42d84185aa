"""The same server on Ray Serve: whole copies of it on one or many machines, behind Ray's proxies.

Each replica loads every run and forms its own batches. Ray starts another where one dies, sends
requests to those that have least to do, and listens on every machine of the cluster. All machines
need the run folders and the cache at the same paths (a shared file system).
"""

import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from hatllm.config import Config, ServeConfig
from hatllm.processes import Terminated
from hatllm.ray_cluster import Room, missing_package, room_on_ray
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet
from hatllm.serve.gate import Gate
from hatllm.serve.listening import listening_socket, token_of
from hatllm.serve.loading import load_run
from hatllm.serve.service import Service
from hatllm.serve.supervisor import handling
from hatllm.serve.telemetry import log_line

NAME = "hatllm"  # of the application on the cluster
SECONDS_TO_CLOSE = 5  # beyond the last answer


def serve_on_ray(folders: Sequence[Path], config: Config, words: Sequence[str]) -> None:
    """Answer until SIGTERM or Ctrl-C, on the cluster that this process can reach.

    Args:
        folders: Finished runs, absolute, the first is the default.
        config: How to serve.
        words: The command line's; settings of decoding go on top of each run's.

    Raises:
        ValueError: If Ray Serve is not installed, the cluster has too little room, anybody could
            call without a token, or a run cannot be loaded.
    """
    settings = config.task.serve
    assert settings is not None
    try:
        from ray import serve
    except ImportError as error:
        raise missing_package(error) from error
    build = _builder(folders, config, words)
    room = room_on_ray(config)
    num_replicas = settings.replicas or room.num_actors
    if num_replicas > room.num_actors:
        raise ValueError(
            f"task.serve.replicas={num_replicas}: the cluster has room for {room.num_actors} with "
            f"{room.each} {room.kind} each"
        )
    if not serve.status().proxies:
        listening_socket(settings).close()  # taken already: said here, and not in Ray's logs
    is_ready = False
    try:
        with handling(_interrupt):
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": settings.host, "port": settings.port},
            )
            application = _application(serve, settings, num_replicas, room, build)
            _run(application, serve)
            is_ready = True
            address = f"http://{settings.host}:{settings.port}"
            log_line(event="ready", address=address, replicas=num_replicas)
            threading.Event().wait()
    except KeyboardInterrupt:  # SIGTERM is one, too
        serve.delete(NAME)  # what is in flight is answered
        if not is_ready:
            raise
    log_line(event="ended")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _application(
    serve: ModuleType,
    settings: ServeConfig,
    num_replicas: int,
    room: Room,
    build: Callable[[], Gate],
) -> Any:
    """What Ray Serve runs: a deployment of whole servers."""
    replica = serve.deployment(serve.ingress(build)())
    return replica.options(
        name=NAME, num_replicas=num_replicas, ray_actor_options=room.options,
        max_constructor_retry_count=1,
        # The replica's own queue refuses with 429 before Ray's does with 503.
        max_ongoing_requests=2 * (settings.max_batch + settings.max_queue),
        max_queued_requests=settings.max_queue,
        graceful_shutdown_timeout_s=settings.request_timeout_seconds + SECONDS_TO_CLOSE,
    ).bind()  # fmt: skip


def _run(application: Any, serve: ModuleType) -> None:
    """Start the replicas; they are ready where this returns.

    Raises:
        ValueError: If none could be; a run that cannot be loaded says why.
    """
    try:
        serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        serve.delete(NAME)
        raise ValueError(f"task.engine=ray: the replicas did not start: {error}") from error


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
