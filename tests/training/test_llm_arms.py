"""S-DPO, D3 and grounding from the command line, on the small shop."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from cli import call_cli, smoke_words
from safetensors.torch import load_file

pytestmark = pytest.mark.long

Cli = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a finished LLM run `sft` and a finished SASRec run `ids`, made once."""
    folder = tmp_path_factory.mktemp("arms")
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        assert call_cli(patch, folder, *words, "run_name=sft", "trainer.learning_rate=0.01") == 0
        sasrec = ["model=sasrec", "model.sequence.max_epochs=2", "run_name=ids"]
        assert call_cli(patch, folder, *words, *sasrec) == 0
    return folder / "outputs"


def evaluated(cli: Cli, run: Path, *words: str) -> pl.DataFrame:
    """The predictions of a finished run decoded again."""
    before = set((run / "evaluations").glob("*"))
    assert cli("task=evaluate", f"task.run_folder={run}", *words) == 0
    (folder,) = set((run / "evaluations").glob("*")) - before
    assert 0.0 <= json.loads((folder / "metrics.json").read_text())["test"]["NDCG@10"] <= 1.0
    return pl.read_parquet(folder / "predictions.parquet")


def test_d3_mixes_a_finished_baseline_into_the_beam(cli: Cli, runs: Path) -> None:
    words = ["decode=d3", f"decode.assistant_run={runs / 'ids'}", "decode.beam_width=24"]
    mixed = evaluated(cli, runs / "sft", *words, "decode.top_k=24", "decode.llm_weight=0.0")
    ids = pl.read_parquet(runs / "ids" / "predictions.parquet")
    # Without any weight on the LLM the answers are the assistant's.
    top = [row[:10] for row in mixed.sort("example_id")["top_items"].to_list()]
    assert top == ids.sort("example_id")["top_items"].to_list()
    mixed_log_probs = [row[:10] for row in mixed.sort("example_id")["top_log_probs"].to_list()]
    for got, expected in zip(mixed_log_probs, ids.sort("example_id")["top_log_probs"], strict=True):
        assert got == pytest.approx(expected.to_list(), abs=1e-5)


def test_a_run_can_be_trained_and_validated_with_d3(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path
) -> None:
    words = ["decode=d3", f"decode.assistant_run={runs / 'ids'}", "run_name=d3"]
    assert cli(*shop, *words) == 0
    folder = tmp_path / "outputs/d3"
    assert pl.read_parquet(folder / "predictions.parquet").height == 8
    assert pl.read_csv(folder / "curves.csv")["val/NDCG@10"].drop_nulls().len() == 1
    # It has no NLL of its own: not in metrics, slices, the report or the curves.
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not [name for split in ("valid", "test") for name in metrics[split] if "NLL" in name]
    assert "NLL" not in (folder / "curves.csv").read_text()
    report = (folder / "report.md").read_text().splitlines()
    assert next(line for line in report if line.startswith("| head |")).endswith("| – |")


def test_an_assistant_that_does_not_fit_is_refused(
    cli: Cli, runs: Path, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=evaluate", f"task.run_folder={runs / 'sft'}", "decode=d3"]
    for folder, part in ((runs / "sft", "is a run of model=tiny"), (runs / "no", "no such folder")):
        assert cli(*words, f"decode.assistant_run={folder}") == 2
        said = capsys.readouterr().err
        assert "decode.assistant_run" in said and part in said


@pytest.mark.parametrize(
    "mask", ["hatllm_segments", pytest.param("hatllm", marks=pytest.mark.slow)]
)
def test_grounding_answers_end_to_end_and_the_plain_way_agrees(
    cli: Cli, shop: list[str], tmp_path: Path, mask: str
) -> None:
    words = ["decode=grounding", "loss=lml", f"mask={mask}", "run_name=ground"]
    assert cli(*shop, *words) == 0
    run = tmp_path / "outputs/ground"
    fast = pl.read_parquet(run / "predictions.parquet")
    assert (fast["top_items"].list.len() == 10).all()
    plain = evaluated(cli, run, "fast=false")
    assert fast["top_items"].to_list() == plain["top_items"].to_list()


@pytest.mark.parametrize("decode", ["grounding", "d3", "generate"])
def test_recommend_answers_with_every_decoder(
    cli: Cli, runs: Path, decode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recommend", f"task.run_folder={runs / 'sft'}", f"decode={decode}"]
    if decode == "d3":
        words.append(f"decode.assistant_run={runs / 'ids'}")
    assert cli(*words, "task.history=[Red Boat,s3]") == 0
    out = capsys.readouterr().out
    assert "log-probability" in out
    # What it ranks by, where that is not the log-probability.
    assert ("score" in out) == (decode == "generate")
    if decode == "generate":
        scores = [float(line.split("│")[3]) for line in out.splitlines() if line.startswith("│")]
        assert len(scores) == 10 and scores == sorted(scores, reverse=True)


def test_sdpo_starts_from_a_finished_run_and_resumes_exactly(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, "loss=sdpo", f"model.start_from={runs / 'sft'}", "model.lora.dropout=0.1"]
    words += ["trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01"]
    assert cli(*words, "run_name=first", "model.lora.dropout=0.0", "trainer.max_steps=1") == 0
    first = pl.read_csv(tmp_path / "outputs/first/curves.csv")["train/loss"].drop_nulls()[0]
    # At the start the model is its own reference: the target stands among 1 + 3 equals.
    assert first == pytest.approx(math.log(4), abs=1e-5)
    assert cli(*words, "run_name=unbroken") == 0

    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                raise RuntimeError("killed")

    fit = lightning.Trainer.fit
    with monkeypatch.context() as patched:

        def fit_and_stop(self: lightning.Trainer, *args: Any, **settings: Any) -> None:
            self.callbacks.append(Stop())
            fit(self, *args, **settings)

        patched.setattr(lightning.Trainer, "fit", fit_and_stop)
        with pytest.raises(RuntimeError, match="killed"):
            cli(*words, "run_name=broken")
    assert cli(*words, "run_name=broken") == 0
    start, unbroken, broken = (
        load_file(folder / "adapter/adapter_model.safetensors")
        for folder in (runs / "sft", tmp_path / "outputs/unbroken", tmp_path / "outputs/broken")
    )
    for name, value in unbroken.items():
        torch.testing.assert_close(value, broken[name], rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.allclose(start[name], unbroken[name]) for name in start)


def test_a_reference_run_with_other_adapters_is_refused(
    cli: Cli, shop: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "loss=sdpo", f"model.start_from={runs / 'sft'}", "model.lora.r=2"]
    assert cli(*words) == 2
    assert "model.lora.r=2 must be 8 with model.start_from" in capsys.readouterr().err


def test_plan_counts_an_sdpo_run(cli: Cli, shop: list[str]) -> None:
    assert cli(*shop, "task=plan", "loss=sdpo") == 0
