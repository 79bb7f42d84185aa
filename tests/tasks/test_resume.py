import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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
    one, other = adapter(first), adapter(second)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-7, msg=name)


def long_run(shop: list[str], tmp_path: Path, name: str) -> list[str]:
    return [*shop, "model.lora.dropout=0.1", "trainer.max_epochs=3", "trainer.micro_batch_size=2",
            "trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01", f"run_name={name}",
            f"output_root={tmp_path}/outputs"]  # fmt: skip


@pytest.mark.parametrize("stop_after", [2, 7, 9])
def test_a_run_resumed_from_a_checkpoint_ends_like_one_never_stopped(
    shop: list[str], tmp_path: Path, stop_after: int
) -> None:
    # 60 train rows, 8 a step: 7 steps an epoch. Steps 2 and 9 lie inside an epoch, 7 at its end.
    env = environment(tmp_path)
    whole = command(long_run(shop, tmp_path, "whole"))
    subprocess.run(whole, check=True, env=env, capture_output=True)
    stopped = long_run(shop, tmp_path, "stopped")
    script = (
        "import sys, runpy, pytorch_lightning as pl\n"
        "original = pl.Trainer.fit\n"
        "class Stop(pl.Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        f"        if trainer.global_step == {stop_after} and batch_idx % 4 == 2: raise KeyboardInterrupt\n"
        "def fit(self, *args, **kw):\n"
        "    self.callbacks.append(Stop()); return original(self, *args, **kw)\n"
        "pl.Trainer.fit = fit\n"
        f"sys.argv = ['run.py', *{stopped!r}]\n"
        f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
    )
    broken = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert broken.returncode == 130, broken.stderr
    assert "resume with the same command" in broken.stdout
    assert not (tmp_path / "outputs/stopped/run.json").exists()
    again = subprocess.run(command(stopped), check=True, env=env, capture_output=True, text=True)
    assert "resuming from" in again.stdout
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
        (tmp_path / "outputs" / name / "predictions.parquet").read_bytes() for name in ("one", "two")
    )
    import polars as pl

    tables = [pl.read_parquet(data) for data in (one, two)]
    assert tables[0]["example_id"].to_list() == tables[1]["example_id"].to_list()
    assert tables[0]["top_items"].to_list() == tables[1]["top_items"].to_list()
    shutil.rmtree(tmp_path / "outputs")
