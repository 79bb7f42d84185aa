"""What processes tell each other: exit codes where 0 and 1 say too little, values in a run."""

from typing import Any

REFUSED = 2  # a setting does not fit; it would not fit again
BUSY = 75  # another process holds the run folder (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # after Ctrl-C
TERMINATED = 143  # after SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came; all that Ctrl-C ends, it ends."""


def process_rank() -> tuple[int, int]:
    """This process and how many there are; (0, 1) outside a distributed run."""
    import torch.distributed as dist  # late: an exit code waits for no torch

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, by rank, on every process."""
    _, world_size = process_rank()
    if world_size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def agreed(value: Any) -> Any:
    """The first process's value, on every process."""
    if process_rank()[1] == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
