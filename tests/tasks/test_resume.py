import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from safetensors.torch import load_file

from .conftest import call_cli, smoke_words

ROOT = Path(__file__).resolve().parents[2]


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *words]


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "HATLLM_DATA_ROOT"}
    return kept | {"HATLLM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def was_resumed(folder: Path) -> bool:
    return bool(json.loads((folder / "environment.json").read_text())["resumed"])


def same(first: Path, second: Path) -> None:
    # Sums in another order differ in the last float32 digits, and AdamW divides by small numbers.
    one, other = adapter(first), adapter(second)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


def long_run(shop: list[str], tmp_path: Path, name: str) -> list[str]:
    return [*shop, "model.lora.dropout=0.1", "trainer.max_epochs=3", "trainer.micro_batch_size=2",
            "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01", f"run_name={name}",
            f"output_root={tmp_path}/outputs"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, folder, *long_run(smoke_words(folder), folder, "whole")) == 0
    return folder / "outputs" / "whole"


@pytest.mark.parametrize("stop_after", [2, 7, 9])
def test_a_run_resumed_from_a_checkpoint_ends_like_one_never_stopped(
    whole: Path,
    cli: Callable[..., int],
    shop: list[str],
    tmp_path: Path,
    stop_after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 60 train rows, 8 a step: 7 steps an epoch. Steps 2 and 9 lie inside an epoch, 7 at its end.
    # The interrupt falls between the micro-batches of a step, with half of its gradient summed.
    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            batch_idx = _[2]
            if trainer.global_step == stop_after and batch_idx % 4 == 2:
                raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        fit = lightning.Trainer.fit

        def fit_and_stop(self: lightning.Trainer, *args: Any, **words: Any) -> None:
            self.callbacks.append(Stop())
            fit(self, *args, **words)

        patched.setattr(lightning.Trainer, "fit", fit_and_stop)
        assert cli(*long_run(shop, tmp_path, "stopped")) == 130
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert "resume with the same command" in capsys.readouterr().out
    assert not (tmp_path / "outputs/stopped/run.json").exists()
    assert cli(*long_run(shop, tmp_path, "stopped")) == 0
    assert "resuming from" in capsys.readouterr().out
    same(whole, tmp_path / "outputs/stopped")
    assert [was_resumed(run) for run in (whole, tmp_path / "outputs/stopped")] == [False, True]


def test_control_c_leaves_a_checkpoint_and_says_how_to_resume(
    shop: list[str], tmp_path: Path
) -> None:
    words = [*long_run(shop, tmp_path, "ctrl"), "trainer.max_epochs=500"]
    process = subprocess.Popen(
        command(words), env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    last = tmp_path / "outputs/ctrl/checkpoints/last.ckpt"
    waited = time.monotonic()
    while not last.exists() and time.monotonic() - waited < 60:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resume with the same command" in out
    assert last.exists()
