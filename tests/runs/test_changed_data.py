"""A finished run is not the answer for data that have changed since."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

Cli = Callable[..., int]
BASELINE = ["model=popularity", "data.train_rows=null"]


def correct(interactions: Path) -> None:
    """Every s3 becomes s4, in a file of the same size."""
    text = interactions.read_text()
    corrected = re.sub(r"\bs3\b", "s4", text)
    assert corrected != text and len(corrected) == len(text)
    interactions.write_text(corrected)


@pytest.fixture
def interactions(shop: list[str]) -> Path:
    (word,) = (word for word in shop if word.startswith("data.interactions_file="))
    return Path(word.partition("=")[2])


def test_a_finished_run_is_refused_for_data_that_have_changed_and_force_makes_it_anew(
    cli: Cli, shop: list[str], interactions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, *BASELINE]
    assert cli(*words) == 0
    (run,) = Path("outputs").glob("*/run.json")
    before = json.loads(run.read_text())["data_hash"]
    correct(interactions)
    assert cli(*words) == 2
    error = capsys.readouterr().err
    assert f"data_hash={before[:12]} (now " in error and "task.force=true" in error
    assert cli(*words, "task.force=true") == 0
    assert json.loads(run.read_text())["data_hash"] != before
    capsys.readouterr()
    assert cli(*words) == 0
    assert "finished already" in capsys.readouterr().out


def test_an_unchanged_run_is_found_finished_without_reading_its_data(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, *BASELINE]
    assert cli(*words) == 0
    monkeypatch.setattr("hatllm.data.prepare.load_prepared", None)
    monkeypatch.setattr("hatllm.data.prepare.build_tables", None)
    assert cli(*words) == 0
    assert "finished already" in capsys.readouterr().out


def test_an_evaluation_is_refused_for_data_that_have_changed(
    cli: Cli, finished: Path, finished_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interactions = next((finished_once.parents[1] / "shop").glob("inter*"))
    whole = interactions.read_text()
    try:
        correct(interactions)
        assert cli("task=evaluate", f"task.run_folder={finished}") == 2
    finally:
        interactions.write_text(whole)
    assert f"has changed since {finished} was finished" in capsys.readouterr().err
    assert not (finished / "evaluations").exists()


def test_a_sweep_names_its_finished_cells_whose_data_have_changed(
    cli: Cli, shop: list[str], interactions: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = [*shop, *BASELINE]
    assert cli(*words) == 0
    monkeypatch.setattr("hatllm.many.cell_runner.run_retried", None)  # nothing is run
    assert cli("-m", *words, "seed=42") == 0
    assert "finished already" in capsys.readouterr().out
    correct(interactions)
    assert cli("-m", *words, "seed=42") == 1
    assert "has changed since" in capsys.readouterr().err


def test_an_experiment_is_refused_where_the_data_of_a_finished_cell_have_changed(
    cli: Cli, shop: list[str], interactions: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = [*shop, "task=experiment", "experiment.name=one", "experiment.seeds=[1]",
             '+experiment.cells.popular=["model=popularity"]']  # fmt: skip
    monkeypatch.setattr("hatllm.many.cell_runner.run_retried", lambda command: cli(*command[2:]))
    assert cli(*words) == 0
    correct(interactions)
    assert cli(*words) == 2
    assert "has changed since" in capsys.readouterr().err
    assert cli(*words, "task.force=true") == 0
    capsys.readouterr()
    assert cli(*words) == 0
    assert "finished already" in capsys.readouterr().out


def test_force_runs_every_run_of_an_experiment_anew_and_once(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, "task=experiment", "experiment.name=two", "experiment.seeds=[1]",
             '+experiment.cells.one=["model=popularity"]',
             '+experiment.cells.alike=["model=popularity","decode.users_per_batch=1"]',
             '+experiment.cells.other=["model=knn"]']  # fmt: skip
    run: list[str] = []

    def in_process(command: list[str]) -> int:
        run.extend(word for word in command if word.startswith("experiment.cell="))
        return cli(*command[2:])

    monkeypatch.setattr("hatllm.many.cell_runner.run_retried", in_process)
    anew = ["experiment.cell=one", "experiment.cell=other"]
    assert cli(*words) == 0 and run == anew
    assert cli(*words) == 0 and run == anew
    assert cli(*words, "experiment.only=[one]", "task.force=true") == 0 and run == [*anew, anew[0]]
    assert cli(*words, "task.force=true") == 0 and run == [*anew, anew[0], *anew]
