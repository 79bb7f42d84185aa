"""Every `python run.py` of the READMEs and docs composes into a config that passes its checks."""

import ast
import importlib
import re
import shlex
from itertools import takewhile

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from toys import CONF

from hatllm.compose import checked, register_schema
from hatllm.many.experiment_cells import words_without_effect

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "experiments").rglob("README.md"))
PAGES += sorted((ROOT / "experiments").rglob("details.md"))
PAGES.remove(ROOT / "docs/own_arm.md")  # makes what its commands name: tests/docs/test_own_arm.py
PYTHON = re.compile(r"^```python[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = {"&&", "||", ";", "|", "&", ">", "2>&1"}


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.search(r"(^|\s)run\.py(\s|$)", line.split(" #")[0])]


COMMANDS = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, line in enumerate(commands_of(page.read_text()), start=1)
]


def words_of(line: str) -> list[str]:
    """The words after run.py; of a sweep's values the first."""
    words = shlex.split(line, comments=True)
    words = list(takewhile(lambda word: word not in SHELL, words[words.index("run.py") + 1 :]))
    if "-m" not in words:
        return words
    words.remove("-m")
    parsed = OverridesParser.create().parse_overrides(words)
    for at, override in enumerate(parsed):
        if override.is_sweep_override():
            first = "1.0" if override.is_interval_sweep() else override.input_line.split("=")[1]
            words[at] = f"{override.get_key_element()}={first.split(',')[0]}"
    return words


def test_the_pages_hold_commands() -> None:
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_composes(line: str) -> None:
    words = words_of(line)
    if {"--help", "-h"} & set(words) or any(word.startswith("hydra/launcher=") for word in words):
        pytest.skip("not a config, or one that tests/docs/test_running.py composes")
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = checked(compose("config", overrides=words))
    words_without_effect(config.experiment, words)


SCRIPTS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
    for page in [*PAGES, ROOT / "docs/own_arm.md", ROOT / "CONTRIBUTING.md"]
    for number, block in enumerate(PYTHON.findall(page.read_text()), start=1)
]


@pytest.mark.parametrize("block", SCRIPTS)
def test_a_python_block_of_the_pages_compiles_and_its_imports_are_there(block: str) -> None:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hatllm"):
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
