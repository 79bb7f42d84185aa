"""task=evaluate on finished baseline runs: their own numbers, and those of a run made so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from cli import call_cli, smoke_words

from hatllm.baselines.fusion import fused_predictions

pytestmark = pytest.mark.long

Cli = Callable[..., int]
KINDS: dict[str, list[str]] = {
    "popularity": [],
    "knn": [],
    "titles": ["model.titles.last_items=2"],
    "titles_graph": [],
    "sasrec": ["model.sequence.max_epochs=2"],
    "esasrec": ["model.sequence.max_epochs=1", "model.sequence.num_negatives=4"],
}
EXCLUDED = "decode.exclude_history=true"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished run of each kind, and one that excludes the history."""
    folder = tmp_path_factory.mktemp("baselines")
    words = smoke_words(folder)
    with pytest.MonkeyPatch.context() as patch:
        for kind, more in KINDS.items():
            model = [f"model={kind}", *more]
            assert call_cli(patch, folder, *words, *model, f"run_name={kind}") == 0
            assert call_cli(patch, folder, *words, *model, f"run_name={kind}_x", EXCLUDED) == 0
        outputs = folder / "outputs"
        two = [f"model.first_run={outputs / 'titles'}", f"model.second_run={outputs / 'sasrec'}"]
        assert call_cli(patch, folder, *words, "model=fusion", *two, "run_name=fusion") == 0
    return outputs


@pytest.fixture
def outputs(made: Path) -> Path:
    """The runs; evaluations of earlier tests are gone."""
    for folder in made.glob("*/evaluations"):
        shutil.rmtree(folder)
    return made


def evaluated(cli: Cli, run: Path, *words: str) -> Path:
    assert cli("task=evaluate", f"task.run_folder={run}", *words) == 0
    (folder,) = (run / "evaluations").iterdir()
    return folder


def metrics(folder: Path, split: str = "test") -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())[split]
    return found


def table(folder: Path, name: str = "predictions.parquet") -> pl.DataFrame:
    return pl.read_parquet(folder / name)


@pytest.mark.parametrize("kind", [*KINDS, "fusion"])
def test_unchanged_settings_give_the_runs_own_answers_and_metrics(
    cli: Cli, outputs: Path, kind: str
) -> None:
    run = outputs / kind
    folder = evaluated(cli, run)
    assert table(folder).equals(table(run))
    assert metrics(folder) == metrics(run)
    assert {path.name for path in folder.iterdir()} == {
        "environment.json", "metrics.json", "predictions.parquet",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_history_it_answers_like_a_run_made_without_it(
    cli: Cli, outputs: Path, kind: str
) -> None:
    folder = evaluated(cli, outputs / kind, EXCLUDED)
    assert table(folder).equals(table(outputs / f"{kind}_x"))
    assert metrics(folder) == metrics(outputs / f"{kind}_x")
    assert not table(folder).equals(table(outputs / kind))


def test_a_fused_run_keeps_its_share_and_fuses_what_both_answer_without_the_history(
    cli: Cli, outputs: Path
) -> None:
    folder = evaluated(cli, outputs / "fusion", EXCLUDED)
    learned = json.loads((outputs / "fusion/fusion.json").read_text())
    first, second = (table(outputs / f"{kind}_x") for kind in ("titles", "sasrec"))
    items = table(outputs / "fusion", "items.parquet")
    expected = fused_predictions(first, second, items, learned["share"], learned["constant"], 10)
    assert table(folder).equals(expected)


def test_other_rows_another_split_and_longer_lists_are_answered(cli: Cli, outputs: Path) -> None:
    run = outputs / "knn"
    few = evaluated(cli, run, "data.test_rows=3")
    of_run = table(run).filter(pl.col("example_id").is_in(table(few)["example_id"].implode()))
    assert len(of_run) == 3 and table(few).equals(of_run)
    shutil.rmtree(run / "evaluations")
    valid = evaluated(cli, run, "task.split=valid")
    assert table(valid).equals(table(run, "valid_predictions.parquet"))
    assert metrics(valid, "valid") == metrics(run, "valid")
    shutil.rmtree(run / "evaluations")
    longer = evaluated(cli, run, "decode.beam_width=15", "decode.top_k=15")
    lists = table(longer)["top_items"].to_list()
    assert [row[:10] for row in lists] == table(run)["top_items"].to_list()
    assert {len(row) for row in lists} == {15}


def test_popularity_answers_by_what_it_has_learned_whatever_rows_are_asked(
    cli: Cli, outputs: Path
) -> None:
    run = outputs / "popularity"
    folder = evaluated(cli, run, "data.valid_rows=1")  # would choose another pseudo-count
    assert table(folder).equals(table(run))


def test_a_fused_run_of_an_llm_is_evaluated_by_decoding_it_again(
    cli: Cli, shop: list[str], finished: Path
) -> None:
    assert cli(*shop, "model=titles", "run_name=titles") == 0
    words = ["model=fusion", f"model.first_run={finished}", "model.second_run=outputs/titles"]
    assert cli(*shop, *words, "run_name=both") == 0
    run = Path("outputs/both")
    folder = evaluated(cli, run)
    columns = ["example_id", "target_rank", "target_item_rank", "top_items"]
    assert table(folder).select(columns).equals(table(run).select(columns))
    assert not (folder / "shards").exists()


def test_what_the_run_has_learned_must_be_there(
    cli: Cli, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(outputs / "knn", tmp_path / "broken")
    (run / "neighbours.parquet").unlink()
    assert cli("task=evaluate", f"task.run_folder={run}") == 2
    assert "neighbours.parquet" in capsys.readouterr().err
