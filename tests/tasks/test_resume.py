import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def command(words: list[str]) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *words]


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "HATLLM_DATA_ROOT"}
    return kept | {"HATLLM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(first: Path, second: Path) -> None:
    # Sums in another order differ in the last float32 digits, and AdamW divides by small numbers.
    one, other = adapter(first), adapter(second)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5, msg=name)


def long_run(shop: list[str], tmp_path: Path, name: str) -> list[str]:
    return [*shop, "model.lora.dropout=0.1", "trainer.max_epochs=3", "trainer.micro_batch_size=2",
            "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01", f"run_name={name}",
            f"output_root={tmp_path}/outputs"]  # fmt: skip


@pytest.mark.parametrize("stop_after", [2, 7, 9])
def test_a_run_resumed_from_a_checkpoint_ends_like_one_never_stopped(
    cli: Callable[..., int],
    shop: list[str],
    tmp_path: Path,
    stop_after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 60 train rows, 8 a step: 7 steps an epoch. Steps 2 and 9 lie inside an epoch, 7 at its end.
    # The interrupt falls between the micro-batches of a step, with half of its gradient summed.
    assert cli(*long_run(shop, tmp_path, "whole")) == 0

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
    same(tmp_path / "outputs/whole", tmp_path / "outputs/stopped")


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


def test_two_processes_tune_the_same_weights_as_one(shop: list[str], tmp_path: Path) -> None:
    env = environment(tmp_path)
    for devices, name in ((1, "one"), (2, "two")):
        words = [*shop, "trainer=ddp", f"trainer.devices={devices}", "trainer.accelerator=cpu",
                 "trainer.micro_batch_size=2", "trainer.learning_rate=0.01", "loss=msl",
                 f"run_name={name}", f"output_root={tmp_path}/outputs"]  # fmt: skip
        done = subprocess.run(command(words), env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    same(tmp_path / "outputs/one", tmp_path / "outputs/two")
    one, two = (
        pl.read_parquet(tmp_path / "outputs" / n / "predictions.parquet") for n in ("one", "two")
    )
    assert one["example_id"].to_list() == two["example_id"].to_list()
    assert one["top_items"].to_list() == two["top_items"].to_list()
