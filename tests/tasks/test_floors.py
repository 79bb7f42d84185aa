"""Untrained floors and slices on a user's own data, whatever its titles are."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

Cli = Callable[..., int]
TITLES = {
    "one word each": [f"word{i}" for i in range(24)],
    "all the same": ["Lamp"] * 24,
    "no letters a-z": [f"{'愛' * (1 + i)}" for i in range(24)],
}


def with_titles(shop: list[str], titles: list[str]) -> list[str]:
    """The shop with other titles, a catalogue that allows two answers."""
    (path,) = (Path(w.partition("=")[2]) for w in shop if w.startswith("data.items_file="))
    pl.DataFrame({"sku": [f"s{i}" for i in range(24)], "name": titles}).write_csv(path)
    return [*shop, "decode.beam_width=1", "decode.top_k=1", "trainer.monitor=val/trie_NLL"]


def test_own_data_have_floors_and_slices_without_a_setting(cli: Cli, shop: list[str]) -> None:
    for model in ("titles", "titles_graph"):
        assert cli(*shop, f"model={model}", f"run_name={model}") == 0
    test = json.loads(Path("outputs/titles/metrics.json").read_text())["test"]
    # Every title of the shop is two words, and each word stands in four or six titles.
    names = ("no_shared_words", "some_shared_words", "strong_shared_words")
    assert sum(test[f"{name}/count"] for name in names) == test["num_examples"]
    examples = pl.read_parquet("outputs/titles/examples.parquet")
    assert {"word_similarity", "popularity", "words", "transition"} <= set(examples.columns)
    assert cli("task=table", "data=custom", "experiment.reference=titles", *shop[1:]) == 0
    text = Path("outputs/table/table.md").read_text()
    assert "Where copying is impossible:" in text and "| titles_graph | titles | all |" in text


@pytest.mark.parametrize("titles", TITLES)
def test_odd_titles_work_or_are_named_in_one_line(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], titles: str
) -> None:
    words = with_titles(shop, TITLES[titles])
    assert cli(*words, "model=popularity", "run_name=popularity") == 0
    test = json.loads(Path("outputs/popularity/metrics.json").read_text())["test"]
    share = test["strong_shared_words/count"] / test["num_examples"]
    assert share == 1.0 if titles == "all the same" else share < 1.0
    capsys.readouterr()
    code = cli(*words, "model=titles_graph", "run_name=titles")
    error = capsys.readouterr().err
    if titles == "no letters a-z":
        assert code == 2 and "none of the 24 titles, such as '愛', holds a word" in error
        assert "model.titles.analyzer=char_wb" in error
    else:
        assert code == 0


def test_a_file_without_titles_is_named(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (Path(w.partition("=")[2]) for w in shop if w.startswith("data.items_file="))
    pl.read_csv(path).select("sku").write_csv(path)
    assert cli(*shop, "model=titles") == 2
    assert "data.title_column='name'" in capsys.readouterr().err
