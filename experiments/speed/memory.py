"""Peak memory of one variant, in a process of its own so that variants do not hide each other."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_above_start(work: Callable[[], object], device: str) -> dict[str, float]:
    """Megabytes that a piece of work takes beyond what the process holds before it.

    On Linux the peak since the start of the work; elsewhere the process's peak, which loading a
    model may have set. Not `ru_maxrss` on Linux: a child inherits its parent's.

    Returns:
        before_mb, peak_mb, extra_mb.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return _megabytes(before, torch.cuda.max_memory_allocated())
    if CLEAR.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or it would count as held
        CLEAR.write_text("5")  # resets VmHWM to VmRSS
    before = _status("VmRSS")
    work()
    return _megabytes(before, _status("VmHWM"))


def _status(field: str) -> int:
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _megabytes(before: int, peak: int) -> dict[str, float]:
    bytes_of = {"before_mb": before, "peak_mb": peak, "extra_mb": peak - before}
    return {name: round(value / 2**20, 1) for name, value in bytes_of.items()}


def in_own_process(benchmark: str, argv: Sequence[str]) -> dict[str, float]:
    """What a benchmark prints as its last line, run as a process of its own.

    Raises:
        RuntimeError: If it fails.
    """
    command = [sys.executable, "-m", f"experiments.speed.{benchmark}", *argv]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | threads, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
