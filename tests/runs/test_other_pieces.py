"""A run goes on in pieces of another size, and on other hardware, as the run that it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import pytorch_lightning as lightning
from cli import call_cli, smoke_words
from toys import Compose

from hatllm.config import NOT_IN_HASH
from hatllm.runs.name import run_folder

Cli = Callable[..., int]
SAME_RUN = ["decode.users_per_batch=3", "trainer.micro_batch_size=1", "trainer=gpu", "trainer=fsdp",
            "trainer.checkpoint_every_steps=7", "model.gradient_checkpointing=true",
            "model.compile=true", "num_threads=1"]  # fmt: skip
ANOTHER_RUN = ["fast=false", "model.backend=eager", "decode.state_cache=false",
               "model.dtype=bfloat16", "trainer.global_batch_size=16", "trainer.max_epochs=7",
               "trainer.group_by_user=true", "decode.beam_width=11"]  # fmt: skip


@pytest.mark.parametrize("word", SAME_RUN)
def test_pieces_and_hardware_are_not_in_the_name(compose_config: Compose, word: str) -> None:
    assert run_folder(compose_config(word)) == run_folder(compose_config())


@pytest.mark.parametrize("word", ANOTHER_RUN)
def test_what_changes_numbers_is_in_the_name(compose_config: Compose, word: str) -> None:
    assert run_folder(compose_config(word)) != run_folder(compose_config())


OF_LLMS = ["mask=causal", "loss=lml", "decode=exact", "model.lora.r=2", "fast=false",
           "trainer.learning_rate=1", "decode.beam_width=30",
           "data.prompt.prefix=Films"]  # fmt: skip


@pytest.mark.parametrize("model", ["popularity", "knn", "sasrec"])
def test_a_baseline_is_one_run_whatever_is_set_for_llms(
    compose_config: Compose, model: str
) -> None:
    plain = run_folder(compose_config(f"model={model}"))
    assert run_folder(compose_config(f"model={model}", *OF_LLMS)) == plain
    middle = "sasrec-s42" if model == "sasrec" else model
    assert plain.name.rsplit("-", 1)[0] == f"ml100k-{middle}"
    for word in ("decode.top_k=5", "data.max_history_items=4"):
        assert run_folder(compose_config(f"model={model}", word)) != plain
    other_seed = run_folder(compose_config(f"model={model}", "seed=7"))
    assert (other_seed != plain) == (model == "sasrec")


def test_the_adapted_temperature_moves_with_every_pass_so_their_size_is_in_the_name(
    compose_config: Compose,
) -> None:
    few, many = (
        run_folder(compose_config("loss=msl_ats", f"trainer.micro_batch_size={rows}"))
        for rows in (1, 4)
    )
    assert few != many


@pytest.mark.long
def test_cells_of_one_run_are_made_once_and_both_stand_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*smoke_words(tmp_path), "model=popularity"]
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, tmp_path, *words) == 0
        capsys.readouterr()
        assert call_cli(patch, tmp_path, "-m", *words, "decode.users_per_batch=1,4") == 0
    assert capsys.readouterr().out.count("finished already") == 2
    (cells,) = (tmp_path / "outputs/sweeps").glob("*/cells.csv")
    assert pl.read_csv(cells)["run"].n_unique() == 1
    assert pl.read_csv(cells)["decode.users_per_batch"].to_list() == [1, 4]


def test_what_is_not_in_the_name_is_a_setting(compose_config: Compose) -> None:
    config = compose_config()
    for name in NOT_IN_HASH:
        group, _, setting = name.rpartition(".")
        assert hasattr(getattr(config, group) if group else config, setting), name


def words_of(folder: Path, micro_batch: int, users: int) -> list[str]:
    return [*smoke_words(folder), "trainer.max_epochs=3",
            "trainer.validate_every_steps=2", "trainer.learning_rate=0.01",
            "trainer.checkpoint_every_steps=1", f"trainer.micro_batch_size={micro_batch}",
            f"decode.users_per_batch={users}"]  # fmt: skip


def stopped_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """The end of the process before the first pass after so many optimizer steps."""

    class Stop(lightning.Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == step:
                raise RuntimeError("killed")

    fit = lightning.Trainer.fit

    def fit_and_stop(self: lightning.Trainer, *args: Any, **words: Any) -> None:
        self.callbacks.append(Stop())
        fit(self, *args, **words)

    patch.setattr(lightning.Trainer, "fit", fit_and_stop)


@pytest.mark.long
def test_a_run_that_goes_on_with_other_batches_ends_like_one_never_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Three steps an epoch. It stops inside one, with a validation behind it, and at the end of one.
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, tmp_path, *words_of(tmp_path, 2, 8)) == 0
    (whole,) = (path.parent for path in (tmp_path / "outputs").glob("*/run.json"))
    name = whole.name
    whole = whole.rename(tmp_path / "whole")
    for step, micro_batch in ((4, 2), (6, 8)):
        with pytest.MonkeyPatch.context() as patch:
            stopped_at(patch, step)
            with pytest.raises(RuntimeError, match="killed"):
                call_cli(patch, tmp_path, *words_of(tmp_path, micro_batch, 8))
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, tmp_path, *words_of(tmp_path, 4, 3)) == 0
    assert "resuming from" in capsys.readouterr().out
    again = tmp_path / "outputs" / name
    curves = [pl.read_csv(run / "curves.csv") for run in (whole, again)]
    for column in curves[0].columns:
        one, other = (curve[column].fill_null(-1).to_list() for curve in curves)
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5), column
    tables = [pl.read_parquet(run / "predictions.parquet") for run in (whole, again)]
    assert tables[0]["top_items"].to_list() == tables[1]["top_items"].to_list()
    numbers = [json.loads((run / "metrics.json").read_text())["test"] for run in (whole, again)]
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-4)
