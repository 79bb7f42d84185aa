"""One process or many, to the end or killed on the way: the same weights and the same answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from cli import call_cli, command, environment, smoke_words
from safetensors.torch import load_file
from torch.testing import assert_close

from hatllm.decode.shards import Shards
from hatllm.runs.run_files import SHARDS
from hatllm.training.lightning_module import Recommender

pytestmark = pytest.mark.long

Cli = Callable[..., int]
SETTINGS = ["trainer.accelerator=cpu", "trainer.global_batch_size=12", "trainer.micro_batch_size=2",
            "trainer.learning_rate=0.01", "trainer.checkpoint_every_steps=1",
            "data.train_targets=every", "data.target_weights=rising", "loss.tau=3"]  # fmt: skip


MORE_PROCESSES = [("ddp", 3), ("fsdp", 2), ("fsdp", 3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def words(place: Path) -> list[str]:
    return [*smoke_words(place), *SETTINGS, f"output_root={place}/outputs"]


@pytest.fixture(scope="module")
def alone(place: Path, words: list[str]) -> Path:
    """The run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, place, *words, "run_name=alone") == 0
    return place / "outputs" / "alone"


def done(place: Path, words: list[str], launcher: tuple[str, ...] = ()) -> str:
    line = command(words)
    line = [line[0], *launcher, *line[1:]]
    ended = subprocess.run(line, env=environment(place), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def same_run(folder: Path, other: Path) -> None:
    # Float32 sums in another order; AdamW divides by small numbers.
    first, second = (
        pl.read_csv(run / "curves.csv")["train/loss"].drop_nulls() for run in (folder, other)
    )
    assert first.to_list() == pytest.approx(second.to_list(), abs=1e-5)
    one, two = (load_file(run / "adapter/adapter_model.safetensors") for run in (folder, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)
    same_answers(folder / "predictions.parquet", other / "predictions.parquet")


def same_answers(path: Path, other: Path) -> None:
    columns = ["example_id", "target_rank", "target_item_rank", "top_items"]
    one, two = (pl.read_parquet(file).select(columns) for file in (path, other))
    assert one.equals(two)


@pytest.mark.parametrize(
    ("strategy", "devices"),
    [
        ("ddp", 2),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_PROCESSES),
    ],
)
def test_processes_give_the_losses_and_adapter_of_one(
    alone: Path, place: Path, words: list[str], strategy: str, devices: int
) -> None:
    name = f"{strategy}{devices}"
    more = [f"trainer={strategy}", f"trainer.devices={devices}", "trainer.accelerator=cpu"]
    done(place, [*words, *more, f"run_name={name}"])
    same_run(place / "outputs" / name, alone)
    assert not (place / "outputs" / name / SHARDS).exists()


@pytest.mark.slow
def test_a_killed_fsdp_run_goes_on_to_the_same_adapter(
    alone: Path, place: Path, words: list[str]
) -> None:
    words = [*words, "trainer=fsdp", "trainer.devices=2", "trainer.accelerator=cpu",
             "run_name=killed"]  # fmt: skip
    folder = place / "outputs" / "killed"
    process = subprocess.Popen(
        command(words), env=environment(place), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(folder / "checkpoints" / "last.ckpt")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "run.json").exists()
    assert "resuming from" in done(place, words)
    same_run(folder, alone)


@pytest.mark.slow
def test_torchrun_evaluates_a_run_with_more_processes_than_trained_it(
    alone: Path, place: Path, words: list[str]
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    again = ["task=evaluate", f"task.run_folder={alone}", "trainer.strategy=ddp",
             "trainer.devices=2", "decode.users_per_batch=3"]  # fmt: skip
    done(place, again, launcher)
    (table,) = (alone / "evaluations").glob("test-*/predictions.parquet")
    same_answers(table, alone / "predictions.parquet")


def wait_for(path: Path) -> None:
    started = time.monotonic()
    while not path.exists():
        assert time.monotonic() - started < 120, f"{path} does not come"
        time.sleep(0.05)


def test_a_run_killed_in_its_last_validation_validates_and_ends_the_same(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, *SETTINGS]
    assert cli(*words, "run_name=whole") == 0
    with monkeypatch.context() as patched:

        def interrupted(*_: Any) -> None:
            raise RuntimeError("killed")

        patched.setattr(Recommender, "validation_step", interrupted)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*words, "run_name=stopped")
    assert cli(*words, "run_name=stopped") == 0
    same_run(tmp_path / "outputs" / "stopped", tmp_path / "outputs" / "whole")
    curves = pl.read_csv(tmp_path / "outputs" / "stopped" / "curves.csv")
    assert curves["val/NDCG@10"].drop_nulls().len() == 1


def was_resumed(folder: Path) -> bool:
    return bool(json.loads((folder / "environment.json").read_text())["resumed"])


def test_an_evaluation_that_was_stopped_goes_on_and_older_weights_are_not_read(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, "decode.users_per_batch=1", "task.batches_a_shard=1", "run_name=one"]
    write = Shards.write
    written: list[int] = []

    def stop_at_the_fifth(self: Shards, rows: pl.DataFrame) -> None:
        if len(written) == 5:
            raise RuntimeError("killed")
        write(self, rows)
        written.extend(rows["example_id"])

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", stop_at_the_fifth)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*words)
    folder = tmp_path / "outputs" / "one"
    (before,) = (folder / SHARDS).glob("valid-*")
    kept = {path: path.stat().st_mtime_ns for path in before.iterdir()}
    assert len(kept) == 5
    # Other settings that count have other shards; more users a batch have the same ones.
    fewer: list[int] = []
    with monkeypatch.context() as patched:

        def note(self: Shards, rows: pl.DataFrame) -> None:
            fewer.append(rows.height)
            write(self, rows)
            if self.folder == before:
                assert kept == {path: path.stat().st_mtime_ns for path in kept}

        patched.setattr(Shards, "write", note)
        assert cli(*words, "decode.users_per_batch=32") == 0
    assert sum(fewer) == 16 - 5  # 8 valid and 8 test rows
    assert was_resumed(folder)
    assert not (folder / SHARDS).exists()
    shutil.rmtree(folder / "checkpoints")
    fewer.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", note)
        (folder / SHARDS / before.name).mkdir(parents=True)
        assert cli(*words, "task.force=true", "seed=9") == 0
    assert sum(fewer) == 16
    assert not was_resumed(folder)


def test_an_untuned_run_that_was_stopped_says_so_and_has_no_time_of_training(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, "trainer.max_steps=0", "run_name=one"]
    folder = tmp_path / "outputs" / "one"
    write = Shards.write

    def stop_after_valid(self: Shards, rows: pl.DataFrame) -> None:
        if self.folder.name.startswith("test"):
            raise KeyboardInterrupt
        write(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", stop_after_valid)
        assert cli(*words) == 130
    assert cli(*words) == 0
    assert was_resumed(folder)
    assert cli(*words, "task.force=true") == 0
    assert not was_resumed(folder)
    seconds = json.loads((folder / "environment.json").read_text())["seconds"]
    assert seconds.keys() == {"prepare", "evaluate", "total"}


def test_another_number_of_processes_than_torchrun_started_is_refused(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli(*shop, "run_name=one") == 2
    assert "must be 3, the processes that torchrun started" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["loss=sdpo", "model.tuning=full", "model.quantization_bits=8"])
def test_what_fsdp_would_compute_wrongly_is_refused(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert cli(*shop, "trainer=fsdp", "trainer.devices=2", "trainer.micro_batch_size=2", word) == 2
    assert "use trainer=ddp" in capsys.readouterr().err


@pytest.mark.slow
def test_slurms_warning_saves_a_whole_step_and_queues_the_job_again(
    alone: Path, place: Path, words: list[str]
) -> None:
    programs = place / "bin"
    programs.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {place}/scontrol.txt\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "hatllm",
             "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
             "PATH": f"{programs}:{os.environ['PATH']}"}  # fmt: skip
    words = [*words, "run_name=requeued"]
    folder = place / "outputs" / "requeued"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *command(words)[1:]],
        env=environment(place) | slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(folder / "checkpoints" / "last.ckpt")
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert (place / "scontrol.txt").read_text() == "requeue 4711\n"
    assert not (folder / "run.json").exists()
    assert "resuming from" in done(place, words)
    same_run(folder, alone)
    assert json.loads((folder / "run.json").read_text())["label"]


# The command with half a second between micro-batches, so that the signal falls inside a step.
SLOW_STEPS = """
import runpy, sys, time
from hatllm.training.lightning_module import Recommender
loss = Recommender.title_loss
def slow(self, batch):
    time.sleep(0.5)
    return loss(self, batch)
Recommender.title_loss = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
