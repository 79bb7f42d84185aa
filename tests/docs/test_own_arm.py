"""The worked examples of docs/own_arm.md, applied to a copy of the project and run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shop import write_shop

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "own_arm.md").read_text()
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAX_LINES = 40
SMOKE = ["scale=smoke", "num_threads=1", "data.train_rows=null", "trainer.max_steps=2"]


def section(title: str) -> str:
    return re.split(r"^## ", DOC, flags=re.MULTILINE)[1:][TITLES.index(title)]


TITLES = re.findall(r"^## (.*)$", DOC, re.MULTILINE)


def apply_diff(path: Path, block: str) -> None:
    """Replace the ``-`` lines, which stand in the file exactly once, by the ``+`` lines."""
    old, new = (
        "\n".join(line[1:] for line in block.splitlines() if line[0] == sign) for sign in "-+"
    )
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} holds {old!r} {text.count(old)} times, not once"
    path.write_text(text.replace(old, new))


def apply_blocks(text: str, root: Path) -> list[str]:
    """Write and change files as a section says; returns its command lines."""
    commands: list[str] = []
    for language, name, block in BLOCK.findall(text):
        if language == "bash":
            commands += block.splitlines()
        elif language == "diff":
            apply_diff(root / name, block)
        else:
            (root / name).write_text(block)
    return commands


# One process for all commands of a section: most of a smoke run is the import of torch.
DRIVER = """
import runpy, shlex, sys
from hydra.core.global_hydra import GlobalHydra
for line in sys.stdin.read().splitlines():
    sys.argv = shlex.split(line)
    GlobalHydra.instance().clear()
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_all(commands: list[list[str]], root: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HATLLM_")}
    places = {"PYTHONPATH": str(root / "src"), "HATLLM_CACHE": str(root / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input="\n".join(map(shlex.join, commands)), cwd=root,
        env=kept | places, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


EXAMPLES = [title for title in TITLES if title.startswith("A ")]


def copy_project(to: Path) -> None:
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", to)


@pytest.mark.parametrize("title", EXAMPLES)
def test_a_worked_example_fits_the_code(title: str, tmp_path: Path) -> None:
    copy_project(tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("*.py")}
    assert apply_blocks(section(title), tmp_path)
    after = {path: path.read_text() for path in tmp_path.rglob("*.py")}
    changed = [path for path, text in after.items() if before.get(path) != text]
    assert changed
    for path in changed:
        compile(after[path], str(path), "exec")


# A process each, which imports everything anew.
@pytest.mark.slow
@pytest.mark.parametrize("title", EXAMPLES)
def test_a_worked_example_runs_as_it_stands(title: str, tmp_path: Path) -> None:
    copy_project(tmp_path)
    shop = [] if title == "A data set" else write_shop(tmp_path / "shop")
    lines = [shlex.split(line, comments=True) for line in apply_blocks(section(title), tmp_path)]
    assert all(python == "python" for python, *_ in lines)
    commands = [
        # Of equal settings the last counts: what the document says.
        [script, *SMOKE, *shop, *words] if script == "run.py" else [script, *words]
        for _, script, *words in lines
    ]
    run_all(commands, tmp_path)
    assert list((tmp_path / "outputs").glob("*/report.md"))


@pytest.mark.parametrize("title", EXAMPLES)
def test_no_block_of_a_worked_example_is_long(title: str) -> None:
    blocks = BLOCK.findall(section(title))
    assert all(len(block.splitlines()) < MAX_LINES for *_, block in blocks)


def test_a_diff_that_no_longer_fits_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("a = 1\n")
    apply_diff(path, "-a = \n+b = 2\n+a = \n")
    assert path.read_text() == "b = 2\na = 1\n"
    with pytest.raises(AssertionError, match="not once"):
        apply_diff(path, "-c = 3\n+c = 4\n")
