import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from hatllm.training.lightning_module import Recommender

pytestmark = pytest.mark.long

Cli = Callable[..., int]
TITLE_LOSS = "hatllm.training.lightning_module.Recommender.title_loss"
DECODE = "hatllm.training.decode_splits.predict_into"
NO_MEMORY = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
LONG = ["trainer.max_epochs=2", "trainer.validate_every_steps=2", "trainer.micro_batch_size=4",
        "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01"]  # fmt: skip


@pytest.fixture(autouse=True)
def errors_as_a_user_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HATLLM_TRACEBACK", raising=False)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(
    cli: Cli,
    shop: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[list[int]] = []
    title_loss = Recommender.title_loss

    def broken(self: Recommender, batch: Any) -> torch.Tensor:
        loss = title_loss(self, batch)
        seen.append(sorted(batch.example_id_B.tolist()))
        return loss * float("nan") if self.trainer.global_step == 2 else loss

    monkeypatch.setattr(Recommender, "title_loss", broken)
    assert cli(*shop, *LONG, "run_name=broken", "model.dtype=bfloat16") == 2
    folder = tmp_path / "outputs/broken"
    saved = json.loads((folder / "non_finite_loss.json").read_text())
    assert saved["example_ids"] == seen[-1] and len(seen[-1]) == 4
    assert (saved["loss"], saved["step"], saved["dtype"]) == ("nan", 2, "bfloat16")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for part in ("error: the training loss is nan at step 2", "non_finite_loss.json",
                 "lower trainer.learning_rate or set model.dtype=float32"):  # fmt: skip
        assert part in message
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(value.isfinite().all() for n, value in last["state_dict"].items() if n != "tau")


def test_a_baselines_loss_that_is_not_finite_stops_it(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=gru4rec", "model.sequence.learning_rate=1e30", "run_name=ids",
             "model.sequence.batch_size=8"]  # fmt: skip
    assert cli(*shop, *words, "model.sequence.max_epochs=5") == 2
    assert "lower model.sequence.learning_rate" in capsys.readouterr().err
    saved = json.loads((tmp_path / "outputs/ids/non_finite_loss.json").read_text())
    assert saved["user_ids"] and saved["loss"] in ("nan", "inf")


@pytest.mark.parametrize(
    ("name", "error", "setting"),
    [
        (TITLE_LOSS, RuntimeError(NO_MEMORY),
         "lower trainer.micro_batch_size (it is 8) or set model.gradient_checkpointing=true"),
        (TITLE_LOSS, torch.OutOfMemoryError("CUDA out of memory"),
         "trainer.micro_batch_size"),
        (DECODE, MemoryError(), "while decoding: lower decode.users_per_batch (it is 16)"),
    ],
)  # fmt: skip
def test_out_of_memory_says_which_setting_to_lower(
    cli: Cli,
    shop: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    error: Exception,
    setting: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(name, fail)
    assert cli(*shop) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: out of memory while ") and setting in message


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    cli: Cli,
    shop: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*shop, *LONG, "data.train_rows=24"]
    assert cli(*words, "run_name=whole") == 0
    fsync, room = os.fsync, 40
    for _ in range(20):  # the disk is full a little later each time
        left = room

        def full(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, os.strerror(28))
            fsync(descriptor)

        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", full)
            code = cli(*words, "run_name=full")
        if code == 0:
            break
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("error: cannot write ") and "No space left" in message
        assert "make room" in message and "goes on where it stopped" in message
        room += 25
    assert code == 0 and room > 40
    same(tmp_path / "outputs/whole", tmp_path / "outputs/full")


@pytest.mark.parametrize("at", [1, 3])
def test_a_validation_that_was_cut_off_is_made_up_for(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    words = [*shop, *LONG, "data.train_rows=24"]
    assert cli(*words, "run_name=whole") == 0
    calls = 0
    validation_step = Recommender.validation_step

    def killed(self: Recommender, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise RuntimeError("killed")
        validation_step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Recommender, "validation_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*words, "run_name=cut")
    assert cli(*words, "run_name=cut") == 0
    same(tmp_path / "outputs/whole", tmp_path / "outputs/cut")
    curves = [pl.read_csv(tmp_path / f"outputs/{name}/curves.csv") for name in ("whole", "cut")]
    assert curves[0].equals(curves[1])


def same(first: Path, second: Path) -> None:
    assert (first / "metrics.json").read_text() == (second / "metrics.json").read_text()
    one, other = (load_file(f / "adapter/adapter_model.safetensors") for f in (first, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_checkpoint_is_named(
    cli: Cli,
    shop: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("hatllm.tasks.train.decode_splits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli(*shop, "trainer.checkpoint_every_steps=1", "run_name=run")
    last = tmp_path / "outputs/run/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "bit" else content[:-1000])
    assert cli(*shop, "trainer.checkpoint_every_steps=1", "run_name=run") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{last.relative_to(tmp_path)} is damaged" in message
    assert "delete the folder" in message


def test_a_forced_run_starts_over(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "run_name=run", "trainer.checkpoint_every_steps=1"]
    assert cli(*words) == 0
    before = (tmp_path / "outputs/run/curves.csv").read_text()
    assert cli(*words, "task.force=true") == 0
    assert "resuming from" not in capsys.readouterr().out
    assert (tmp_path / "outputs/run/curves.csv").read_text() == before


def test_a_run_made_again_is_not_finished_until_it_is_whole(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, "model=popularity", "run_name=run"]
    assert cli(*words) == 0
    with monkeypatch.context() as patched:
        patched.setattr("hatllm.tasks.train.write_run_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli(*words, "task.force=true")
    assert not (tmp_path / "outputs/run/run.json").exists()
    assert cli(*words) == 0
    assert (tmp_path / "outputs/run/run.json").exists()
