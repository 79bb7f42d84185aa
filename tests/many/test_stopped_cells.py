"""A sweep or an experiment stopped inside a cell, or beside another: tests/many/test_sweep.py
does the same with processes, under the marker `slow`."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
from toys import Compose

from hatllm.many import cell_runner
from hatllm.runs.cell import Cell
from hatllm.runs.lock import run_lock
from hatllm.runs.name import run_folder

Cli = Callable[..., int]
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("cells_here")]


def finished(tmp_path: Path) -> dict[str, int]:
    """When each run was finished."""
    return {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("outputs/*/run.json")}


def send_in_step(patch: pytest.MonkeyPatch, number: int, step: int) -> None:
    """The signal comes inside that step of a training."""

    class Send(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *rest: Any) -> None:
            if trainer.global_step == step and rest[2] % 2 == 1:  # of two micro-batches the second
                os.kill(os.getpid(), number)

    fit = lightning.Trainer.fit

    def fit_and_send(self: lightning.Trainer, *args: Any, **words: Any) -> None:
        self.callbacks.append(Send())
        fit(self, *args, **words)

    patch.setattr(lightning.Trainer, "fit", fit_and_send)


def words_of(kind: str, shop: list[str], tmp_path: Path) -> list[str]:
    """Two cells, the second of three steps of two micro-batches."""
    two = ["trainer.micro_batch_size=4"]
    if kind == "sweep":
        return ["-m", *shop, *two, "trainer.max_steps=0,3", "trainer.checkpoint_every_steps=1000"]
    long = '["trainer.max_steps=3","trainer.checkpoint_every_steps=1000"]'
    return [*shop, *two, "task=experiment", f"experiment.folder={tmp_path}/tables",
            '+experiment.cells.popular=["model=popularity"]',
            f"+experiment.cells.long={long}"]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [("sweep", signal.SIGINT, 130), ("experiment", signal.SIGTERM, 143)],
)
def test_a_signal_inside_a_cell_saves_its_step_and_the_same_command_goes_on_there(
    kind: str, number: int, code: int, cli: Cli, shop: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = words_of(kind, shop, tmp_path)
    with monkeypatch.context() as patched:
        send_in_step(patched, number, step=1)
        assert cli(*words) == code
    said = capfd.readouterr().out
    assert "stopped after step 2 of 3; the same command goes on from there" in said
    before = finished(tmp_path)
    assert len(before) == 1
    assert cli(*words) == 0
    said = capfd.readouterr().out
    assert said.count("finished already") == 1 and said.count("resuming from") == 1
    assert len(after := finished(tmp_path)) == 2
    assert before.items() <= after.items()
    tables = "tables" if kind == "experiment" else "outputs/sweeps/*"
    assert list(tmp_path.glob(f"{tables}/table.md"))


def test_cells_that_need_a_run_of_another_process_wait_for_it_at_the_end(
    cli: Cli, compose_config: Compose, shop: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = ["model=sasrec", "model.sequence.max_epochs=1"]
    words = [*shop, "task=experiment", f"experiment.folder={tmp_path}/tables",
             f"+experiment.cells.base={json.dumps(base)}",
             '+experiment.cells.next=["model.item_vectors=run:base","trainer.max_steps=1"]',
             "experiment.seeds=[1]"]  # fmt: skip
    lock = run_lock(tmp_path / run_folder(compose_config(*shop, *base, "seed=1")))
    wait = cell_runner._wait

    def end_the_other_and_wait(cell: Cell) -> None:
        assert not finished(tmp_path)
        lock.release()
        wait(cell)

    monkeypatch.setattr(cell_runner, "_wait", end_the_other_and_wait)
    with lock:
        assert cli(*words) == 0
    said = capfd.readouterr()
    assert "later: it needs a run that another process makes" in said.out
    assert "waiting for the process that runs this cell" in said.out
    assert "is not finished" not in said.out + said.err
    assert len(finished(tmp_path)) == 2
