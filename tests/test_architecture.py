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
    "metrics/ranking.py": [],
    "metrics/best_step.py": [],
}
# Lowest first. A room imports itself and rooms above it in this list, never one below.
ROOMS = (
    "redact", "progress", "files", "processes", "hardware", "config",
    "trusted", "compose", "ray_cluster",
    "memory", "masks", "losses", "data", "metrics", "model", "decode", "baselines", "runs",
    "training", "plan", "recommend", "figures", "tables", "serve", "many", "tasks",
)  # fmt: skip
# Less than the order would let them: these know nothing of each other.
APART = {
    "masks": ["config"],
    "losses": [],
    "metrics": ["config", "data"],
    "baselines": ["config", "metrics"],
    "figures": ["config", "files", "masks", "metrics"],
    "recommend": [
        "baselines",
        "compose",
        "config",
        "data",
        "decode",
        "files",
        "memory",
        "model",
        "progress",
        "ray_cluster",
        "runs",
        "training",
    ],
}
# The plain path knows nothing of the fast one, but where one of the two is chosen or both compared.
FENCED = ("model", "decode")
OVER_THE_FENCE = {
    "decode/scorer.py": {"hatllm.decode.fast.tree_scorer"},  # by `fast`
    "model/backbone.py": {"hatllm.model.fast.compiled"},  # by `model.compile`
    "decode/proof.py": {"hatllm.model.fast.packed_prompts", "hatllm.decode.fast.tree_scorer"},
}
LONGEST_FUNCTION, LONGEST_MODULE = 40, 350  # lines, a function's without its docstring
STILL_LONG = {"tasks/__init__.py": {"run_task"}}  # a case a task


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
    room = room_of(path)
    if room == "__init__":
        return
    rooms = {m.split(".")[1] for m in imports_of(path) if m.startswith("hatllm.")}
    allowed = {*APART.get(room, ROOMS[: ROOMS.index(room)]), room}
    assert rooms <= allowed, f"{name_of(path)} imports {rooms - allowed}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_plain_path_does_not_know_the_fast_one(path: Path) -> None:
    parts = path.relative_to(SOURCE).parts
    if parts[0] not in FENCED or parts[1] == "fast":
        return
    fast = {m for m in imports_of(path) if m.startswith(tuple(f"hatllm.{r}.fast" for r in FENCED))}
    assert fast == OVER_THE_FENCE.get(name_of(path), set())


def long_functions(source: str) -> list[str]:
    """Functions with more lines than are allowed, inner ones counted with the outer."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first, lines = node.body[0], int(node.end_lineno or 0) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= int(first.end_lineno or 0) - first.lineno + 1
        found += [node.name] * (lines > LONGEST_FUNCTION)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_and_modules_are_short(path: Path) -> None:
    source = path.read_text()
    assert set(long_functions(source)) <= STILL_LONG.get(name_of(path), set())
    assert len(source.splitlines()) <= LONGEST_MODULE


def test_a_long_function_is_seen_and_its_docstring_is_not_counted() -> None:
    assert LONGEST_FUNCTION == 40
    doc = ['    """A line.', *(["    More."] * 30), '    """']
    body = ["    x = 1"] * 39
    assert not long_functions("\n".join(["def f():", *doc, *body]))
    assert long_functions("\n".join(["def f():", *doc, *body, "    y = 2"])) == ["f"]
    inner = ["class A:", "    async def g(self):", *(["        x = 1"] * 40)]
    assert long_functions("\n".join(inner)) == ["g"]


def test_every_room_has_its_floor() -> None:
    assert {room_of(path) for path in FILES} == {*ROOMS, "__init__"}


def test_no_two_modules_share_a_name_but_a_task_and_its_room() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    seen: dict[str, Path] = {}
    for path in FILES:
        inside = path.relative_to(SOURCE).parts[0]
        if path.stem == "__init__" or inside in (
            "config",
            "tasks",
        ):  # a file a group, a file a task
            continue
        assert path.stem not in seen, f"{name_of(path)} and {name_of(seen[path.stem])}"
        assert path.stem not in rooms, name_of(path)
        seen[path.stem] = path


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
