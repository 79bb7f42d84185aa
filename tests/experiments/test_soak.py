import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.robustness.soak", "--kills", "4", "--seed", "3"]
    done = subprocess.run(
        [*command, "--tasks", "prepare", "train", "--output", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["kills"] == 4
    assert [task["task"] for task in found["tasks"]] == ["prepare", "train"]
    assert all(task["green"] and task["starts"] > 2 for task in found["tasks"])
    assert "green" in (tmp_path / "soak.md").read_text()
