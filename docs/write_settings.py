"""Write docs/reference/settings.md from the schema in src/hatllm/config and the files of conf/.

python docs/write_settings.py. A test holds the committed page to what this writes.
"""

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hatllm.compose import register_schema
from hatllm.config import NOT_IN_HASH, Config
from hatllm.config.checks import LARGEST

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs/reference/settings.md"
INTRO = """# Every setting

<!-- made by python docs/write_settings.py from src/hatllm/config and conf/ -->

A setting is given as `group.setting=value` behind `python run.py`, a choice of a group as
`group=choice`. The default is what `python run.py` takes when nothing is said. A scale, an
experiment or another choice of a group may change it; `python run.py --cfg job mask=two_phase`
prints every value of a run. *Named* says whether a setting is part of a run's name and hash: then
a run with another value of it is another run.
"""
# Settings of one kind of model, which are null under the default: the choice that shows them.
SHOWN_WITH = {
    "task.serve": "task=serve task.run_folder=A",
    "model.popularity": "model=popularity",
    "model.knn": "model=knn",
    "model.titles": "model=titles",
    "model.fusion": "model=fusion model.first_run=A model.second_run=B",
    "model.transitions": "model=titles_graph",
    "model.sequence": "model=sasrec",
    "model.sequence.cloze": "model=bert4rec",
    "model.sequence.dros": "model=sasrec_dros",
    "experiment.grid": "experiment=paper/sensitivity",
}


ONE_OF = re.compile(r"^(one of|a) [A-Z_]+:? ?|; one of [A-Z_]+")  # `allowed` names them


@dataclass
class Setting:
    """A row of the tables."""

    name: str
    type: str
    allowed: str
    default: str
    meaning: str


