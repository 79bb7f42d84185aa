"""Write docs/reference/api.md: signatures and docstrings of masks, losses, decoders and metrics.

python docs/write_api.py. A test holds the committed page to what this writes.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/api.md"
MODULES = {
    "Finished runs": ("recommend/recommender",),
    "Masks": ("masks/patterns", "masks/layer_masks", "masks/schedule"),
    "Losses": ("losses/lml", "losses/msl", "losses/bear", "losses/sdpo"),
    "Decoders": ("decode/trie", "decode/search", "decode/beam", "decode/exact", "decode/d3",
                 "decode/information_gain", "decode/grounding", "decode/legal", "decode/scorer",
                 "decode/titles_alike"),
    "Metrics": ("metrics/ranking", "metrics/rank_metrics", "metrics/from_predictions",
                "metrics/slices", "metrics/uncertainty", "metrics/best_step"),
}  # fmt: skip
INTRO = """# Python API

<!-- made by python docs/write_api.py from the docstrings -->

The rooms that compute what the tables show. Names of tensors end in their axes (`allowed_BQK`);
each module says what the letters mean. `allowed` is always true where a query may attend to a key.
A worked example of each kind stands in [Your own arm](../own_arm.md).
"""
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes)(, Returns)?: ?(.*)$")
LONGEST = 88  # characters of a signature in one line
Definition = ast.FunctionDef | ast.ClassDef


def in_markdown(docstring: str) -> list[str]:
    """A Google docstring as Markdown: its sections as lists, its literals as code."""
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", docstring.replace("``", "`"))
    lines: list[str] = []
    entry_indent: int | None = None  # of the entries of the section we are in; None = in none
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if found := SECTION.match(line):
            lines += ["", f"**{found[1]}{found[2] or ''}** {found[3]}".rstrip(), ""]
            entry_indent = 4
        elif entry_indent is not None and indent == entry_indent and ": " in line:
            name, _, what = line.strip().partition(": ")
            lines.append(f"- `{name}`: {what}" if " " not in name else f"- {line.strip()}")
        elif entry_indent is not None and line:
            lines.append(f"  {line.strip()}" if indent > entry_indent else line.strip())
        else:
            lines.append(line)
            entry_indent = None if line and indent == 0 else entry_indent
    return lines


def signature_of(node: Definition) -> str:
    """The first line of a definition, without its body and decorators."""
    bare = ast.unparse(node).splitlines()
    start = next(i for i, line in enumerate(bare) if line.startswith(("def ", "class ")))
    line = bare[start].rstrip(":")
    if isinstance(node, ast.ClassDef) or len(line) <= LONGEST:
        return line
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + [*node.args.defaults]
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    given = [f"{ast.unparse(a)}{f' = {ast.unparse(d)}' if d else ''}" for a, d in pairs]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return "\n".join([f"def {node.name}(", *(f"    {one}," for one in given), f"){returns}"])


def fields_of(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass, as they stand in it."""
    return [f"    {ast.unparse(part)}" for part in node.body if isinstance(part, ast.AnnAssign)]


def entry(node: Definition, level: int, owner: str = "") -> Iterator[str]:
    """Heading, signature and docstring of a public definition, then of a class's own methods."""
    yield from [f"{'#' * level} {owner}{node.name}", "", "```py", signature_of(node)]
    if isinstance(node, ast.ClassDef):
        yield from fields_of(node)
    yield from ["```", "", *in_markdown(ast.get_docstring(node) or ""), ""]
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                yield from entry(part, level + 1, f"{node.name}.")


def module_entries(name: str) -> Iterator[str]:
    """A module's docstring and its public definitions."""
    tree = ast.parse((ROOT / f"src/hatllm/{name}.py").read_text())
    yield from [f"## hatllm.{name.replace('/', '.')}", ""]
    yield from [*in_markdown(ast.get_docstring(tree) or ""), ""]
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield from entry(node, 3)


def page() -> str:
    """The whole page."""
    lines = [INTRO]
    for names in MODULES.values():
        for name in names:
            lines += module_entries(name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
