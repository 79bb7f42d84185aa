"""`python run.py task=serve` as a process of its own, and what can be seen of it from outside."""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 300


class ServerProcess:
    """A server that is ready."""

    def __init__(self, words: Sequence[str]) -> None:
        """Start it on a free port and wait until it is ready.

        Args:
            words: Settings of run.py.

        Raises:
            RuntimeError: If it ends instead.
        """
        command = [sys.executable, str(ROOT / "run.py"), "task=serve", "task.serve.port=0", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._events: Queue[dict[str, Any]] = Queue()
        self._last: deque[str] = deque(maxlen=5)
        # Somebody has to read the log, or its pipe fills up and the server waits.
        threading.Thread(target=self._read, daemon=True).start()
        told = self._event("listening")
        self.address, self.pid = told["address"], told["pid"]  # of the process that answers
        self._event("ready")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._last.append(line.rstrip())
            if line.startswith("{") and "event" in (told := json.loads(line)):
                self._events.put(told)

    def _event(self, name: str) -> dict[str, Any]:
        while True:
            try:
                told = self._events.get(timeout=SECONDS_TO_START)
            except Empty:
                raise RuntimeError("no server: " + " | ".join(self._last)) from None
            if told["event"] == name:
                return told

    @property
    def memory_mb(self) -> float:
        """Resident memory of the process that answers, as Linux tells it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    @property
    def num_open(self) -> int:
        """Files and sockets that the process has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def processor_seconds(self) -> float:
        """Processor time that the process has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS_TO_START)


@contextmanager
def serving(words: Sequence[str]) -> Iterator[ServerProcess]:
    """A server for a while."""
    server = ServerProcess(words)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end()