def comments_of_yaml(path: Path) -> dict[str, str]:
    """The comment behind each value of a YAML file, by dotted name."""
    lines = path.read_text().splitlines()
    found: dict[str, str] = {}

    def walk(node: yaml.Node, start: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            name = f"{start}{key.value}"
            line = lines[key.start_mark.line]
            after = value.end_mark.column if value.end_mark.line == key.start_mark.line else 0
            if " # " in line[after:] or line[after:].startswith("# "):
                found[name] = line[after:].split("# ", 1)[1].strip()
            walk(value, f"{name}.")

    root = yaml.compose(path.read_text())
    if root is not None:
        walk(root, "")
    return found


def class_node(schema: type) -> ast.ClassDef:
    """The syntax tree of a dataclass."""
    (node,) = ast.parse(inspect.getsource(schema)).body
    assert isinstance(node, ast.ClassDef)
    return node


def comments_of_schema(schema: type) -> dict[str, str]:
    """The comment behind each field of a dataclass."""
    lines = inspect.getsource(schema).splitlines()
    fields_ = (node for node in class_node(schema).body if isinstance(node, ast.AnnAssign))
    found = {ast.unparse(node.target): lines[node.lineno - 1].partition("  # ") for node in fields_}
    return {name: comment for name, (_, _, comment) in found.items() if comment}


def checks_of(function: ast.FunctionDef, module: ModuleType) -> Iterator[tuple[str, str, ast.Call]]:
    """Field, name of the check, and the call, of every check of a method; loops spelled out."""
    names: dict[str, Any] = dict(vars(module))

    def walk(statements: list[ast.stmt]) -> Iterator[tuple[str, str, ast.Call]]:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    try:
                        names[name] = evaluated(value, names)
                    except (NameError, AttributeError):
                        continue
                case ast.For(target=ast.Name(id=name), iter=values, body=body):
                    for value in literal_loop(values, names):
                        names[name] = value
                        yield from walk(body)
                case ast.If(body=body):
                    yield from walk(body)
                case ast.Expr(value=ast.Call(func=ast.Name(id=check), args=[field, *_]) as call):
                    if check in ("check_choice", "check_range", "check_positive"):
                        yield str(evaluated(field, names)), check, call

    yield from walk(function.body)


def evaluated(node: ast.expr, names: dict[str, Any]) -> Any:
    """The value of an expression of constants."""
    return eval(compile(ast.Expression(node), "schema", "eval"), names)


def literal_loop(values: ast.expr, names: dict[str, Any]) -> list[Any]:
    """What a loop goes over, empty where that is no constant."""
    try:
        return list(evaluated(values, names))
    except NameError:
        return []


def bound(node: ast.expr, names: dict[str, Any]) -> str:
    """A limit of a range: a number, or the name of the setting that is the limit."""
    if isinstance(node, ast.Attribute):
        return f"`{node.attr}`"
    value = evaluated(node, names)
    return "" if abs(value) >= LARGEST else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def allowed_of(check: str, call: ast.Call, module: ModuleType) -> str:
    """What a check lets through, in words."""
    names = vars(module)
    match check:
        case "check_choice":
            return ", ".join(f"`{choice}`" for choice in evaluated(call.args[2], names))
        case "check_positive":
            return "above 0"
    low, *high = (bound(node, names) for node in call.args[2:])
    if not low:
        return ""
    return f"{low} to {high[0]}" if high else f"at least {low}"


def ranges_of(schema: type) -> dict[str, str]:
    """What may stand in each field of a dataclass, as far as its own checks say."""
    module = importlib.import_module(schema.__module__)
    methods = (node for node in class_node(schema).body if isinstance(node, ast.FunctionDef))
    found: dict[str, str] = {}
    for method in methods:
        for field, check, call in checks_of(method, module):
            found.setdefault(field.rpartition(".")[2], allowed_of(check, call, module))
    return found


def type_in_words(annotation: str) -> str:
    """`int | None` as `int or null`."""
    return annotation.replace(" | None", " or null").replace("list[Any]", "list")


def composed(words: list[str]) -> dict[str, Any]:
    """All values of a command line, interpolations as they are written."""
    register_schema()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = OmegaConf.to_container(compose("config", overrides=words), resolve=False)
    assert isinstance(found, dict)
    return found


def value_at(values: dict[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    for key in name.split("."):
        values = values[key]
    return values


def inner_schema(annotation: Any) -> type | None:
    """The dataclass of a field, with or without null."""
    options = (annotation, *getattr(annotation, "__args__", ()))
    return next((option for option in options if is_dataclass(option)), None)  # type: ignore[return-value]


def in_cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|")


def settings_of(schema: type, start: str, values: dict[str, Any]) -> Iterator[Setting]:
    """Rows of a dataclass's own fields, in its order; dataclasses within are left out."""
    annotations = {
        ast.unparse(node.target): ast.unparse(node.annotation)
        for node in class_node(schema).body
        if isinstance(node, ast.AnnAssign)
    }
    ranges, words = ranges_of(schema), meanings_of(schema, start)
    hints = get_type_hints(schema)
    for field in fields(schema):
        if inner_schema(hints[field.name]) is None and not (start and field.name == "name"):
            name = f"{start}{field.name}"
            default = in_yaml(value_at(values, name))
            allowed = ranges.get(
                field.name, "true, false" if "bool" in annotations[field.name] else ""
            )
            yield Setting(name, type_in_words(annotations[field.name]), allowed, default,
                          words.get(field.name, ""))  # fmt: skip


def in_yaml(value: Any) -> str:
    """A value as one would write it in conf/; texts of several lines with their escapes."""
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return str(dumped).removesuffix("\n").removesuffix("\n...").replace("'", '"')


def meanings_of(schema: type, start: str) -> dict[str, str]:
    """The meaning of each field: of its comments in conf/ and in the schema the longer one."""
    group, _, inner = start.rstrip(".").partition(".")
    choice = SHOWN_WITH.get(start.rstrip("."), "").split(" ")[0].partition("=")[2]
    files = [
        "config.yaml",
        f"{group}/_base.yaml",
        f"{group}/_settings.yaml",
        f"{group}/{choice}.yaml",
    ]
    found = {k: ONE_OF.sub("", v) for k, v in comments_of_schema(schema).items()}
    for file in (CONF / name for name in files):
        if file.is_file():
            prefix = f"{inner}." if inner else ""
            for name, comment in comments_of_yaml(file).items():
                if name.startswith(prefix) and "." not in (key := name.removeprefix(prefix)):
                    found[key] = max(comment, found.get(key, ""), key=len)
    return found


def is_named(name: str) -> bool:
    """Whether a setting is part of a run's name."""
    return not any(name == left or name.startswith(f"{left}.") for left in NOT_IN_HASH)


def table_of(rows: list[Setting]) -> list[str]:
    """A Markdown table of settings."""
    lines = [
        "| setting | type | allowed | default | named | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"`{row.name}`", row.type, row.allowed, f"`{row.default}`",
                 "yes" if is_named(row.name) else "no", row.meaning]  # fmt: skip
        lines.append(f"| {' | '.join(map(in_cell, cells))} |")
    return [*lines, ""]


def choices_of(group: str) -> list[str]:
    """A Markdown table of a group's files, each with what its first line says."""
    lines = ["| choice | what |", "|---|---|"]
    for path in sorted((CONF / group).rglob("*.yaml")):
        name = path.relative_to(CONF / group).with_suffix("").as_posix()
        first = next(line for line in path.read_text().splitlines() if line.startswith("# conf/"))
        if not path.name.startswith("_"):
            lines.append(f"| `{group}={name}` | {in_cell(first.partition(': ')[2])} |")
    return [*lines, ""]


def doc_line(schema: type) -> str:
    """The first line of a docstring as Markdown."""
    return (schema.__doc__ or "").splitlines()[0].replace("``", "`")


def sections_of(schema: type, name: str) -> Iterator[str]:
    """Heading and table of a dataclass, then of those within it."""
    shown_with = SHOWN_WITH.get(name)
    values = composed(shown_with.split(" ") if shown_with else [])
    start = f"{name}." if name else ""
    rows = list(settings_of(schema, start, values))
    if name:
        yield from [f"{'#' * (2 + name.count('.'))} {name}", ""]
        yield from [doc_line(schema), ""]
    if (CONF / name).is_dir() and name:
        yield from choices_of(name)
    if shown_with:
        yield from [
            f"Null unless a choice sets them; the defaults here are those of `{shown_with}`.",
            "",
        ]
    yield from table_of(rows)
    for field, hint in get_type_hints(schema).items():
        if (inner := inner_schema(hint)) is not None and name:
            yield from sections_of(inner, f"{start}{field}")


def page() -> str:
    """The whole page."""
    lines = [INTRO, "## Of the run", "", *sections_of(Config, "")]
    lines += [
        "## scale",
        "",
        "Rows, recipe and batch sizes together; a file sets values of other groups.",
        "",
    ]
    lines += choices_of("scale")
    for group, schema in get_type_hints(Config).items():
        if is_dataclass(schema):
            lines += sections_of(schema, group)  # type: ignore[arg-type]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
