"""`python run.py ...` in the tests' own process, and in one of its own."""

import os
import sys
import traceback
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from shop import write_shop

import run

ROOT = Path(__file__).resolve().parents[1]


def smoke_words(folder: Path) -> list[str]:
    """Overrides of a run of seconds on the small shop, which is written into the folder."""
    return [
        *write_shop(folder / "shop"),
        "scale=smoke",
        "model.lora.dropout=0.0",
        "data.train_rows=24",  # three steps an epoch
        "trainer.micro_batch_size=8",  # each one pass; tests that stop between passes have two
        "num_threads=1",
    ]


def call_cli(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    """`python run.py ...` in this process, in the given folder; returns the exit code."""
    patch.chdir(folder)
    patch.delenv("HATLLM_DATA_ROOT", raising=False)
    patch.setenv("HATLLM_CACHE", str(folder / "cache"))
    patch.setattr(sys, "argv", ["run.py", *words])
    # It composes everything once more to see whether a file sets hydra.mode, which none does.
    patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    GlobalHydra.instance().clear()
    try:
        with run.errors_in_one_line():
            run.start()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run_here(command: list[str]) -> int:
    """What the process of a cell would do, in this one: an import of torch less."""
    hydra, its_config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with pytest.MonkeyPatch.context() as patch, run.errors_in_one_line():
            patch.setattr(sys, "argv", command[1:])
            run.start()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, its_config
    return 0


def command(words: list[str]) -> list[str]:
    """A process of its own for `python run.py ...`."""
    return [sys.executable, str(ROOT / "run.py"), *words]


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "HATLLM_DATA_ROOT"}
    return kept | {"HATLLM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
