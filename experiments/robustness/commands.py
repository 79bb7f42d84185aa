"""The project's command in processes of its own: run to its end, or killed on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(words: Sequence[str]) -> list[str]:
    """``python run.py WORDS`` with this Python."""
    return [sys.executable, str(ROOT / "run.py"), *words]


def environment() -> dict[str, str]:
    """One thread a process, so that sums are added up in one order."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(words: Sequence[str]) -> None:
    """Run the command to its end.

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    done = subprocess.run(command(words), env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"run.py {' '.join(words)}: {done.stderr[-2000:]}")


def run_killed(words: Sequence[str], reached: Callable[[], bool]) -> None:
    """Start the command and kill all of its processes (SIGKILL) at a given point.

    Args:
        words: Of the command.
        reached: Whether the point is reached; asked a hundred times a second.

    Raises:
        RuntimeError: If the command ends before.
    """
    process = subprocess.Popen(
        command(words), env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not reached():
        if process.poll() is not None:
            _, said = process.communicate()
            raise RuntimeError(f"run.py {' '.join(words)} ended too early: {said[-2000:]}")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
