"""What Ctrl-C, SIGTERM and SLURM's warning do: the step under way ends and is saved, then the run.

Lightning's own handlers save between any two instructions, be it in the middle of an optimizer
step; here a step is finished first, so that the next start goes on as if there had been one.
"""

import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from hatllm.tasks.checkpoints import Checkpoints, ends_step
from hatllm.tasks.child import INTERRUPTED, TERMINATED

WHILE_TRAINING = (signal.SIGINT, signal.SIGTERM)


class StopSignals(lightning.Callback):
    """Ends training after the step in which a signal came, on all processes after the same one.

    A second Ctrl-C ends at once. At any other time there is nothing to save that is not on disk:
    Ctrl-C and SIGTERM do what they always do, and SIGUSR1 (``sbatch --requeue
    --signal=USR1@300``), which is listened for under SLURM only, queues the job again.
    """

    def __init__(self) -> None:
        """Listen for SLURM's warning from now on."""
        self.num_steps = 0  # of the whole run, for the message
        self.checkpoints: Checkpoints | None = None  # saves the step; None = no training
        self.asked: int | None = None
        self.is_training = False
        self.before: dict[int, Any] = {}
        if SLURMEnvironment.detect():
            signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        if not self.is_training:
            self._end()
        elif rank_zero_only.rank == 0 and number != signal.SIGUSR1:
            print("\nfinishing the step, then saving; Ctrl-C once more ends at once", flush=True)

    def _end(self) -> None:
        if self.asked == signal.SIGUSR1 and rank_zero_only.rank == 0:
            job = os.environ["SLURM_JOB_ID"]
            if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
                job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            subprocess.run(["scontrol", "requeue", job], check=True)
        raise SystemExit(TERMINATED if self.asked == signal.SIGTERM else INTERRUPTED)

    def on_train_start(self, *_: Any) -> None:
        """From here on there is a step to finish; Lightning has installed its handlers by now."""
        self.is_training = True
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in WHILE_TRAINING}

    def on_train_end(self, *_: Any) -> None:
        """Nothing is lost from here on."""
        self._listen_no_more()
        if self.asked is not None:
            self._end()

    def on_exception(self, *_: Any) -> None:
        """However training ends, others' handlers come back."""
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        self.is_training = False
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Save and end after a whole step."""
        if ends_step(trainer, rest[-1]) and self._is_asked(trainer):
            assert self.checkpoints is not None
            self.checkpoints.save(trainer)
            self._say_and_end(trainer)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        """End after a validation; it has been saved."""
        if self.is_training and self._is_asked(trainer):
            self._say_and_end(trainer)

    def _is_asked(self, trainer: Any) -> bool:
        is_asked = self.asked is not None
        if trainer.world_size > 1:
            is_asked = trainer.strategy.reduce_boolean_decision(is_asked, all=False)
        return is_asked

    def _say_and_end(self, trainer: Any) -> None:
        if rank_zero_only.rank == 0:
            done = f"stopped after step {trainer.global_step} of {self.num_steps}"
            print(f"\n{done}; the same command goes on from there", flush=True)
        self._listen_no_more()
        self._end()
