import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from cli import call_cli, command, environment, smoke_words
from safetensors.torch import load_file

pytestmark = pytest.mark.long


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
    return [*shop, "model.lora.dropout=0.1", "trainer.max_epochs=2", "trainer.micro_batch_size=4",
            "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01", f"run_name={name}",
            "data.train_targets=every", "data.target_weights=rising", "loss.tau=3",
            f"output_root={tmp_path}/outputs"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, folder, *long_run(smoke_words(folder), folder, "whole")) == 0
    return folder / "outputs" / "whole"


@pytest.mark.parametrize("stop_after", [pytest.param(2, marks=pytest.mark.slow), 3, 5])
def test_a_run_resumed_from_a_checkpoint_ends_like_one_never_stopped(
    whole: Path,
    cli: Callable[..., int],
    shop: list[str],
    tmp_path: Path,
    stop_after: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 24 train rows, 8 a step: 3 steps an epoch. Steps 2 and 5 lie inside an epoch, 3 at its end.
    # It is killed between the micro-batches of a step, with half of its gradient summed.
    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            batch_idx = _[2]
            if trainer.global_step == stop_after and batch_idx % 2 == 1:
                raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        fit = lightning.Trainer.fit

        def fit_and_stop(self: lightning.Trainer, *args: Any, **words: Any) -> None:
            self.callbacks.append(Stop())
            fit(self, *args, **words)

        patched.setattr(lightning.Trainer, "fit", fit_and_stop)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*long_run(shop, tmp_path, "stopped"))
    assert not (tmp_path / "outputs/stopped/run.json").exists()
    assert cli(*long_run(shop, tmp_path, "stopped")) == 0
    assert "resuming from" in capsys.readouterr().out
    same(whole, tmp_path / "outputs/stopped")
    assert [was_resumed(run) for run in (whole, tmp_path / "outputs/stopped")] == [False, True]


# Checkpoints are an epoch apart, so that without the signal nothing would have been saved.
@pytest.mark.parametrize(
    ("number", "code", "stop_after"),
    [
        (signal.SIGINT, 130, 0),
        (signal.SIGTERM, 143, 4),
        pytest.param(signal.SIGINT, 130, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_step_saves_it_and_the_next_start_goes_on_from_there(
    whole: Path,
    cli: Callable[..., int],
    shop: list[str],
    tmp_path: Path,
    number: int,
    code: int,
    stop_after: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Send(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *rest: Any) -> None:
            if trainer.global_step == stop_after and rest[2] % 2 == 1:
                os.kill(os.getpid(), number)

    fit = lightning.Trainer.fit

    def fit_and_stop(self: lightning.Trainer, *args: Any, **words: Any) -> None:
        self.callbacks.append(Send())
        fit(self, *args, **words)

    words = [*long_run(shop, tmp_path, "stopped"), "trainer.checkpoint_every_steps=1000"]
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with monkeypatch.context() as patched:
        patched.setattr(lightning.Trainer, "fit", fit_and_stop)
        assert cli(*words) == code
    said = f"stopped after step {stop_after + 1} of 6; the same command goes on from there"
    assert said in capfd.readouterr().out
    last = torch.load(tmp_path / "outputs/stopped/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == stop_after + 1
    assert {n: signal.getsignal(n) for n in before} == before
    assert cli(*words) == 0
    assert "resuming from" in capfd.readouterr().out
    bits(whole, tmp_path / "outputs/stopped")


def bits(first: Path, second: Path) -> None:
    one, other = adapter(first), adapter(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_is_written_by_time_where_steps_are_slow(
    cli: Callable[..., int], shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = lightning.Trainer.save_checkpoint

    def note(self: lightning.Trainer, path: Path, *args: Any, **words: Any) -> None:
        saved.append(self.global_step)
        save(self, path, *args, **words)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", note)
    words = [*shop, "trainer.max_epochs=1", "trainer.checkpoint_every_steps=1000", "run_name=slow"]
    assert cli(*words, "trainer.checkpoint_every_seconds=1e-9") == 0
    assert saved == [1, 2, 3, 3, 3]  # every step; at the last the best, and its validation


@pytest.mark.slow
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
    assert "stopped after step" in out and "the same command goes on from there" in out
    assert last.exists()
