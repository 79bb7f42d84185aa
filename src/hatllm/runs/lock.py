"""One process a run folder: two sweeps, or a sweep and its restart, never write the same run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


class RunBusyError(ValueError):
    """Another process works in the run folder."""


def run_lock(folder: Path) -> FileLock:
    """The lock of a run folder, not taken; the system frees it when its process ends."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{folder.name}.lock")


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Hold the run folder; only the first process of a distributed run takes the lock.

    Raises:
        RunBusyError: If another process holds it.
    """
    from pytorch_lightning.utilities import rank_zero_only

    if rank_zero_only.rank != 0:
        yield
        return
    lock = run_lock(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunBusyError(f"{folder} is being written by another process; wait for it") from None
    try:
        yield
    finally:
        lock.release()
