"""LLaRA from the command line, on the small shop: train, resume, use again, plan, refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from cli import call_cli, smoke_words
from safetensors.torch import load_file
from test_llm_arms import evaluated
from toys import Compose

from hatllm.compose import checked
from hatllm.plan.one_run import Measured, plan_run
from hatllm.runs.folder import load_config
from hatllm.runs.name import config_hash, run_folder

pytestmark = pytest.mark.long

Cli = Callable[..., int]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with finished runs: SASRec `ids`, text alone `sft`, with item tokens `llara`."""
    folder = tmp_path_factory.mktemp("llara")
    with pytest.MonkeyPatch.context() as patch:
        words = smoke_words(folder)
        sasrec = ["model=sasrec", "model.sequence.max_epochs=2", "run_name=ids"]
        assert call_cli(patch, folder, *words, *sasrec) == 0
        llm = [*words, "loss=lml", "decode.normalize=vocab", "trainer.learning_rate=0.01"]
        assert call_cli(patch, folder, *llm, "run_name=sft") == 0
        llm += [f"model.item_vectors={folder / 'outputs/ids'}", "model.item_curriculum=true"]
        assert call_cli(patch, folder, *llm, "mask=hatllm_segments", "run_name=llara") == 0
    return folder / "outputs"


def test_a_run_keeps_vectors_and_trained_projector(runs: Path) -> None:
    saved = load_file(runs / "llara" / "item_tokens.safetensors")
    items = load_file(runs / "ids" / "model.safetensors")["items.weight"]
    assert torch.equal(saved["vector_IE"], items[:24])
    with torch.random.fork_rng():
        torch.manual_seed(42)
        fresh = torch.nn.Linear(64, 32)
    assert saved["projector.0.weight"].shape == fresh.weight.shape
    assert not torch.allclose(saved["projector.0.weight"], fresh.weight, atol=1e-3)
    exported = json.loads((runs / "llara" / "hatllm.json").read_text())
    assert exported["item_tokens"] == "item_tokens.safetensors"
    assert json.loads((runs / "sft" / "hatllm.json").read_text())["item_tokens"] is None


