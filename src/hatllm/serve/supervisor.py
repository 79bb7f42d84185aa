"""A small parent that owns the socket: where the serving process dies, it starts another.

uvicorn's own supervisor does not fit: it starts a worker that dies over and over without end, it
kills one that holds Python's lock for some seconds (which loading a model may do), and its workers
end before they have answered everybody.

Connections that come while nobody serves wait in the socket; what the dead process had in flight
is lost, and its clients see a closed connection.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from socket import socket
from types import FrameType

from hatllm.processes import REFUSED
from hatllm.serve.telemetry import log_line

WINDOW_SECONDS = 600.0  # in which restarts are counted
ENDING = (signal.SIGINT, signal.SIGTERM)
# Not forked: threads of torch and of the GPU do not survive that.
SPAWN = multiprocessing.get_context("spawn")

Answer = Callable[[socket], None]  # serves until SIGTERM; it travels to the child by pickle


class Supervisor:
    """Keeps one serving process alive until it is told to end."""

    def __init__(self, answer: Answer, max_restarts: int) -> None:
        """Take what the child does.

        Args:
            answer: Serves until SIGTERM.
            max_restarts: Within WINDOW_SECONDS; one death more is an error.
        """
        self.answer, self.max_restarts = answer, max_restarts
        self.child: SpawnProcess | None = None
        self.is_ending = False
        self._deaths: deque[float] = deque()

    def run(self, listening: socket) -> None:
        """Serve until SIGTERM or Ctrl-C, then until the child has answered everybody.

        Args:
            listening: What the child takes connections from.

        Raises:
            ValueError: What the child was refused with, such as a run that cannot be loaded.
            OSError: As above, or if the child died too often, or while it was ending.
        """
        with handling(self._end):
            while (reason := self._live(listening)) is not None:
                self._count(reason)
                log_line(event="restarting", reason=reason)

    def _live(self, listening: socket) -> str | None:
        """One child from start to end; None = it ended as it should, else how it died."""
        receiver, sender = SPAWN.Pipe(duplex=False)
        child = SPAWN.Process(target=_serve, args=(self.answer, listening, sender))
        # Ctrl-C reaches every process of a terminal; the child leaves it to its parent. Python's
        # own tracker, started with the first child, would unblock the signal again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        child.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sender.close()
        self.child = child
        if self.is_ending:  # the signal came while there was no child
            child.terminate()
        child.join()
        if (error := _received(receiver)) is not None:
            raise error
        code = child.exitcode or 0
        if code == 0 or (self.is_ending and code == -signal.SIGTERM):
            return None
        if self.is_ending:
            raise ChildProcessError(f"the server {_how(code)} before everybody was answered")
        return _how(code)

    def _count(self, reason: str) -> None:
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > WINDOW_SECONDS:
            self._deaths.popleft()
        self._deaths.append(now)
        if len(self._deaths) > self.max_restarts:
            raise ChildProcessError(
                f"the server {reason}, and task.serve.max_restarts={self.max_restarts} within "
                f"{WINDOW_SECONDS / 60:g} minutes are used up"
            )

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; the second makes the child end at once."""
        self.is_ending = True
        if self.child is not None:
            self.child.terminate()


def _serve(answer: Answer, listening: socket, sender: Connection) -> None:
    """What the child does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer(listening)
    except (ValueError, OSError, MemoryError) as error:  # of the user's; the parent says it
        is_plain = type(error).__module__ == "builtins"  # others might not travel
        sender.send(error if is_plain else ValueError(str(error)))
        sys.exit(REFUSED)


def _end_with_parent() -> None:
    """Nobody is left to pass signals on: end as after SIGTERM."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _received(receiver: Connection) -> Exception | None:
    try:
        error: Exception = receiver.recv()
    except EOFError:  # the child had nothing to say
        return None
    return error


def _how(code: int) -> str:
    """How a process ended, in words."""
    if code > 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C call a handler meanwhile."""
    before = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
