"""From settings to a process that listens, and from SIGTERM to one that has answered everybody."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from socket import socket
from types import FrameType

import uvicorn

from hatllm.config import ServeConfig
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet, Load
from hatllm.serve.gate import Gate
from hatllm.serve.listening import token_of
from hatllm.serve.service import Service
from hatllm.serve.telemetry import log_line

KEEP_ALIVE_SECONDS = 5
SECONDS_TO_CLOSE = 5  # of connections, once every request is answered


class Server(uvicorn.Server):
    """uvicorn that goes on listening until what is in flight is answered."""

    def __init__(self, gate: Gate, service: Service, config: ServeConfig) -> None:
        # loop, http: not whatever else is installed, so that limits are those the tests see.
        super().__init__(
            uvicorn.Config(
                gate, host=config.host, port=config.port, access_log=False, log_level="warning",
                server_header=False, loop="asyncio", http="h11",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SECONDS_TO_CLOSE, lifespan="off",
            )
        )  # fmt: skip
        self.gate, self.service = gate, service

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            log_line(event="listening", address=f"http://{name}:{port}", pid=os.getpid())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal: no new requests; the second: at once."""
        if self.gate.is_ending:
            self.should_exit = True
        self.gate.is_ending = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: asked, and everybody is answered; or the runs cannot be loaded."""
        is_done = self.gate.is_ending and self.gate.in_flight == 0
        has_failed = self.service.fleet.failure is not None
        return await super().on_tick(counter) or is_done or has_failed


def serve_runs(folders: Sequence[Path], load: Load, config: ServeConfig, listening: socket) -> None:
    """Answer until SIGTERM or Ctrl-C.

    Args:
        folders: Finished runs, the first is the default.
        load: Makes a run ready.
        config: What to refuse.
        listening: What connections come from; closed at the end.

    Raises:
        ValueError: If a run cannot be loaded, or anybody could call without a token.
    """
    token = token_of(config)
    fleet = Fleet(folders, load)
    service = Service.of(fleet, config, may_reload=token is not None)
    server = Server(build_app(service, token), service, config)
    threading.Thread(target=_load, args=(fleet,), daemon=True).start()
    server.run([listening])
    if fleet.failure is not None:
        raise fleet.failure
    service.batcher.close()
    log_line(event="ended")


def _load(fleet: Fleet) -> None:
    fleet.start()
    if fleet.is_ready:
        log_line(event="ready", runs=list(fleet.runs))
