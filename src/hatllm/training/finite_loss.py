"""A training loss that is not finite: what it was made of is saved, and the run stops."""

from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as lightning
import torch
from torch import Tensor

from hatllm.config import Config
from hatllm.data.prompt import Batch
from hatllm.files import write_json

NON_FINITE_FILE = "non_finite_loss.json"


class StoppedByLossError(ValueError):
    """A training loss is NaN or infinite."""


def stop_at_non_finite_loss(
    folder: Path, config: Config, ids: dict[str, list[int]], step: int, rate: float, loss: float
) -> NoReturn:
    """Save what the step was made of, and stop.

    Args:
        folder: Run folder; gains ``NON_FINITE_FILE``.
        config: The run.
        ids: Rows of the batch, by ``example_ids`` or, of train sequences, ``user_ids``.
        step: Optimizer steps done before.
        rate: Learning rate of the step.
        loss: Its loss.

    Raises:
        StoppedByLossError: Always.
    """
    path = folder / NON_FINITE_FILE
    is_llm = config.model.kind == "llm"
    dtype = config.model.dtype if is_llm else "float32"
    write_json(
        path,
        {
            "loss": str(loss),
            "step": step,
            "learning_rate": rate,
            "dtype": dtype,
            **ids,
        },
    )
    advice = f"lower {'trainer' if is_llm else 'model.sequence'}.learning_rate"
    if dtype != "float32":
        advice += f" or set model.dtype=float32 (it is {dtype})"
    raise StoppedByLossError(
        f"the training loss is {loss} at step {step} with learning rate {rate:g}; the batch's "
        f"ids are in {path}: {advice}"
    )


class FiniteLoss(lightning.Callback):
    """Stops before a loss that is not finite reaches the weights or a checkpoint."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, _: int
    ) -> None:
        """Keep the batch until its loss is known."""
        self.batch = batch

    def on_before_backward(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss.

        Raises:
            StoppedByLossError: If it is not finite.
        """
        if torch.isfinite(loss):
            return
        assert self.batch is not None
        ids = {"example_ids": sorted(set(self.batch.example_id_B.tolist()))}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        stop_at_non_finite_loss(
            self.folder, self.config, ids, trainer.global_step, rate, float(loss.detach())
        )
