"""A run whose scores start from the shares of titles."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from cli import smoke_words

from hatllm.runs.run_files import TITLE_SHARES_FILE

Cli = Callable[..., int]
FLAT = ["trainer.max_steps=0", "decode.temperature=1e9"]  # logits without weight
LISTS = ["decode.beam_width=20", "decode.top_k=10", "mask=causal"]


def metrics(folder: Path, split: str = "test") -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())[split]
    return found


@pytest.mark.parametrize("prior", ["popularity", "titles"])
def test_without_a_word_from_the_model_it_is_popularity_or_a_uniform_guess(
    prior: str, cli: Cli, tmp_path: Path
) -> None:
    words = [*smoke_words(tmp_path), "data.test_rows=24", f"loss.prior={prior}", *LISTS, *FLAT]
    assert cli(*words, "run_name=flat") == 0
    folder = tmp_path / "outputs" / "flat"
    found, floor = metrics(folder), metrics(folder, "popularity")
    items = pl.read_parquet(folder / "items.parquet")
    if prior == "popularity":
        assert found["trie_NLL"] == pytest.approx(floor["trie_NLL"], abs=1e-4)
        answers = pl.read_parquet(folder / "predictions.parquet")["top_items"].to_list()
        assert all(one == answers[0] for one in answers)
    else:
        assert found["trie_NLL"] == pytest.approx(
            pl.Series([items["title"].n_unique()]).log()[0], abs=1e-4
        )
    shares = pl.read_parquet(folder / TITLE_SHARES_FILE)
    assert shares["item_id"].to_list() == sorted(items["item_id"].to_list())
    assert f"the shares of {prior}" in (folder / "report.md").read_text().replace(
        "equal shares of all titles", "the shares of titles"
    )


def test_a_finished_run_keeps_its_shares_and_says_when_they_are_gone(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*smoke_words(tmp_path), "loss.prior=popularity", *LISTS]
    assert cli(*words, "run_name=prior", "trainer.max_steps=1") == 0
    folder = tmp_path / "outputs" / "prior"
    assert cli("task=evaluate", f"task.run_folder={folder}", "decode.users_per_batch=3") == 0
    (again,) = (folder / "evaluations").iterdir()
    assert metrics(again) == pytest.approx(metrics(folder), abs=1e-5)
    shares = pl.read_parquet(folder / TITLE_SHARES_FILE)
    shares.head(3).write_parquet(folder / TITLE_SHARES_FILE)
    assert cli("task=evaluate", f"task.run_folder={folder}", "task.force=true") == 2
    assert f"{TITLE_SHARES_FILE} holds other items" in capsys.readouterr().err
    for damage in (pl.lit(None, pl.Float64), pl.lit(float("-inf")), pl.lit("x")):
        shares.with_columns(log_share=damage).write_parquet(folder / TITLE_SHARES_FILE)
        assert cli("task=recommend", f"task.run_folder={folder}", "task.history=[Red Boat]") == 2
        assert "log_share must be a finite number" in capsys.readouterr().err
    (folder / TITLE_SHARES_FILE).unlink()
    assert cli("task=recommend", f"task.run_folder={folder}", "task.history=[Red Boat]") == 2
    assert TITLE_SHARES_FILE in capsys.readouterr().err
