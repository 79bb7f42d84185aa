import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import run

from .shop import write_shop


def smoke_words(folder: Path) -> list[str]:
    """Overrides of a run of seconds on the small shop, which is written into the folder."""
    return [
        *write_shop(folder / "shop"),
        "scale=smoke",
        "model.lora.dropout=0.0",
        "data.train_rows=40",  # ten micro-batches, five steps an epoch
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


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`python run.py ...` in an empty folder of the test's own."""
    return lambda *words: call_cli(monkeypatch, tmp_path, *words)


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


@pytest.fixture
def cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of sweeps and experiments run in this process, where theirs is not what is tested."""
    monkeypatch.setattr("hatllm.many.cell_runner.run_child", run_here)


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    """Overrides of a run of seconds on the small shop."""
    return smoke_words(tmp_path)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seconds, made once."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        words = [*smoke_words(folder), "run_name=done", "trainer.learning_rate=0.01"]
        assert call_cli(patch, folder, *words) == 0
    return folder / "outputs" / "done"


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may write into."""
    return shutil.copytree(finished_once, tmp_path / "outputs" / "done")
