"""Imports point one way, and the pure rooms need torch and the standard library only."""

import ast
import sys
from pathlib import Path

import pytest

import hatllm

SOURCE = Path(hatllm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# What a reader can take away on its own, and the other pure rooms each may use.
PURE = {
    "masks": ["masks"],
    "losses": ["losses"],
    "decode/trie.py": [],
    "metrics.py": [],
}
# A room may import itself and rooms below it: run -> tasks -> model, decode, data, report -> pure.
MAY_IMPORT = {
    "masks": ["masks"],
    "losses": ["losses"],
    "metrics": [],
    "config": ["config"],
    "whole_files": [],
    "compose": ["config", "fastest_dtype", "redact"],
    "fastest_dtype": ["whole_files"],
    "redact": [],
    "trusted": ["redact"],
    "ties": [],
    "baselines": ["baselines", "config", "metrics", "ties"],
    "data": ["config", "data", "masks", "whole_files"],
    "decode": ["config", "data", "decode", "losses", "masks", "model", "ties", "whole_files"],
    "model": ["config", "data", "decode", "losses", "masks", "model", "report", "whole_files"],
    "report": ["baselines", "config", "data", "masks", "metrics", "report", "whole_files"],
}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Modules imported anywhere in the file but under ``if TYPE_CHECKING``."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    modules = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports relatively"
            module = str(node.module)
            # `from hatllm.masks import patterns` imports hatllm.masks.patterns.
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            modules += submodules if module == "hatllm" else [module]
    return modules


def pure_files() -> list[tuple[Path, list[str]]]:
    found = []
    for place, allowed in PURE.items():
        path = SOURCE / place
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        found += [(file, allowed) for file in files]
    return found


@pytest.mark.parametrize(("path", "allowed"), pure_files(), ids=lambda value: str(value)[-24:])
def test_a_pure_room_needs_torch_and_the_standard_library_only(
    path: Path, allowed: list[str]
) -> None:
    for module in imports_of(path):
        top = module.split(".")[0]
        if top == "hatllm":
            assert module.split(".")[1] in allowed, module
        else:
            assert top == "torch" or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    rooms = [m.split(".")[1] for m in imports_of(path) if m.startswith("hatllm.")]
    allowed = MAY_IMPORT.get(room_of(path))
    if allowed is not None:  # tasks may import everything
        assert set(rooms) <= set(allowed), f"{name_of(path)} imports {set(rooms) - set(allowed)}"
    if room_of(path) != "tasks":
        assert "tasks" not in rooms


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {".".join(("hatllm", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in FILES}
    imports = {
        name: [m for m in imports_of(path) if m in names and m != name]
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for module in imports[name]:
                visit(module, (*above, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_the_test_sees_an_import_that_breaks_the_rule(tmp_path: Path) -> None:
    lines = [
        "import os, numpy.linalg",
        "from hatllm import model",
        "from typing import TYPE_CHECKING",
        "if TYPE_CHECKING:",
        "    from hatllm.config import Config",
        "def f():",
        "    import polars",
    ]
    file = tmp_path / "room.py"
    file.write_text("\n".join(lines))
    found = set(imports_of(file))
    assert found == {"os", "numpy.linalg", "hatllm.model", "typing", "polars"}
