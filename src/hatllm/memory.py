"""Running out of memory, turned into one line that names the setting to lower."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hatllm.config import Config


class OutOfMemoryError(ValueError):
    """The machine or the GPU has no memory left."""


@contextmanager
def naming_what_to_lower(config: "Config", decoding: bool) -> Iterator[None]:
    """Turn running out of memory into one line that names the setting to lower.

    Args:
        config: The run.
        decoding: Whether users are decoded inside; else rows are trained on.

    Raises:
        OutOfMemoryError: Where memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory {_advice(config, decoding)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the GPU's, Python's or torch's on the CPU."""
    import torch  # late: it is there where anything has failed in it

    text = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "out of memory" in text
    )


def _advice(config: "Config", decoding: bool) -> str:
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


def peak_memory_mb() -> float:
    """The most memory this process has held so far, MiB."""
    # Linux counts kilobytes, macOS bytes.
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
