"""Faults of training and decoding, turned into one line that says which setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as lightning
import torch
from pytorch_lightning.trainer.states import RunningStage
from torch import Tensor

from hatllm.config import Config
from hatllm.data.prompt import Batch
from hatllm.whole_files import write_json

NON_FINITE_FILE = "non_finite_loss.json"


class StoppedByLossError(ValueError):
    """A training loss is NaN or infinite."""


class OutOfMemoryError(ValueError):
    """The machine or the GPU has no memory left."""


def stop_at_non_finite_loss(
    folder: Path, config: Config, example_ids: list[int], step: int, rate: float, loss: float
) -> NoReturn:
    """Save what the step was made of, and stop.

    Args:
        folder: Run folder; gains ``NON_FINITE_FILE``.
        config: The run.
        example_ids: Rows of the batch.
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
            "example_ids": example_ids,
        },
    )
    advice = f"lower {'trainer' if is_llm else 'model.sequence'}.learning_rate"
    if dtype != "float32":
        advice += f" or set model.dtype=float32 (it is {dtype})"
    raise StoppedByLossError(
        f"the training loss is {loss} at step {step} with learning rate {rate:g}; the batch's "
        f"example ids are in {path}: {advice}"
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
        ids = sorted(set(self.batch.example_id_B.tolist()))
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        stop_at_non_finite_loss(
            self.folder, self.config, ids, trainer.global_step, rate, float(loss.detach())
        )


@contextmanager
def naming_what_to_lower(
    config: Config, decoding: bool, trainer: lightning.Trainer | None = None
) -> Iterator[None]:
    """Turn running out of memory into one line that names the setting to lower.

    Args:
        config: The run.
        decoding: Whether users are decoded inside; else rows are trained on.
        trainer: Trains inside; it decodes where it validates.

    Raises:
        OutOfMemoryError: Where memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if trainer is not None and trainer.state.stage == RunningStage.VALIDATING:
            decoding = True
        raise OutOfMemoryError(f"out of memory {_advice(config, decoding)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the GPU's, Python's or torch's on the CPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def _advice(config: Config, decoding: bool) -> str:
    if config.model.kind != "llm":
        sequence = config.model.sequence
        size = "" if sequence is None else f" (it is {sequence.batch_size})"
        return f"in model={config.model.name}: lower model.sequence.batch_size{size}"
    if decoding:
        return (
            f"while decoding: lower decode.users_per_batch (it is {config.decode.users_per_batch})"
        )
    advice = f"while training: lower trainer.micro_batch_size (it is {config.trainer.rows_a_pass})"
    if not config.model.gradient_checkpointing:
        advice += " or set model.gradient_checkpointing=true"
    return advice
