"""Checkpoints: which weights are the best so far, what a resumed run goes on from, whole files.

``best.ckpt`` holds the weights of the best validation, ``last.ckpt`` the state of training. What is
the best, and how long nothing was better, is part of the latter, so a run that is killed anywhere
goes on with what it would have known.
"""

import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback

from hatllm.config import TrainerConfig
from hatllm.whole_files import written_whole

TIE_BREAKER = "val/trie_NLL"


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to the disk, with our writing and reading.

    Lightning's own writes to the system's temporary folder and moves the file; where that folder is
    on another disk, moving is copying and a killed process leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint so that no reader ever sees half of it."""
        with written_whole(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are taken from it."""
        return load_checkpoint(Path(path))


def ends_step(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Whether a micro-batch is the last of an optimizer step after which nothing is due.

    Lightning takes the validation after a step for done when it goes on from a checkpoint of that
    step; so such a step is saved after its validation.
    """
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    between = int(trainer.val_check_batch) // trainer.accumulate_grad_batches
    return bool(trainer.global_step % between)


@dataclass(frozen=True)
class Validation:
    """What a validation found."""

    step: int  # optimizer steps done
    value: float  # of the monitored metric
    nll: float | None  # of TIE_BREAKER, where the model has it

    def is_better_than(self, other: "Validation", higher_is_better: bool) -> bool:
        """By the monitored metric, and where that is equal by the NLL."""
        if self.value != other.value:
            return (self.value > other.value) is higher_is_better
        return self.nll is not None and other.nll is not None and self.nll < other.nll

    def replaces(self, other: "Validation", higher_is_better: bool) -> bool:
        """As `is_better_than`; of two that are equal in both the later stays."""
        return not other.is_better_than(self, higher_is_better)


class Checkpoints(Callback):
    """Keeps the best and the last checkpoint, and stops early.

    After a validation the best is written first, then the last, in whose callback state the best is
    named; only then does another step begin.

    Attributes:
        best: The validation whose weights are in ``best.ckpt``; None = none yet.
        num_worse: Validations since the last one that was better.
    """

    def __init__(self, folder: Path, config: TrainerConfig) -> None:
        """Keep checkpoints.

        Args:
            folder: Run folder; they go to ``checkpoints/``.
            config: monitor, early_stopping_patience, checkpoint_every_steps and _seconds.
        """
        self.best_path = folder / "checkpoints" / "best.ckpt"
        self.last_path = folder / "checkpoints" / "last.ckpt"
        self.config = config
        self.best: Validation | None = None
        self.num_worse = 0
        self.saved_at = time.monotonic()

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """A run that was killed after its early stop does not begin another step."""
        self.saved_at = time.monotonic()
        self._stop_where_patience_ends(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *rest: Any) -> None:
        """After a step, where it is time."""
        if not ends_step(trainer, rest[-1]):
            return
        is_due = time.monotonic() - self.saved_at >= self.config.checkpoint_every_seconds
        if trainer.world_size > 1:  # clocks differ, and all processes save together
            is_due = trainer.strategy.reduce_boolean_decision(is_due, all=False)
        if is_due or trainer.global_step % self.config.checkpoint_every_steps == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """After the validation that follows a step."""
        found = _validation(trainer.global_step, trainer.callback_metrics, self.config.monitor)
        higher = self.config.higher_is_better
        if self.best is None or found.is_better_than(self.best, higher):
            self.num_worse = 0
        else:
            self.num_worse += 1
        if self.best is None or found.replaces(self.best, higher):
            self.best = found
            trainer.save_checkpoint(self.best_path, weights_only=True)
        self.save(trainer)
        self._stop_where_patience_ends(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write ``last.ckpt``; on all processes after the same step."""
        trainer.save_checkpoint(self.last_path)
        self.saved_at = time.monotonic()

    def _stop_where_patience_ends(self, trainer: lightning.Trainer) -> None:
        patience = self.config.early_stopping_patience
        if patience is not None and self.num_worse >= max(1, patience):
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        best = None if self.best is None else asdict(self.best)
        return {"best": best, "num_worse": self.num_worse}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know what the stopped run knew."""
        best = state_dict["best"]
        self.best = None if best is None else Validation(**best)
        self.num_worse = state_dict["num_worse"]

    def exported(self) -> dict[str, Any] | None:
        """Which step's weights the run answers with and why, JSON-able; None = the last step's."""
        if self.best is None:
            return None
        return {"monitor": self.config.monitor, **asdict(self.best)}


def _validation(step: int, metrics: Mapping[str, Any], monitor: str) -> Validation:
    nll = metrics.get(TIE_BREAKER)
    return Validation(step, float(metrics[monitor]), None if nll is None else float(nll))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: File of `WholeCheckpoints`, a zip archive that holds a CRC-32 of each tensor; torch
            itself does not look at them.

    Raises:
        ValueError: If the file is damaged; says what to do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        damaged = str(error)
    if damaged is not None:
        raise ValueError(
            f"{path} is damaged ({damaged}): delete the folder {path.parent}, and the same command "
            "trains from the beginning"
        )
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
