"""The views of an experiment against hand-made run folders."""

import json
from pathlib import Path
from typing import Any

import pytest

from hatllm.runs.cell import Cell
from hatllm.tables.views import efficiency_frame, frame_markdown


def write_run(
    folder: Path,
    label: str,
    seconds: dict[str, float],
    resumed: bool = False,
    gpu: list[str] | None = None,
) -> Cell:
    """A finished run of 10 valid and 30 test rows."""
    folder.mkdir()
    hardware = {"processor": "Zen", "gpu": gpu}
    environment = {"hardware": hardware, "seconds": seconds, "resumed": resumed}
    metrics = {"valid": {"num_examples": 10.0}, "test": {"num_examples": 30.0}}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text("{}")
    return Cell(label, 1, folder)


def by_label(runs: list[Cell], rows: dict[Path, int]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in efficiency_frame("toys", runs, rows).to_dicts()}


def test_times_and_rates_are_means_over_the_seeds(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "1", "causal", {"train": 10.0, "evaluate": 4.0}),
        write_run(tmp_path / "2", "causal", {"train": 20.0, "evaluate": 8.0}),
        Cell("causal", 3, tmp_path / "not there"),
    ]
    frame = efficiency_frame("toys", runs, {run.folder: 100 for run in runs})
    (row,) = frame.to_dicts()
    assert (row["data"], row["label"], row["hardware"]) == ("toys", "causal", "Zen")
    assert row["num_seeds"] == 2
    assert (row["train_s"], row["evaluate_s"]) == (15.0, 6.0)
    assert (row["rows_per_s"], row["users_per_s"]) == (7.5, 7.5)  # of 10 and 5, twice
    for name, std in (("train_s", 50), ("evaluate_s", 8), ("rows_per_s", 12.5)):
        assert row[f"{name}_std"] == pytest.approx(std**0.5)
    assert frame_markdown(frame).splitlines() == [
        "| data | label | hardware | num_seeds | train_s | evaluate_s | rows_per_s | users_per_s |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
        "| toys | causal | Zen | 2 | 15.00 (7.07) | 6.00 (2.83) | 7.50 (3.54) | 7.50 (3.54) |",
    ]


def test_a_resumed_run_has_no_times(tmp_path: Path) -> None:
    last_part = {"train": 0.1, "evaluate": 0.1}
    runs = [
        write_run(tmp_path / "1", "one", {"train": 10.0, "evaluate": 4.0}),
        write_run(tmp_path / "2", "one", last_part, resumed=True),
        write_run(tmp_path / "3", "all", last_part, resumed=True),
    ]
    rows = by_label(runs, {run.folder: 100 for run in runs})
    times = ("train_s", "evaluate_s", "rows_per_s", "users_per_s")
    assert [rows["one"][name] for name in times] == [10.0, 4.0, 10.0, 10.0]
    assert [rows["all"][name] for name in times] == [None] * 4
    assert (rows["one"]["num_seeds"], rows["all"]["num_seeds"]) == (1, 0)
    text = frame_markdown(efficiency_frame("toys", runs[2:], {}))
    assert text.splitlines()[-1] == "| toys | all | Zen | 0 | – | – | – | – |"


def test_a_run_that_may_stop_early_keeps_its_time_and_has_no_rate(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "1", "sasrec", {"train": 10.0, "evaluate": 4.0}),
        write_run(tmp_path / "2", "knn", {"evaluate": 8.0}),
    ]
    rows = by_label(runs, {})
    assert (rows["sasrec"]["train_s"], rows["sasrec"]["rows_per_s"]) == (10.0, None)
    assert (rows["knn"]["train_s"], rows["knn"]["users_per_s"]) == (None, 5.0)


def test_the_hardware_of_every_seed_is_listed(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / str(n), "causal", {}, resumed=n == 3, gpu=gpu)
        for n, gpu in enumerate((["A", "A"], ["A", "A"], None, ["B"]))
    ]
    assert by_label(runs, {})["causal"]["hardware"] == "A, A; Zen; B"
