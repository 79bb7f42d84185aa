"""SLURM's warning that a job's time is almost up: save, and queue the job again.

Lightning's own handler saves between any two instructions, be it in the middle of an optimizer
step; here a step is finished first, so that the next job goes on as if there had been one.
"""

import os
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as lightning
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_only

from hatllm.tasks.checkpoints import ends_step
from hatllm.tasks.child import INTERRUPTED


class Requeue(lightning.Callback):
    """Listens for SIGUSR1 (``sbatch --requeue --signal=USR1@300``) from now on, under SLURM only.

    While the run trains, the step under way ends and is saved; at any other time there is nothing
    to save that is not on disk.
    """

    def __init__(self) -> None:
        self.is_asked = self.is_training = False
        if SLURMEnvironment.detect():
            signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        if not self.is_training:
            self._end()

    def _end(self) -> None:
        if rank_zero_only.rank == 0:
            job = os.environ["SLURM_JOB_ID"]
            if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
                job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
            subprocess.run(["scontrol", "requeue", job], check=True)
        raise SystemExit(INTERRUPTED)

    def on_train_start(self, *_: Any) -> None:
        """From here on there is a step to finish."""
        self.is_training = True

    def on_train_end(self, *_: Any) -> None:
        """Nothing is lost from here on."""
        self.is_training = False
        if self.is_asked:
            self._end()

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Save and end after a whole step, on all processes after the same one."""
        if not SLURMEnvironment.detect() or not ends_step(trainer, rest[-1]):
            return
        if trainer.strategy.reduce_boolean_decision(self.is_asked, all=False):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
            self._end()
