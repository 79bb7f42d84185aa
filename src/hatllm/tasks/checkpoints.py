"""``last.ckpt``: what a run that was stopped goes on from."""

from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Checkpoint


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether a micro-batch is the last of an optimizer step after which nothing is due.

    Lightning takes the validation after a step for done when it goes on from a checkpoint of that
    step; so such a step is saved after its validation.
    """
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    between = int(trainer.val_check_batch) // trainer.accumulate_grad_batches
    return bool(trainer.global_step % between)


class LastCheckpoint(Checkpoint):
    """Saves every so many optimizer steps, and after every validation.

    Stands after the callback of the best checkpoint, whose state is in it.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path, self.every_steps = path, every_steps

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *rest: Any) -> None:
        """After a step."""
        if ends_step(trainer, rest[-1]) and trainer.global_step % self.every_steps == 0:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """After the validation that follows a step."""
        trainer.save_checkpoint(self.path)