def test_a_finished_run_is_used_again_without_the_run_of_its_vectors(
    cli: Cli, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, before = runs / "llara", pl.read_parquet(runs / "llara" / "predictions.parquet")
    shutil.move(runs / "ids", runs / "away")
    try:
        for words in (["fast=false"], ["decode.state_cache=true"]):
            table = evaluated(cli, run, *words)
            assert table["top_items"].to_list() == before["top_items"].to_list()
            for column in ("target_trie_log_prob", "target_vocab_log_prob"):
                expected = before[column].to_list()
                assert table[column].to_list() == pytest.approx(expected, abs=1e-3)
        assert cli("task=recommend", f"task.run_folder={run}", "task.history=[Red Boat,s3]") == 0
        assert "log-probability" in capsys.readouterr().out
        folder = f"experiment.folder={tmp_path / 'shares'}"
        assert cli(f"task.run_folder={run}", "task=attention", "task.num_users=2", folder) == 0
    finally:
        shutil.move(runs / "away", runs / "ids")


def test_a_broken_run_resumes_exactly(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*shop, f"model.item_vectors={runs / 'ids'}", "model.item_curriculum=true"]
    words += ["trainer.checkpoint_every_steps=1", "trainer.learning_rate=0.01"]
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
    unbroken, broken = (
        load_file(tmp_path / "outputs" / name / "item_tokens.safetensors")
        for name in ("unbroken", "broken")
    )
    for name, value in unbroken.items():
        torch.testing.assert_close(value, broken[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_tuned_in_full_keeps_its_item_tokens(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path
) -> None:
    words = [*shop, "model.tuning=full", f"model.item_vectors={runs / 'ids'}"]
    assert cli(*words, "run_name=full") == 0
    run = tmp_path / "outputs/full"
    before = pl.read_parquet(run / "predictions.parquet")
    assert evaluated(cli, run)["top_items"].to_list() == before["top_items"].to_list()


def test_sdpo_starts_from_a_run_with_item_tokens(
    cli: Cli, shop: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*shop, "loss=sdpo", f"model.start_from={runs / 'llara'}", "trainer.max_steps=1"]
    assert cli(*words) == 2
    assert "model.item_vectors=None must be" in capsys.readouterr().err
    assert cli(*words, f"model.item_vectors={runs / 'ids'}") == 0


def test_the_projector_of_other_vectors_is_refused(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["model=gru4rec", "model.sequence.max_epochs=1", "run_name=other"]
    assert cli(*shop, *other) == 0
    words = [*shop, f"model.start_from={runs / 'llara'}", "trainer.max_steps=0"]
    assert cli(*words, f"model.item_vectors={tmp_path / 'outputs/other'}") == 2
    assert "was trained on other item vectors" in capsys.readouterr().err


def test_vectors_that_do_not_fit_are_refused(
    cli: Cli, shop: list[str], runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(runs / "ids", tmp_path / "other")
    identity = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(identity | {"data_hash": "0ddc0de"}))
    fewer = shutil.copytree(runs / "ids", tmp_path / "fewer")
    pl.read_parquet(fewer / "items.parquet")[:20].write_parquet(fewer / "items.parquet")
    for folder, part in (
        (runs / "sft", "is a run of model=tiny; give one of a model of kind sasrec"),
        (tmp_path / "no", "no such folder"),
        (other, "was made of data 0ddc0de"),
        (fewer, "knows 20 items that are not the 24 of this run's catalogue"),
    ):
        assert cli(*shop, f"model.item_vectors={folder}") == 2
        said = capsys.readouterr().err
        assert f"model.item_vectors='{folder}'" in said and part in said


def test_an_export_without_its_vectors_or_for_another_catalogue_is_refused(
    cli: Cli, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(runs / "llara", tmp_path / "llara")
    words = ["task=evaluate", f"task.run_folder={run}"]
    pl.read_parquet(run / "items.parquet")[:20].write_parquet(run / "items.parquet")
    assert cli(*words) == 2
    assert "knows 20 items that are not the 24" in capsys.readouterr().err
    (run / "item_tokens.safetensors").unlink()
    assert cli(*words) == 2
    assert "has no item_tokens.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.item_curriculum=true"], r"item_curriculum=true needs model\.item_vectors"),
        (["model.item_vectors=x", "model.tuning=none"], r"needs model\.tuning=lora or full"),
        (["model=sasrec", "model.item_vectors=x"], "must be null with model=sasrec"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    words: list[str], message: str, compose_config: Compose
) -> None:
    with pytest.raises(ValueError, match=message):
        compose_config(*words)


def test_a_run_without_item_tokens_keeps_its_hash(compose_config: Compose, runs: Path) -> None:
    config = checked(load_config(runs / "sft"))
    saved = json.loads((runs / "sft" / "run.json").read_text())["config_hash"]
    assert config_hash(config) == saved
    plain = compose_config("model.item_vectors=ids")
    grown = compose_config("model.item_vectors=ids", "model.item_curriculum=true")
    assert len({config_hash(c) for c in (compose_config(), plain, grown)}) == 3


def test_masks_are_drawn_with_item_tokens(cli: Cli, shop: list[str], runs: Path) -> None:
    assert cli(*shop, "task=masks", f"model.item_vectors={runs / 'ids'}") == 0


@pytest.fixture
def arms(shop: list[str]) -> list[str]:
    """A plan of arms that need each other's runs, none of which is made."""
    return [
        *shop,
        "task=plan",
        "experiment.name=arms",
        '+experiment.cells.sasrec=["model=sasrec","model.sequence.max_epochs=1"]',
        '+experiment.cells.bigrec=["mask=causal","loss=lml"]',
        '+experiment.cells.d3=["model.start_from=run:bigrec","trainer.max_steps=0","decode=d3",'
        '"decode.assistant_run=run:sasrec"]',
        '+experiment.cells.llara=["model.item_vectors=run:sasrec","model.item_curriculum=true"]',
    ]


def test_a_plan_needs_no_run_that_comes_before_it_in_the_experiment(
    cli: Cli, arms: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arms) == 0
    assert "4 to run" in capsys.readouterr().out
    assert not list((tmp_path / "outputs").glob("*/run.json"))


def test_seeds_are_planned_from_one_calibration(
    compose_config: Compose, shop: list[str], tmp_path: Path
) -> None:
    places = [f"cache_root={tmp_path}/cache", f"output_root={tmp_path}/outputs"]
    words = [*(word for word in shop if word != "scale=smoke"), *places]
    measured: dict[str, Measured] = {}
    for seed in ("seed=1", "seed=2"):
        ids = compose_config(*words, seed, "model=sasrec")
        folder = str(run_folder(ids))
        llara = compose_config(*words, seed, f"model.item_vectors={folder}")
        plan_run(llara, measured, {folder: ids})
    assert len(measured) == 1


def test_a_plan_of_one_run_names_the_run_that_is_missing(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "task=plan", "model.item_vectors=outputs/none") == 2
    assert "model.item_vectors='outputs/none': no such folder" in capsys.readouterr().err


def test_the_projector_counts_as_tuned_and_the_backbone_as_frozen(
    cli: Cli, runs: Path, compose_config: Compose, shop: list[str], tmp_path: Path
) -> None:
    places = [f"cache_root={tmp_path}/cache", f"output_root={tmp_path}/outputs"]
    words = [*(word for word in shop if word != "scale=smoke"), *places]
    plain = plan_run(compose_config(*words), {})
    llara = plan_run(compose_config(*words, f"model.item_vectors={runs / 'ids'}"), {})
    assert llara.num_frozen == plain.num_frozen
    assert llara.num_tuned - plain.num_tuned == (64 + 1) * 32 + (32 + 1) * 32
    # One token for each item of a history.
    longer = llara.splits["test"].tokens - plain.splits["test"].tokens
    histories = pl.read_parquet(runs / "sft" / "examples.parquet")["history"]
    assert longer == histories.list.len().clip(upper_bound=10).sum()
