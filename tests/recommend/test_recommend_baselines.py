"""task=recommend on finished runs of baselines: the answers that the run itself gave."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from cli import call_cli, smoke_words
from encoders import write_encoder

pytestmark = pytest.mark.long

Cli = Callable[..., int]
KINDS: dict[str, list[str]] = {
    "popularity": [],
    "knn": [],
    "titles": [],
    "titles_graph": [],
    "sentences": ["model.titles.encoder=encoder"],  # gone too, when it answers
    "sasrec": ["model.sequence.max_epochs=1"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished run of each kind; their source files are gone."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        write_encoder(folder / "encoder")
        for kind, more in KINDS.items():
            assert call_cli(patch, folder, *words, f"model={kind}", f"run_name={kind}", *more) == 0
    (folder / "shop").rename(folder / "gone")
    (folder / "encoder").rename(folder / "gone-too")
    return folder / "outputs"


@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_answers_as_it_did_for_its_test_split(
    cli: Cli, runs: Path, tmp_path: Path, kind: str
) -> None:
    run = runs / kind
    items = pl.read_parquet(run / "items.parquet")
    source = dict(items.select("item_id", "source_id").rows())
    examples = pl.read_parquet(run / "examples.parquet").sort("example_id")
    histories = [[source[item] for item in row] for row in examples["history"].to_list()]
    file = tmp_path / "h.parquet"
    pl.DataFrame({"user_id": examples["example_id"], "history": histories}).write_parquet(file)
    words = ["task=recommend", f"task.run_folder={run}", f"data.histories={file}"]
    assert cli(*words, "decode.top_k=5") == 0
    (shard,) = run.glob("recommendations/h-*/shards/*.parquet")
    answers = (
        pl.read_parquet(shard).group_by("user_id", maintain_order=True).agg("item", "log_prob")
    )
    before = pl.read_parquet(run / "predictions.parquet").sort("example_id")
    expected = [[source[item] for item in row[:5]] for row in before["top_items"].to_list()]
    assert answers["user_id"].to_list() == before["example_id"].to_list()
    assert answers["item"].to_list() == expected
    for got, all_of_them in zip(answers["log_prob"], before["top_log_probs"], strict=True):
        assert got.to_list() == pytest.approx(all_of_them[:5].to_list(), abs=1e-5)


def test_a_typed_history_is_answered_with_as_many_titles_as_are_asked_and_allowed(
    cli: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={runs / 'popularity'}", "task.history=[Red Boat]"]
    assert cli(*words) == 0
    answered = capsys.readouterr().out
    assert "item id" in answered and " 11 " not in answered
    assert cli(*words, "decode.beam_width=11", "decode.top_k=11") == 0
    assert " 11 " in capsys.readouterr().out
    few = ["task.only=[Red Boat,Old Lamp,Tiny Book]", "task.block=[Old Lamp]"]
    assert cli(*words, *few, "decode.exclude_history=true") == 0
    answered = capsys.readouterr().out
    assert "Tiny Book" in answered and "Old Lamp" not in answered
    assert cli(*words, "task.only=[Nothing]") == 2
    assert "task.only: 'Nothing' is neither a title nor" in capsys.readouterr().err
