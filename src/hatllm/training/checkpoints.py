"""Checkpoints on disk: written whole, and read only where every byte is as it was written."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from hatllm.files import written_whole


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


def put_at_step(loops: dict[str, Any], step: int, steps_per_epoch: int, passes: int) -> None:
    """Change the loops' state, in place, to that of the last pass of a step, validation not begun.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]`` of Lightning.
        step: Optimizer steps done, from 1.
        steps_per_epoch: Optimizer steps of an epoch.
        passes: Passes (micro-batches of one process) of a step.
    """
    epoch, before = divmod(step - 1, steps_per_epoch)
    in_epoch, total = (before + 1) * passes, step * passes
    for span in ("total", "current"):
        _count(loops["epoch_progress"][span], started=epoch + 1, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    for span, done in (("total", total), ("current", in_epoch)):
        _count(progress[span], started=done, processed=done, completed=done - 1)
    progress["is_last_batch"] = before + 1 == steps_per_epoch
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1


def _count(counts: dict[str, int], started: int, processed: int, completed: int) -> None:
    counts |= {
        "ready": started, "started": started, "processed": processed, "completed": completed,
    }  # fmt: skip
