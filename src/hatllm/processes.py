"""The few things processes of one run tell each other."""

from typing import Any

import torch.distributed as dist


def process_rank() -> tuple[int, int]:
    """This process and how many there are; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, by rank, on every process."""
    _, world_size = process_rank()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values


def agreed(value: Any) -> Any:
    """The first process's value, on every process."""
    if process_rank()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
