"""The type that `model.dtype=auto` stands for is part of a run: hash, settings and environment."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.long

Cli = Callable[..., int]


def on_machine_with(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatllm.compose.fastest_dtype", lambda accelerator, cache: fastest)


def dtype_of(folder: Path) -> str:
    return str(json.loads((folder / "environment.json").read_text())["dtype"])


def test_a_run_has_the_type_it_was_made_in_and_keeps_it_on_another_machine(
    cli: Cli, shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [*shop, "trainer.max_steps=1"]
    on_machine_with("bfloat16", monkeypatch)
    assert cli(*words, "model.dtype=auto") == 0
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("*/run.json"))
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["dtype"] == "bfloat16"
    assert dtype_of(folder) == "bfloat16"
    assert "weights bfloat16" in capsys.readouterr().out
    on_machine_with("float32", monkeypatch)
    assert cli(*words, "model.dtype=bfloat16") == 0  # the same run by name and hash
    assert "finished already" in capsys.readouterr().out
    evaluate = ["task=evaluate", f"task.run_folder={folder}"]
    for number, (word, expected) in enumerate(
        (("task.split=test", "bfloat16"), ("model.dtype=auto", "float32")), start=1
    ):
        assert cli(*evaluate, word) == 0
        found = sorted((folder / "evaluations").iterdir(), key=lambda path: path.stat().st_mtime)
        assert len(found) == number
        assert dtype_of(found[-1]) == expected
    assert cli(*words, "model.dtype=auto") == 0
    runs = [path.parent for path in (tmp_path / "outputs").glob("*/run.json")]
    assert sorted(map(dtype_of, runs)) == ["bfloat16", "float32"]
