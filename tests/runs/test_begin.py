"""An unfinished run goes on with what it was begun with, or starts over."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hatllm.runs import provenance

pytestmark = pytest.mark.long

Cli = Callable[..., int]
GRU = ["model=gru4rec", "model.sequence.max_epochs=2", "model.sequence.batch_size=16"]
LLM = ["mask=hatllm", "trainer.checkpoint_every_steps=1"]
RATE = {"gru": "model.sequence.learning_rate", "llm": "trainer.learning_rate"}
AT_THE_END = {"gru": "hatllm.training.baseline_run._answers",
              "llm": "hatllm.tasks.train.decode_splits"}  # fmt: skip


@pytest.fixture(autouse=True)
def errors_as_a_user_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HATLLM_TRACEBACK", raising=False)


def words_of(kind: str, shop: list[str]) -> list[str]:
    return [*shop, *(GRU if kind == "gru" else LLM), "run_name=x"]


def stopped(cli: Cli, words: list[str], kind: str = "gru") -> Path:
    """The folder of a run that was stopped when it was trained and not yet evaluated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AT_THE_END[kind], lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cli(*words)
    folder = Path("outputs/x")
    assert (folder / "checkpoints/last.ckpt").exists() and not (folder / "run.json").exists()
    return folder


@pytest.mark.parametrize("kind", ["gru", "llm"])
def test_an_unfinished_run_does_not_go_on_under_other_settings(
    cli: Cli, shop: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, rate = words_of(kind, shop), RATE[kind]
    folder = stopped(cli, [*words, f"{rate}=0.01"], kind)
    before = (folder / "config.yaml").read_text()
    assert cli(*words, f"{rate}=0.02") == 2
    error = capsys.readouterr().err
    for part in (f"begun with {rate}=0.01 (now 0.02): ", "task.force=true", "leave run_name out"):
        assert part in error
    assert (folder / "config.yaml").read_text() == before
    assert cli(*words, f"{rate}=0.01", "num_threads=2", "decode.users_per_batch=7") == 0
    assert "resuming from" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["gru", "llm"])
def test_force_starts_an_unfinished_run_over(
    cli: Cli, shop: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, rate = words_of(kind, shop), RATE[kind]
    assert cli(*words, f"{rate}=0.02") == 0
    folder = Path("outputs/x")
    whole = shutil.move(folder, Path("outputs/whole"))
    stopped(cli, [*words, f"{rate}=0.01"], kind)
    capsys.readouterr()
    assert cli(*words, f"{rate}=0.02", "task.force=true") == 0
    assert "resuming from" not in capsys.readouterr().out
    for name in ("curves.csv", "metrics.json"):
        assert (folder / name).read_text() == (whole / name).read_text()
    rates = [yaml.safe_load((f / "config.yaml").read_text()) for f in (folder, whole)]
    assert rates[0]["trainer"] == rates[1]["trainer"] and rates[0]["model"] == rates[1]["model"]


def test_a_forced_run_that_was_stopped_goes_on_with_the_same_command(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of("gru", shop)
    assert cli(*words) == 0
    stopped(cli, [*words, "task.force=true"])
    assert cli(*words, "task.force=true") == 0  # a cell tried again, a job queued again
    assert "resuming from" in capsys.readouterr().out
    assert cli(*words, "task.force=true") == 0
    assert "resuming from" not in capsys.readouterr().out


def test_an_unfinished_run_does_not_go_on_under_other_code(
    cli: Cli, shop: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of("gru", shop)
    forced = [*words, "task.force=true"]
    stopped(cli, forced)
    theirs = provenance.code_hash()
    monkeypatch.setattr(provenance, "code_hash", lambda: "edited")
    assert cli(*words) == 2
    assert f"code_hash={theirs} (now edited)" in capsys.readouterr().err
    assert cli(*forced) == 0
    assert "resuming from" not in capsys.readouterr().out


def test_an_unfinished_run_does_not_go_on_with_other_data(
    cli: Cli, shop: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of("gru", shop)
    stopped(cli, words)
    items = tmp_path / "shop/items.csv"
    items.write_text(items.read_text().replace("Red Boat", "Rapid Boat"))
    assert cli(*words) == 2
    assert "begun with data_hash=" in capsys.readouterr().err


def test_a_run_that_left_no_checkpoint_may_begin_with_other_settings(
    cli: Cli, shop: list[str]
) -> None:
    words = words_of("gru", shop)
    folder = stopped(cli, words)
    shutil.rmtree(folder / "checkpoints")
    assert cli(*words, "model.sequence.learning_rate=0.02") == 0


def test_one_setting_changed_beside_an_unfinished_run_is_said(
    cli: Cli, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of("gru", shop)
    stopped(cli, [*words, "model.sequence.learning_rate=0.01"])
    there, rate = [*shop, *GRU, "run_name=y"], "model.sequence.learning_rate=0.02"
    capsys.readouterr()
    assert cli(*there, rate) == 0
    said = capsys.readouterr().out
    assert "outputs/x is unfinished and differs in one setting only: " in said
    assert "model.sequence.learning_rate=0.01 (now 0.02)" in said
    for words in (
        [rate, "model.sequence.dropout=0.3"],
        ["model.sequence.learning_rate=0.01", "seed=7"],
    ):
        assert cli(*there, *words, "task.force=true") == 0
        assert "is unfinished" not in capsys.readouterr().out
