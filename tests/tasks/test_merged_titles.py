"""A model whose tokenizer does not tell titles apart: refused, or said and counted."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hatllm.model.backbone import byte_tokenizer, tiny_llama

Cli = Callable[..., int]
BASE = Path(__file__).parents[1] / "cases" / "base"
WORDS = ["scale=smoke", "num_threads=1", "model=huggingface", "mask=causal"]


def model_with(tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[str]:
    """The words that choose a tiny random model with this tokenizer, saved into the folder."""
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [*WORDS, f"model.source={folder}", "model.dtype=float32"]


def data_words(interactions: Path, items: Path) -> list[str]:
    return ["data=custom", f"data.interactions_file={interactions}", f"data.items_file={items}"]


def test_a_tokenizer_that_makes_one_sequence_of_all_titles_is_refused(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = ["<unk>", "</s>", '"', "Next", ":", "Chosen", "Item", "number", "A", "user"]
    inner = Tokenizer(models.WordLevel(dict(zip(vocabulary, range(10), strict=True)), "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    words = model_with(tokenizer, tmp_path / "model")
    assert cli(*words, *data_words(BASE / "i.csv", BASE / "t.csv")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the same tokens of 30 of 30 different titles" in error
    assert error.count("'Item number ") == 2


def test_a_few_titles_of_one_sequence_are_said_counted_and_ranked_apart(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    titles = [f"Film {n}" for n in range(220)] + ["FILM 7"]
    pl.DataFrame({"item_id": range(221), "title": titles}).write_csv(tmp_path / "t.csv")
    plays = [(user, (user * 7 + step) % 221, step) for user in range(300) for step in range(8)]
    pl.DataFrame(plays, ["user_id", "item_id", "timestamp"], orient="row").write_csv(
        tmp_path / "i.csv"
    )
    words = model_with(tokenizer, tmp_path / "model")
    data = data_words(tmp_path / "i.csv", tmp_path / "t.csv")
    assert cli(*words, *data, "trainer.max_steps=1", "run_name=few") == 0
    note = "2 of 221 titles have the tokens of another title"
    assert f"note: {note}" in capsys.readouterr().err
    folder = tmp_path / "outputs" / "few"
    counts = json.loads((folder / "environment.json").read_text())["titles"]
    assert counts == {"titles": 221, "merged": 2, "unknown": 0}
    assert note in (folder / "report.md").read_text()
