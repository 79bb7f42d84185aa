"""Finished baseline runs as assistants of d3, against probabilities made of their answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from cli import call_cli, smoke_words
from encoders import write_encoder

from hatllm.training.assistants import load_assistant, log_probs_by_rank

pytestmark = pytest.mark.long

Cli = Callable[..., int]
BY_RANK = ("knn", "titles", "titles_graph", "sentences", "fusion")
KINDS = ("popularity", "sasrec", *BY_RANK)
NUM_TITLES = 24  # of the shop, all different


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished run of each kind that answers with all titles, and an LLM's `sft`."""
    folder = tmp_path_factory.mktemp("assistants")
    outputs = folder / "outputs"
    more = {
        "sasrec": ["model.sequence.max_epochs=1"],
        "sentences": [f"model.titles.encoder={write_encoder(folder / 'encoder')}"],
        "fusion": [f"model.first_run={outputs / 'titles'}", f"model.second_run={outputs / 'knn'}"],
    }
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        for kind in KINDS:
            long = [f"decode.top_k={NUM_TITLES}", f"decode.beam_width={NUM_TITLES}"]
            named = [f"model={kind}", f"run_name={kind}", *long]
            assert call_cli(patch, folder, *words, *named, *more.get(kind, [])) == 0
        assert call_cli(patch, folder, *words, "run_name=sft", "trainer.learning_rate=0.01") == 0
    return outputs


def probabilities(runs: Path, kind: str) -> pl.DataFrame:
    """What each title of each example should get: example_id, item, prob, of the run's answers."""
    table = pl.read_parquet(runs / kind / "predictions.parquet")
    rows = []
    for example, items, log_probs in table.select(
        "example_id", "top_items", "top_log_probs"
    ).rows():
        assert sorted(items) == sorted(set(items)) and len(items) == NUM_TITLES
        if kind not in BY_RANK:
            rows += [(example, i, math.exp(x)) for i, x in zip(items, log_probs, strict=True)]
            continue
        total = sum(1 / (1 + rank) for rank in range(1, NUM_TITLES + 1))
        for item, value in zip(items, log_probs, strict=True):
            equal = [r for r, x in enumerate(log_probs, 1) if math.isclose(x, value, abs_tol=1e-9)]
            share = sum(1 / (1 + rank) for rank in equal) / len(equal)
            rows.append((example, item, share / total))
    return pl.DataFrame(rows, schema=["example_id", "item", "prob"], orient="row")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_gives_each_title_what_its_answers_say(runs: Path, kind: str) -> None:
    items = pl.read_parquet(runs / kind / "items.parquet")["item_id"].sort()
    examples = pl.read_parquet(runs / kind / "examples.parquet").sort("example_id")
    histories = [np.array(history) for history in examples["history"].to_list()]
    log_prob_BI = load_assistant(str(runs / kind), items.to_numpy(), {})(histories)
    expected = probabilities(runs, kind).sort("example_id", "item")
    assert expected["item"].to_list() == items.to_list() * len(examples)
    found = log_prob_BI.double().exp().flatten().tolist()
    assert found == pytest.approx(expected["prob"].to_list(), abs=1e-5)
    assert len(set(np.round(found[:NUM_TITLES], 9))) > 1  # it tells titles apart


def test_equal_scores_share_what_their_ranks_get_together() -> None:
    found = log_probs_by_rank(torch.tensor([[0.5, 2.0, 0.5, -1.0]])).exp()[0].tolist()
    total = 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5
    shared = (1 / 3 + 1 / 4) / 2
    assert found == pytest.approx([shared / total, 0.5 / total, shared / total, 0.2 / total])


def evaluated(cli: Cli, run: Path, *words: str) -> dict[int, dict[int, float]]:
    """example -> item -> what it was ranked by, of a finished run decoded again."""
    before = set((run / "evaluations").glob("*"))
    wide = [f"decode.beam_width={NUM_TITLES}", f"decode.top_k={NUM_TITLES}"]
    assert cli("task=evaluate", f"task.run_folder={run}", *words, *wide) == 0
    (folder,) = set((run / "evaluations").glob("*")) - before
    assert 0.0 <= json.loads((folder / "metrics.json").read_text())["test"]["NDCG@10"] <= 1.0
    table = pl.read_parquet(folder / "predictions.parquet")
    rows = table.select("example_id", "top_items", "top_log_probs").rows()
    return {example: dict(zip(items, values, strict=True)) for example, items, values in rows}


@pytest.mark.parametrize("normalize", ["trie", "vocab"])
def test_d3_mixes_the_title_rule_into_the_beam(cli: Cli, runs: Path, normalize: str) -> None:
    words = [f"decode.normalize={normalize}"]
    llm = evaluated(cli, runs / "sft", "decode=beam", *words)
    d3 = ["decode=d3", f"decode.assistant_run={runs / 'titles'}", "decode.llm_weight=0.3"]
    mixed = evaluated(cli, runs / "sft", *d3, *words)
    prob = {(e, i): p for e, i, p in probabilities(runs, "titles").rows()}
    for example, scores in mixed.items():
        assert scores == pytest.approx(
            {i: 0.3 * x + 0.7 * math.log(prob[example, i]) for i, x in llm[example].items()},
            abs=1e-4,
        )


def test_an_assistant_that_does_not_fit_is_refused_in_one_line(runs: Path) -> None:
    items = pl.read_parquet(runs / "knn/items.parquet")["item_id"].sort().to_numpy()
    for folder, item_id_I, part in (
        (runs / "sft", items, "is a run of model=tiny, an LLM; give that of a baseline: fusion,"),
        (runs / "nowhere", items, "no such folder; give the folder of a finished run"),
        (runs / "titles", np.arange(3), "knows 24 items that are not the 3 of this run's"),
        (runs / "fusion", np.arange(24) + 99, "knows 24 items that are not the 24 of this run's"),
    ):
        with pytest.raises(ValueError, match="assistant_run") as refused:
            load_assistant(str(folder), item_id_I, {})
        said = str(refused.value)
        assert said.startswith(f"decode.assistant_run={str(folder)!r}") and part in said
        assert "\n" not in said


def test_a_damaged_file_of_an_assistant_is_named(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "sentences"
    copy.mkdir()
    for path in (runs / "sentences").iterdir():
        if path.is_file() and path.name != "sentence_vectors.safetensors":
            (copy / path.name).write_bytes(path.read_bytes())
    items = pl.read_parquet(copy / "items.parquet")["item_id"].sort().to_numpy()
    with pytest.raises(ValueError, match=r"sentence_vectors\.safetensors cannot be read"):
        load_assistant(str(copy), items, {})
