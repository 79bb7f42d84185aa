import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import run
from tests.tasks.shop import write_shop


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """`python run.py ...` in this process, in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HATLLM_DATA_ROOT", raising=False)
    monkeypatch.setenv("HATLLM_CACHE", str(tmp_path / "cache"))

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        GlobalHydra.instance().clear()
        try:
            with run.errors_in_one_line():
                run.run()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    """Overrides of a run of seconds on the small shop."""
    return [
        *write_shop(tmp_path / "shop"),
        "scale=smoke",
        "model.lora.dropout=0.0",
        "data.train_rows=null",
        "num_threads=1",
    ]
