"""How cells of a sweep or an experiment are run: retried, left for later, waited for, noted."""

import threading
from pathlib import Path

import pytest

from hatllm.many import cell_runner
from hatllm.processes import BUSY, REFUSED
from hatllm.runs.cell import Cell
from hatllm.runs.lock import run_lock

SCRIPT = Path("run.py")


def test_busy_cells_and_those_that_need_them_come_last_and_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: tmp_path / name for name in "abcd"}
    words = {"a": "x=1", "b": f"model.start_from={folders['a']}", "c": "x=3", "d": "x=4"}
    cells = [Cell(name, 1, folders[name], "toys", [words[name]]) for name in "abcd"]
    folders["d"].mkdir()
    (folders["d"] / "run.json").write_text("{}")
    is_held, is_done = threading.Event(), threading.Event()
    started: list[str] = []

    def other_process() -> None:
        with run_lock(folders["a"]):
            is_held.set()
            is_done.wait()

    def start(command: list[str]) -> int:
        (name,) = (name for name, word in words.items() if word == command[-1])
        started.append(name)
        if name == "a" and not is_done.is_set():
            threading.Timer(0.2, is_done.set).start() if started.count("a") == 2 else None
            return BUSY
        if name == "c":
            return REFUSED
        folders[name].mkdir()
        (folders[name] / "run.json").write_text("{}")
        return 0

    monkeypatch.setattr(cell_runner, "run_retried", start)
    other = threading.Thread(target=other_process)
    other.start()
    is_held.wait()
    cell_runner.run_cells(cells, SCRIPT)
    assert started == ["a", "c"]
    assert [cell.is_busy for cell in cells] == [True, True, False, False]
    tables: list[int] = []
    assert cell_runner.finish(cells, SCRIPT, lambda: tables.append(1)) == 1
    other.join()
    assert started == ["a", "c", "a", "a", "b"] and tables == [1]
    said = capsys.readouterr()
    assert said.out.count("later: that process makes the run") == 1
    assert said.out.count("finished already") == 1
    assert "failed: c on toys, seed 1: exit code 2; its message is above" in said.err
    assert "1 of 4 cells failed" in said.err


def test_a_note_gives_the_cell_back(tmp_path: Path) -> None:
    cells = [Cell("a", 1, tmp_path / "a", "toys", ["seed=1"], failure=None),
             Cell("b", 2, Path(), number=1, failure="loss.tau=0.0 must be above 0")]  # fmt: skip
    for cell in reversed(cells):
        cell_runner.note(cell, tmp_path / "notes")
    assert cell_runner.noted_cells(tmp_path / "notes") == cells


def test_a_cell_is_in_the_group_of_its_sweep_unless_its_words_name_another() -> None:
    assert cell_runner.with_group(["seed=1"], "masks") == ["seed=1", "logger.group=masks"]
    assert cell_runner.with_group(["logger.group=mine"], "masks") == ["logger.group=mine"]
    assert cell_runner.with_group(["seed=1"], None) == ["seed=1"]
