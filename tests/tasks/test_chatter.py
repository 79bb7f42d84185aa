"""What a newcomer reads between our own lines: no warnings of libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import smoke_words

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_says_nothing_of_deprecated_names_and_odd_versions(tmp_path: Path) -> None:
    environment = {
        **os.environ, "HATLLM_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline",
        "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }  # fmt: skip
    environment.pop("PYTHONWARNINGS", None)
    words = ["logger=wandb", "trainer.max_steps=1", "model.gradient_checkpointing=true"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *smoke_words(tmp_path), *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "wandb: Run data is saved locally" in done.stderr  # W&B itself was there
    for noise in ("Warning", "WARNING", "deprecated", "v_num"):
        assert noise not in done.stdout + done.stderr
