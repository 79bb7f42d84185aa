"""Commands in processes forked from this one, which has the packages imported already."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.global_hydra import GlobalHydra

import hatllm.tasks.evaluate
import hatllm.tasks.experiment
import hatllm.tasks.prepare
import hatllm.tasks.table
import hatllm.tasks.train  # noqa: F401
import run
from hatllm.many import cell_runner


class Forked:
    """`python run.py WORDS` in a process forked from this one, with what `Popen` offers."""

    def __init__(self, words: list[str], folder: Path | None = None, **_: Any) -> None:
        """Start it.

        Args:
            words: Overrides; with the program and the script before them where a run starts a cell.
            folder: Where it runs and leaves its log, as the first of a session; None = a cell, in
                the folder and the session of the run that starts it, a process group of its own.
        """
        if folder is not None:
            self.log = folder / "log.txt"
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            if folder is None:
                os.setpgid(0, 0)
                code = _run(words[2:])
            else:
                os.setsid()
                os.chdir(folder)
                os.environ["HATLLM_CACHE"] = str(folder / "cache")
                os.environ.pop("HATLLM_DATA_ROOT", None)
                # Ignored, and inherited so, where the soak itself runs in the background.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = _run(words)
        except BaseException:  # as Python itself would end: nothing below may return from a fork
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative where a signal killed it.

        Raises:
            subprocess.TimeoutExpired: If it still runs after so many seconds.
        """
        end = None if timeout is None else time.perf_counter() + timeout
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.perf_counter() > end:
                raise subprocess.TimeoutExpired("run.py", timeout or 0)
            else:
                time.sleep(0.002)
        return self.code

    def wait_for_write(self, places: Callable[[], set[Any]], number: int, delay_s: float) -> int:
        """As `wait`, until files have changed so many times and a moment has passed.

        Args:
            places: Gives what changes: names and times of files.
            number: Changes to wait for.
            delay_s: Seconds to wait after them.

        Raises:
            subprocess.TimeoutExpired: At that moment.
        """
        seen = places()
        while number:
            try:
                return self.wait(0.001)
            except subprocess.TimeoutExpired:
                now = places()
                number -= now != seen
                seen = now
        return self.wait(delay_s)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)


def _run(words: list[str]) -> int:
    """`run.py` in this process, its cells forked; returns the exit code."""
    cell_runner.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired
    )
    sys.argv = ["run.py", *words]
    GlobalHydra.instance().clear()
    try:
        with run.errors_in_one_line():
            run.run()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def kill(session: int, whole_machine: bool, number: int = signal.SIGKILL) -> None:
    """A signal to a session's first process group, or to all its processes at once."""
    groups = {session}
    if whole_machine:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                _, _, group, of_session, *_ = stat.read_text().rpartition(")")[2].split()
            except (OSError, ValueError):
                continue
            if int(of_session) == session:
                groups.add(int(group))
    for group in groups:
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            continue


def finish(folder: Path, words: list[str]) -> str | None:
    """Run undisturbed; the end of its log if it fails."""
    process = Forked(words, folder)
    return process.log.read_text(errors="replace")[-3000:] if process.wait() else None


def in_child(function: Callable[[Path], Any], folder: Path) -> Any:
    """What a function returns (JSON), called in a process of its own.

    Polars starts threads when it is first used, and a process with threads must not fork.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with os.fdopen(writer, "w") as answer:
                answer.write(json.dumps(function(folder)))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return json.loads(text)
