"""This machine: whether it has what a run asks for, and what `model.dtype=auto` is on it.

bfloat16 halves the memory of the frozen weights. It is fast where the processor multiplies it in
hardware; elsewhere it is converted number by number and several times slower than float32.
"""

import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hatllm.files import read_json, write_json

if TYPE_CHECKING:
    from hatllm.config import Config

AUTO = "auto"
TIMES_FILE = "product_times.json"  # in the cache: a machine is measured once
NUM_TIMES = 5  # of which the shortest counts: others wait for what else runs on the machine
CLEARLY_FASTER = 0.8  # of float32's time: a tie that noise decides would name runs anew each time
SHAPE = (256, 576, 1536)  # rows, and a projection of SmolLM2-135M

TimeProduct = Callable[[str], float]  # from a dtype to the milliseconds of one product


def check_hardware(config: "Config") -> None:
    """Refuse a GPU run without a GPU, and another number of processes than was started.

    Raises:
        ValueError: If the trainer or the model needs what the machine lacks, or torchrun or SLURM
            runs another number of processes than the trainer's.
    """
    import torch  # late: a table of an experiment needs none

    gpus, trainer = torch.cuda.device_count(), config.trainer
    if trainer.accelerator == "gpu" and gpus < trainer.devices:
        raise ValueError(
            f"trainer.devices={trainer.devices} GPUs asked for, {gpus} found; use trainer=cpu"
        )
    for launcher, started in (
        ("torchrun", os.environ.get("TORCHELASTIC_RUN_ID") and os.environ["WORLD_SIZE"]),
        ("srun", _tasks_of_slurm()),
    ):
        if started and int(started) != trainer.num_processes:
            raise ValueError(
                f"trainer.devices={trainer.devices} x trainer.num_nodes={trainer.num_nodes} must "
                f"be {started}, the processes that {launcher} started"
            )
    if config.model.quantization_bits is not None and gpus == 0:
        raise ValueError(
            f"model.quantization_bits={config.model.quantization_bits} needs a GPU, none found; "
            "use model.quantization_bits=null"
        )


def _tasks_of_slurm() -> str | None:
    """The processes that srun started; None outside of it."""
    if (started := os.environ.get("SLURM_NTASKS")) is None:
        return None
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return started if SLURMEnvironment.detect() else None


def fastest_dtype(accelerator: str, cache: Path) -> str:
    """``bfloat16`` or ``float32``.

    Args:
        accelerator: ``trainer.accelerator``. A GPU that is not here is taken to be a current one.
        cache: Where to keep what was measured.
    """
    if accelerator != "cpu":
        import torch

        if torch.cuda.is_available():
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return "bfloat16" if native else "float32"
        if accelerator == "gpu":
            return "bfloat16"
        if torch.backends.mps.is_available():
            return "float32"
    name, flags = processor()
    return cpu_dtype(name, flags, cache / TIMES_FILE, product_milliseconds)


def cpu_dtype(name: str, flags: frozenset[str], path: Path, time_product: TimeProduct) -> str:
    """The type for a processor: its flags tell, or a product in each type, measured once.

    Args:
        name: Of the processor.
        flags: What it can do; empty where the system does not tell.
        path: JSON file of what was measured before, by name.
        time_product: Times a product.
    """
    return _told_by_flags(flags) or _told_by_times(_times_of(name, path, time_product))


def _told_by_flags(flags: frozenset[str]) -> str | None:
    """The answer of an x86 processor's flags; None = it must be measured."""
    if "amx_bf16" in flags:
        return "bfloat16"
    if "sse2" in flags and "avx512_bf16" not in flags:
        return "float32"
    return None


def _told_by_times(milliseconds: dict[str, float]) -> str:
    faster = milliseconds["bfloat16"] <= CLEARLY_FASTER * milliseconds["float32"]
    return "bfloat16" if faster else "float32"


def _times_of(name: str, path: Path, time_product: TimeProduct) -> dict[str, float]:
    known = read_json(path) if path.exists() else {}
    if name not in known:
        known[name] = measured(time_product)
        write_json(path, known)
    found: dict[str, float] = known[name]
    return found


def measured(time_product: TimeProduct) -> dict[str, float]:
    """The shortest time of each type, in milliseconds.

    Args:
        time_product: Times one product; called for the types in turn, so that a busy moment meets
            both. The first product of each is not counted.
    """
    best = {"float32": math.inf, "bfloat16": math.inf}
    for turn in range(1 + NUM_TIMES):
        for dtype in best:
            milliseconds = time_product(dtype)
            if turn:
                best[dtype] = min(best[dtype], milliseconds)
    return best


def product_milliseconds(dtype: str) -> float:
    """The time of one product of the backbone's shape."""
    import torch  # --help does not wait for it

    rows, width_in, width_out = SHAPE  # of ones: no random number of the run is used up
    left = torch.ones(rows, width_in).to(getattr(torch, dtype))
    right = torch.ones(width_out, width_in).to(getattr(torch, dtype))
    start = time.perf_counter()
    torch.nn.functional.linear(left, right)
    return 1e3 * (time.perf_counter() - start)


def processor(info: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The processor's name and what it can do; no flags where the system does not tell."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    if not info.exists():
        return name, flags
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            return name, frozenset(value.split())
    return name, flags
