"""Ctrl-C, SIGTERM and SLURM's warning: what is under way is finished and saved, then the run ends.

Lightning's own handlers save between any two instructions, be it in the middle of an optimizer
step; here a step is finished first, so that the next start goes on as if there had been one.
"""

import os
import signal
import subprocess
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from hatllm.processes import INTERRUPTED, TERMINATED


class Stopped(SystemExit):
    """The run ended because it was asked to, with all that was done on disk."""


class StopSignals:
    """Listens, as a context, for Ctrl-C, SIGTERM and, under SLURM, ``--signal=USR1@300``.

    While an optimizer step is under way a signal is only noted, and whoever trains asks after the
    step; at any other time the run ends at once. A second Ctrl-C ends the process where it is.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the first signal that came
        self.waits = False  # whether there is something to finish first
        self.where = "before training"  # a signal that finds nothing to finish stops the run
        self.is_ending = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.listen()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
        if isinstance(error, Stopped) and rank_zero_only.rank == 0:
            print(f"\nstopped {self.where}; the same command goes on from there", flush=True)
            if self.asked == signal.SIGUSR1:
                _queue_again()

    def listen(self) -> None:
        """Take the signals, also from Lightning, which installs a handler of its own."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python has handlers in the main thread only
        on_slurm = [signal.SIGUSR1] if SLURMEnvironment.detect() else []
        for number in (signal.SIGINT, signal.SIGTERM, *on_slurm):
            self.before.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._hear)

    def finish_first(self) -> None:
        """From here on there is a step to finish."""
        self.waits = True

    def at_once(self, where: str) -> None:
        """From here on there is nothing to finish: end where a signal has come or comes.

        Args:
            where: Place and what is saved, for the message.

        Raises:
            Stopped: If a signal has come.
        """
        self.where, self.waits = where, False
        if self.asked is not None:
            self.end(where)

    def end(self, where: str) -> NoReturn:
        """End the run.

        Args:
            where: Place, for the message.

        Raises:
            Stopped: Always, on the first process with the exit code of the signal. Others end with
                0: Lightning kills the first process where another one has failed.
        """
        self.where, self.waits, self.is_ending = where, False, True
        code = TERMINATED if self.asked == signal.SIGTERM else INTERRUPTED
        raise Stopped(code if rank_zero_only.rank == 0 else 0)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked == signal.SIGINT:
            os._exit(INTERRUPTED)
        is_first, self.asked = self.asked is None, self.asked or number
        if self.is_ending:
            return
        if not self.waits:
            self.end(self.where)
        if is_first and number == signal.SIGINT and rank_zero_only.rank == 0:
            # Not print(): a handler may interrupt one.
            os.write(2, b"\nfinishing the step, then saving; Ctrl-C once more ends at once\n")


def _queue_again() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", job], check=True)
