"""Killed or asked to stop at any moment, a run exports the step it would have exported."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import pytorch_lightning as lightning
import torch
from cli import call_cli, smoke_words
from safetensors.torch import load_file

from hatllm.decode.shards import Shards
from hatllm.training.checkpoints import put_at_step
from hatllm.training.lightning_module import Recommender

pytestmark = pytest.mark.long

Cli = Callable[..., int]
# 24 rows, 8 a step: validations after steps 3, 6, 9, 12 and 15. Patience ends after that of 12.
WORDS = ["data.train_rows=24", "data.valid_rows=8", "trainer.max_epochs=5", "run_name=run",
         "trainer.micro_batch_size=8", "trainer.checkpoint_every_steps=2", "model.lora.dropout=0.1",
         "trainer.early_stopping_patience=3", "trainer.learning_rate=0.01"]  # fmt: skip
SCORES = {3: 0.08, 6: 0.05, 9: 0.06, 12: 0.04, 15: 0.03}


class Killed(BaseException):
    """Stands for kill -9: nothing is saved on the way out."""


def told_scores(patch: pytest.MonkeyPatch) -> None:
    """Validations find SCORES, whatever the weights are."""

    def validation_step(self: Recommender, *_: Any) -> None:
        found = {"NDCG@10": SCORES[self.trainer.global_step], "HR@10": 0.1, "trie_NLL": 9.0}
        for name, value in found.items():
            self.log(f"val/{name}", value, batch_size=1)

    patch.setattr(Recommender, "validation_step", validation_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, under told scores."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        told_scores(patch)
        assert call_cli(patch, folder, *smoke_words(folder), *WORDS) == 0
    return folder / "outputs" / "run"


def exported(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "environment.json").read_text())["exported"])


def same_run(folder: Path, other: Path) -> None:
    assert exported(folder) == exported(other)
    for name in ("curves.csv", "metrics.json", "adapter/adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_early_stopping_and_the_choice_are_as_told(whole: Path) -> None:
    found = exported(whole)
    assert (found["step"], found["of_steps"], found["monitor"]) == (3, 12, "val/NDCG@10")
    assert found["value"] == pytest.approx(0.08)
    curves = pl.read_csv(whole / "curves.csv")
    assert curves["step"].to_list() == list(range(12))  # counted from 0
    assert curves["val/NDCG@10"].drop_nulls().to_list() == pytest.approx([0.08, 0.05, 0.06, 0.04])
    said = "The answers are those of step 3 of 12: val/NDCG@10 0.0800 is the highest of 4 valid"
    assert said in (whole / "report.md").read_text()
    left = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert left == ["best-step=3.ckpt", "last.ckpt"]


# Written: last of step 2; before the first validation last, after it best and last; last of steps 4
# and 6, and last after the second validation. Killed before or after some of these.
@pytest.mark.thin()
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [2, 3, 4, 7])
def test_a_run_killed_around_a_validation_exports_the_step_it_would_have(
    whole: Path, cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: int, after: bool,
) -> None:  # fmt: skip
    told_scores(monkeypatch)
    save, saved = lightning.Trainer.save_checkpoint, []

    def killed(self: lightning.Trainer, path: Path, *args: Any, **words: Any) -> None:
        saved.append(path.name)
        if len(saved) == number and not after:
            raise Killed
        save(self, path, *args, **words)
        if len(saved) == number:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(lightning.Trainer, "save_checkpoint", killed)
        with pytest.raises(Killed):
            cli(*shop, *WORDS)
    assert cli(*shop, *WORDS) == 0
    same_run(tmp_path / "outputs/run", whole)
    expected = ["last.ckpt", "last.ckpt", "best-step=3.ckpt", *["last.ckpt"] * 4]
    assert saved == expected[:number]


def test_a_best_checkpoint_that_no_saved_state_knows_is_not_taken(
    whole: Path, cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed between the best and the last of step 9, which another time does not find it best:
    # hardware whose sums differ from start to start.
    save = lightning.Trainer.save_checkpoint

    def killed(self: lightning.Trainer, path: Path, *args: Any, **words: Any) -> None:
        save(self, path, *args, **words)
        if path.name == "best-step=9.ckpt":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setitem(SCORES, 9, 0.09)
        told_scores(patched)
        patched.setattr(lightning.Trainer, "save_checkpoint", killed)
        with pytest.raises(Killed):
            cli(*shop, *WORDS)
    told_scores(monkeypatch)
    assert cli(*shop, *WORDS) == 0
    same_run(tmp_path / "outputs/run", whole)


def test_a_run_goes_on_with_passes_of_another_size(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_scores(monkeypatch)
    words = [*shop, *WORDS, "model.lora.dropout=0.0", "trainer.max_epochs=3"]
    assert cli(*words, f"output_root={tmp_path}/undisturbed") == 0
    monkeypatch.setattr("hatllm.runs.begin._changes", lambda *_: [])
    sizes = iter((2, 4))
    for step in (2, 6):  # inside an epoch, at the end of one
        with monkeypatch.context() as patched:
            stop_before_step(patched, step + 1)
            with pytest.raises(Killed):
                cli(*words, f"trainer.micro_batch_size={next(sizes)}")
    assert cli(*words) == 0
    found, expected = tmp_path / "outputs/run", tmp_path / "undisturbed/run"
    assert exported(found) == exported(expected)
    columns = ["step", "train/loss", "train/learning_rate"]
    one, two = (pl.read_csv(folder / "curves.csv").select(columns) for folder in (found, expected))
    assert one["step"].equals(two["step"]) and one[columns[2]].equals(two[columns[2]])
    assert one[columns[1]].to_list() == pytest.approx(two[columns[1]].to_list(), abs=1e-4)


def stop_before_step(patch: pytest.MonkeyPatch, step: int) -> None:
    begin = Recommender.on_train_batch_start

    def killed(self: Recommender, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == step:
            raise Killed
        begin(self, batch, batch_idx)

    patch.setattr(Recommender, "on_train_batch_start", killed)


def test_loops_are_put_at_a_step_whatever_they_were() -> None:
    def counts() -> dict[str, int]:
        return dict.fromkeys(("ready", "started", "processed", "completed"), -7)

    loops: dict[str, Any] = {
        "epoch_progress": {"total": counts(), "current": counts()},
        "epoch_loop.batch_progress": {"total": counts(), "current": counts()},
        "epoch_loop.state_dict": {},
    }
    put_at_step(loops, step=10, steps_per_epoch=5, passes=4)  # the end of the second epoch
    assert loops["epoch_progress"]["total"] == {
        "ready": 2, "started": 2, "processed": 1, "completed": 1,
    }  # fmt: skip
    batches = loops["epoch_loop.batch_progress"]
    assert list(batches["total"].values()) == [40, 40, 40, 39]
    assert list(batches["current"].values()) == [20, 20, 20, 19]
    assert batches["is_last_batch"] and loops["epoch_loop.state_dict"]["_batches_that_stepped"] == 9
    put_at_step(loops, step=11, steps_per_epoch=5, passes=4)
    assert list(batches["current"].values()) == [4, 4, 4, 3] and not batches["is_last_batch"]


# From here on validations decode.


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("decoded")
    with pytest.MonkeyPatch.context() as patch:
        assert call_cli(patch, folder, *smoke_words(folder), *WORDS, *DECODING) == 0
    return folder / "outputs" / "run"


DECODING = ["trainer.max_epochs=2", "decode.users_per_batch=2", "task.batches_a_shard=1"]


def count_writes(patch: pytest.MonkeyPatch, and_then: Callable[[], None]) -> list[str]:
    """Folders of the shards that are written from now on, one entry a shard."""
    write, written = Shards.write, []

    def note(self: Shards, rows: pl.DataFrame) -> None:
        write(self, rows)
        written.append(self.folder.name)
        and_then()

    patch.setattr(Shards, "write", note)
    return written


def test_the_valid_table_is_that_of_the_exported_validation_and_of_decoding_anew(
    cli: Cli, shop: list[str], tmp_path: Path, decoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = count_writes(monkeypatch, lambda: None)
    assert cli(*shop, *WORDS, *DECODING) == 0
    assert [name.split("-")[0] for name in written] == ["valid"] * 8 + ["test"] * 4
    assert len(set(written)) == 3  # two validations, four shards each, and test
    again = ["task=evaluate", "task.run_folder=outputs/run", "task.split=valid"]
    assert cli(*again) == 0
    (table,) = (tmp_path / "outputs/run/evaluations").glob("valid-*/predictions.parquet")
    kept = pl.read_parquet(tmp_path / "outputs/run/valid_predictions.parquet")
    assert kept.equals(pl.read_parquet(table)) and kept.height == 8
    same_run(tmp_path / "outputs/run", decoded)


@pytest.mark.thin()
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("shard", [2, 6, 10], ids=["valid", "last valid", "test"])
def test_a_signal_while_decoding_loses_no_step_and_no_user(
    cli: Cli, shop: list[str], tmp_path: Path, decoded: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], number: int, shard: int,
) -> None:  # fmt: skip
    words = [*shop, *WORDS, *DECODING, "trainer.checkpoint_every_steps=1000"]
    written: list[str] = []
    with monkeypatch.context() as patched:

        def stop() -> None:
            if len(written) == shard:
                os.kill(os.getpid(), number)

        written = count_writes(patched, stop)
        assert cli(*words) == 128 + number
    place = {
        2: "in the validation after step 3 of 6",
        6: "in the validation after step 6 of 6",
        10: "while decoding; the trained weights and the users decoded so far are saved",
    }
    said = f"stopped {place[shard]}; the same command goes on from there"
    assert said in capfd.readouterr().out.replace("\n", " ")
    last = torch.load(tmp_path / "outputs/run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == (3 if shard == 2 else 6)
    before = signal.getsignal(signal.SIGINT)
    rest = count_writes(monkeypatch, lambda: None)
    assert cli(*words) == 0
    assert len(rest) == 12 - shard
    assert signal.getsignal(signal.SIGINT) == before == signal.default_int_handler
    same_run(tmp_path / "outputs/run", decoded)


def test_a_signal_before_the_first_step_says_so(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("hatllm.tasks.train.start_from_run", load)
    assert cli(*shop, *WORDS) == 143
    assert "stopped before training; the same command goes on" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.monitor=val/loss"], "trainer.monitor='val/loss'"),
        (["trainer.monitor=val/trie_NLL", "decode=d3", "decode.assistant_run=x"],
         "trainer.monitor='val/trie_NLL' is not logged under decode=d3"),
    ],
)  # fmt: skip
def test_a_monitor_that_will_not_be_logged_is_refused(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli(*shop, *words) == 2
    assert message in capsys.readouterr().err


def test_the_run_is_chosen_by_the_monitor(cli: Cli, shop: list[str], tmp_path: Path) -> None:
    words = ["trainer.monitor=val/vocab_NLL", "trainer.early_stopping_patience=null"]
    assert cli(*shop, *WORDS, *words) == 0
    curve = pl.read_csv(tmp_path / "outputs/run/curves.csv").filter(
        pl.col("val/vocab_NLL").is_not_null()
    )
    lowest = curve["step"][int(curve["val/vocab_NLL"].arg_min())] + 1  # type: ignore[arg-type]
    assert exported(tmp_path / "outputs/run")["step"] == lowest
    weights = load_file(tmp_path / "outputs/run/adapter/adapter_model.safetensors")
    best = torch.load(
        tmp_path / f"outputs/run/checkpoints/best-step={lowest}.ckpt", weights_only=True
    )
    kept = {name.split("layers.")[1]: value for name, value in best["state_dict"].items()
            if "layers." in name}  # fmt: skip
    assert len(weights) == len(kept) > 0
    for name, value in weights.items():
        inside = name.split("layers.")[1].replace(".weight", ".default.weight")
        assert torch.equal(value, kept[inside]), name
