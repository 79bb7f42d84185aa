"""Every command of docs/running.md composes, and the plan on paper adds up."""

import json
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from toys import CONF

from experiments.robustness import plan_at_scale
from hatllm.compose import checked, register_schema

DOC = Path(__file__).resolve().parents[2] / "docs/running.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", DOC.read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if "run.py" in line]


def test_every_place_to_run_has_a_command() -> None:
    sections = DOC.read_text().split("\n## ")[1:]
    by_name = {section.splitlines()[0]: section for section in sections}
    for name in ("A laptop", "One GPU", "Eight GPUs", "SLURM", "A Ray cluster"):
        assert "```bash" in by_name[name]
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("run.py") + 1 :]
    is_sweep = "-m" in words
    words = [word for word in words if word != "-m"]
    launcher = next((w.split("=")[1] for w in words if w.startswith("hydra/launcher=")), None)
    if launcher is not None:
        known = [found.__module__ for found in Plugins.instance().discover(Launcher)]
        package = f"hydra_{launcher.split('_')[0]}_launcher"
        if not any(package in module for module in known):
            pytest.skip(f"{package} is not installed; see docs/running.md")
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=words, return_hydra_config=True)
    target = str(composed.hydra.launcher._target_)
    assert (launcher or "basic").split("_")[0] in target.lower()
    assert is_sweep == (composed.sweep.name is not None)
    checked(compose_without_hydra(words))


def compose_without_hydra(words: list[str]) -> object:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=words)


def test_the_plan_follows_from_what_was_measured(tmp_path: Path) -> None:
    plan_at_scale.main(["--output", str(tmp_path), "--users", "1000000", "--hours", "10"])
    found = json.loads((tmp_path / "plan_at_scale.json").read_text())
    (answer,) = (step for step in found["steps"] if step["step"] == "recommend")
    rate = found["constants"]["users_per_s"]
    assert float(answer["machine-hours"]) == pytest.approx(1e6 / rate / 3600, rel=0.01)
    assert float(answer["hours"]) <= 10
    machines = int(answer["machines"])
    assert machines * 10 >= float(answer["machine-hours"]) > (machines - 1) * 9.9
    assert (tmp_path / "plan_at_scale.md").read_text().startswith("# 1,000,000 users")
