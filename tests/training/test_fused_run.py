"""A run of two runs: in one command, in an experiment, answering, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from hatllm.baselines.fusion import best_share, fused_predictions

pytestmark = pytest.mark.long

Cli = Callable[..., int]


@pytest.fixture
def runs(cli: Cli, shop: list[str], tmp_path: Path) -> Path:
    """A title rule's run and kNN's."""
    outputs = tmp_path / "outputs"
    for model in ("titles", "knn"):
        assert cli(*shop, f"model={model}", f"run_name={model}", f"output_root={outputs}") == 0
    return outputs


def words(runs: Path) -> list[str]:
    return ["model=fusion", f"model.first_run={runs / 'titles'}",
            f"model.second_run={runs / 'knn'}", f"output_root={runs}"]  # fmt: skip


def test_the_share_comes_from_valid_and_the_run_answers(
    cli: Cli, shop: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, *words(runs), "run_name=both") == 0
    learned = json.loads((runs / "both/fusion.json").read_text())
    gains = {float(share): gain for share, gain in learned["valid_NDCG"].items()}
    assert learned["share"] == best_share(gains)
    first, second, found = (
        pl.read_parquet(runs / name / "predictions.parquet") for name in ("titles", "knn", "both")
    )
    items = pl.read_parquet(runs / "both/items.parquet")
    expected = fused_predictions(first, second, items, learned["share"], learned["constant"], 10)
    columns = ["example_id", "target_rank", "target_item_rank", "top_items"]
    assert found.select(columns).equals(expected.select(columns))
    assert "HR@10" in json.loads((runs / "both/metrics.json").read_text())["test"]
    asked = [f'task.history=["{items["title"][0]}"]', f"task.run_folder={runs / 'both'}"]
    capsys.readouterr()
    assert cli("task=recommend", *asked) == 0
    said = capsys.readouterr().out
    assert sum(title in said for title in items["title"].unique()) >= 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["model.first_run=null"], "model.first_run=null must be the folder"),
        (["model.second_run=nowhere"], "model.second_run='nowhere': no such folder"),
        (["data.test_rows=3"], "has answered other test examples"),
        (["model=knn", "model.first_run=x"], "model.first_run='x' must be null with model=knn"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    cli: Cli,
    shop: list[str],
    runs: Path,
    change: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli(*shop, *words(runs), *change) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("cells_here")
def test_an_experiment_fuses_its_own_cells(cli: Cli, shop: list[str], tmp_path: Path) -> None:
    cells = (
        "++experiment.cells={titles:['model=titles'],knn:['model=knn'],"
        "both:['model=fusion','model.first_run=run:titles','model.second_run=run:knn']}"
    )
    assert cli(*shop, "task=experiment", "experiment.name=x", "experiment.seeds=[1]", cells,
               f"output_root={tmp_path}/outputs") == 0  # fmt: skip
    found = {json.loads(p.read_text())["label"] for p in tmp_path.glob("outputs/*/run.json")}
    assert found == {"titles", "knn", "both"}
