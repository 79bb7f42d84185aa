"""What a run was made by: code, packages, hardware, command."""

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hatllm.hardware import processor
from hatllm.redact import redacted

# Code that can change a run's predictions; tables and figures are made from those at any time.
MAKES_NUMBERS = ("data/**/*.py", "masks/*.py", "model/**/*.py", "losses/*.py", "decode/**/*.py",
                 "baselines/*.py", "metrics/*.py", "training/*.py", "tasks/train.py")  # fmt: skip
# In these rooms, but without a say in any prediction.
MAKES_NONE = ("data/report.py", "data/report_picture.py", "metrics/uncertainty.py",
              "training/loggers.py",
              "training/stop_signals.py")  # fmt: skip
PLACES = (":/src", ":/conf", ":/run.py")  # from the repository's top; tables beside them may change
PACKAGES = ("hatllm", "torch", "transformers", "peft", "pytorch-lightning", "hydra-core",
            "omegaconf", "polars", "numpy", "tokenizers")  # fmt: skip


def environment(
    manifest: dict[str, Any], seconds: dict[str, float], dtype: str | None
) -> dict[str, Any]:
    """What another person needs to judge and repeat the run.

    Args:
        manifest: Of its data: data_hash, split_hash.
        seconds: What its parts took.
        dtype: Of the frozen weights; None = there is no model.
    """
    return {
        "command": redacted(
            " ".join(["python", Path(sys.argv[0]).name, *map(_quoted, sys.argv[1:])])
        ),
        "commit": commit(),
        "code_hash": code_hash(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "hardware": hardware(),
        "dtype": dtype,
        "data_hash": manifest["data_hash"],
        "split_hash": manifest["split_hash"],
        "seconds": seconds,
    }


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@cache
def code_hash() -> str:
    """Twelve hexadecimal digits over the source files that make predictions, committed or not.

    Of the files as they are when first asked for: a run asks at its start, and files that change
    while it goes on did not make its numbers.
    """
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(path for place in MAKES_NUMBERS for path in package.glob(place)):
        name = path.relative_to(package).as_posix()
        if name not in MAKES_NONE:
            found.update(f"{name}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def hardware() -> dict[str, Any]:
    """Processor, threads, GPU."""
    import torch  # late: what looks at finished runs does not wait for it

    found: dict[str, Any] = {
        "platform": platform.platform(terse=True),
        "processor": processor()[0] or "unknown",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


@cache
def commit() -> str:
    """The commit of code and settings when first asked for, and whether they differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        found = git("rev-parse", "HEAD")
    except OSError:
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *PLACES)
    return (found or "unknown") + (" with local changes" if changed else "")


def _quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set(' []{}()"') else word
