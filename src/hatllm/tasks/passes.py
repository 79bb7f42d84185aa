"""Passes of another size after an interruption: the same rows in every optimizer step."""

from typing import Any

import pytorch_lightning as lightning


class CountPasses(lightning.Callback):
    """Lets a run go on with another number of passes an optimizer step than its checkpoint had.

    Lightning counts passes, and takes the place in the epoch from them. Checkpoints are written
    after whole steps, so the count is that of the steps times the passes of a step.
    """

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Count the passes that are done in passes of today's size."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if checkpoint["global_step"] == 0:
            return
        before = progress["total"]["processed"] // checkpoint["global_step"]
        for counts in (progress["total"], progress["current"]):
            done = counts["processed"]
            more = done // before * trainer.accumulate_grad_batches - done
            # One that is not completed yet when the checkpoint is written stays one.
            counts.update({name: number + more for name, number in counts.items()})
