import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from wandb_file import read_offline_run

Cli = Callable[..., int]
GOLDEN_LOSSES = [4.467751, 3.832647, 3.683112]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.usefixtures("drawn")
def test_one_command_leaves_a_whole_run_folder(cli: Cli, shop: list[str], tmp_path: Path) -> None:
    assert cli(*shop, "run_name=one", "logger=tensorboard") == 0
    folder = tmp_path / "outputs" / "one"
    for name in ("config.yaml", "environment.json", "metrics.json", "run.json", "curves.csv",
                 "curves.png", "report.md", "hatllm.json", "items.parquet"):  # fmt: skip
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    predictions = pl.read_parquet(folder / "predictions.parquet")
    assert metrics["test"]["num_examples"] == len(predictions) == 8
    hits = predictions["target_rank"].is_not_null().mean()
    assert metrics["test"]["HR@10"] == pytest.approx(hits)
    assert metrics["test"]["trie_NLL"] == pytest.approx(
        -predictions["target_trie_log_prob"].mean(), abs=1e-6
    )
    assert predictions["top_items"].list.len().to_list() == [10] * 8
    curves = pl.read_csv(folder / "curves.csv")
    assert {"train/loss", "train/learning_rate", "val/NDCG@10"} <= set(curves.columns)
    exported = json.loads((folder / "hatllm.json").read_text())
    assert exported["schedule"]["letters"] == "IFFC"


def test_training_lowers_the_loss_on_rows_it_sees_often(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    words = [*shop, "run_name=fit", "trainer.max_epochs=6", "trainer.learning_rate=0.02"]
    assert cli(*words) == 0
    losses = pl.read_csv(tmp_path / "outputs/fit/curves.csv")["train/loss"].drop_nulls()
    assert losses.tail(5).mean() < losses.head(5).mean() - 0.3


def test_a_finished_run_is_not_run_again(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*shop, "model=popularity") == 0
    (folder,) = (p.parent for p in (tmp_path / "outputs").glob("*/run.json"))
    before = (folder / "metrics.json").stat().st_mtime_ns
    capsys.readouterr()
    assert cli(*shop, "model=popularity") == 0
    assert "finished already" in capsys.readouterr().out
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    assert cli(*shop, "model=popularity", "task.force=true") == 0
    assert (folder / "metrics.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("loss", ["lml", "msl", "msl_ats"])
def test_every_loss_trains(cli: Cli, shop: list[str], tmp_path: Path, loss: str) -> None:
    assert cli(*shop, f"loss={loss}", "run_name=loss", "mask=hatllm_segments") == 0
    curves = pl.read_csv(tmp_path / "outputs/loss/curves.csv")
    assert curves["train/loss"].drop_nulls().is_finite().all()
    assert ("train/tau" in curves.columns) == (loss == "msl_ats")


def test_micro_batch_size_does_not_change_the_tuned_weights(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    for size in (2, 8):
        assert cli(*shop, f"trainer.micro_batch_size={size}", f"run_name=micro{size}") == 0
    small, large = (adapter(tmp_path / f"outputs/micro{size}") for size in (2, 8))
    for name, value in small.items():
        torch.testing.assert_close(value, large[name], rtol=1e-4, atol=1e-6)


def test_full_fine_tuning_exports_weights_that_evaluate_alike(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    words = [*shop, "model.tuning=full", "trainer.learning_rate=0.01", "run_name=full"]
    assert cli(*words) == 0
    folder = tmp_path / "outputs/full"
    assert cli("task=evaluate", f"task.run_folder={folder}") == 0
    (again,) = (folder / "evaluations").glob("*/predictions.parquet")
    first, second = (pl.read_parquet(p) for p in (folder / "predictions.parquet", again))
    assert first["top_items"].to_list() == second["top_items"].to_list()


def test_early_stopping_ends_a_run_that_does_not_improve(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    words = ["trainer.learning_rate=1e-12", "trainer.max_epochs=9", "run_name=stop"]
    words += ["trainer.early_stopping_patience=1", "trainer.validate_every_steps=1"]
    assert cli(*shop, *words) == 0
    curves = pl.read_csv(tmp_path / "outputs/stop/curves.csv")
    assert curves["train/loss"].drop_nulls().len() <= 3


@pytest.mark.long
def test_wandb_runs_stay_offline_without_a_login(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["trainer.global_batch_size=4", "trainer.micro_batch_size=2", "trainer.max_epochs=2"]
    assert cli(*shop, *words, "logger=wandb", "run_name=tracked") == 0
    folder = tmp_path / "outputs/tracked"
    logged = read_offline_run(folder)
    curves = pl.read_csv(folder / "curves.csv")
    for name in ("train/learning_rate", "train/loss"):  # once a step, of two micro-batches
        sent = [(r["trainer/global_step"], r[name]) for r in logged.history if name in r]
        assert sent == curves.select("step", name).drop_nulls().rows()
        assert len(sent) > 2
    chosen = json.loads((folder / "metrics.json").read_text())["valid"]
    assert logged.summary["val/trie_NLL"] == chosen["trie_NLL"]
    assert logged.config["schedule"]["layers"] == "IFFC"
    assert (folder / "masks.png").exists()


def test_the_first_losses_of_a_fixed_seed_stay_what_they_are(
    cli: Cli, shop: list[str], tmp_path: Path
) -> None:
    words = ["run_name=golden", "seed=3", "trainer.learning_rate=0.01", "data.train_rows=40"]
    assert cli(*shop, *words) == 0
    losses = pl.read_csv(tmp_path / "outputs/golden/curves.csv")["train/loss"].drop_nulls()
    # Recorded once; another machine's float32 sums differ in the fifth digit at most.
    assert losses.to_list()[:3] == pytest.approx(GOLDEN_LOSSES, rel=1e-3)
