"""Every block of docs/tutorial.md runs, in its order, on a tiny model and a made-up shop."""

import shlex
from pathlib import Path

import polars as pl
import pytest
from shop import write_shop

from .test_own_arm import BLOCK, SMOKE, copy_project, run_all

DOC = (Path(__file__).resolve().parents[2] / "docs/tutorial.md").read_text()
NOT_HERE = (
    "make setup", "source ", "pip ",  # the environment that the test runs in
    "python run.py task=serve",  # until somebody ends it: tests/serve
)  # fmt: skip


def commands_of(text: str) -> list[list[str]]:
    """The words of every command line, without `python`."""
    blocks = [block for language, _, block in BLOCK.findall(text) if language == "bash"]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    kept = [line for line in lines if line and not line.startswith(NOT_HERE)]
    assert all(line.startswith("python ") for line in kept)
    return [shlex.split(line, comments=True)[1:] for line in kept]


def write_scripts(root: Path) -> list[str]:
    names = []
    for language, name, block in BLOCK.findall(DOC):
        if language == "python":
            assert name, "a Python block of the tutorial is a file"
            (root / name).write_text(block)
            names.append(name)
    return names


def test_every_script_of_the_tutorial_is_run_by_it(tmp_path: Path) -> None:
    scripts = write_scripts(tmp_path)
    run = [words[0] for words in commands_of(DOC)]
    assert set(scripts) == set(run) - {"run.py"}
    for name in scripts:
        compile((tmp_path / name).read_text(), name, "exec")


@pytest.mark.slow  # a process that imports everything anew, and four runs
def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    copy_project(tmp_path)
    write_scripts(tmp_path)
    shop = write_shop(tmp_path / "shop")
    commands = []
    for script, *words in commands_of(DOC):
        # The first runs are of MovieLens-100K, which would be fetched: a shop takes its place.
        small = [] if script != "run.py" or "task=recommend" in words else [*SMOKE, *shop]
        commands.append([script, *small, *words])
    run_all(commands, tmp_path)
    for name in ("first", "first_causal", "shop", "shop_titles"):
        assert (tmp_path / "outputs" / name / "run.json").exists()
    shards = list((tmp_path / "outputs/shop/recommendations").rglob("shards/*.parquet"))
    answers = pl.read_parquet(shards)
    assert set(answers["user_id"].cast(pl.String)) == {"c1", "c2"}
    assert set(answers["title"]) <= {
        f"{a} {b}" for a in ("Red", "Blue", "Old", "New") for b in ("Boat", "Book", "Lamp", "Hat")
    }
