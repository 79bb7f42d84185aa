"""Build the site of `make docs`: the repository's own pages, at their own places, under build/site.

Zensical wants all pages in one folder, and ours stand beside what they speak of. So they are copied
to build/pages with the tree they have here, which keeps every link between them right.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "experiments")
SUFFIXES = (".md", ".png", ".css")
LEFT_OUT = ("examples.md", "quick")  # what runs leave beside their tables; not in the repository


def pages_of(root: Path) -> list[Path]:
    """Pages, licence and citation at the top; pages and pictures of the folders."""
    found = [path for name in FOLDERS for path in (root / name).rglob("*")]
    kept = [path for path in found if path.suffix in SUFFIXES and not set(path.parts) & {*LEFT_OUT}]
    return sorted([*root.glob("*.md"), root / "LICENSE", root / "CITATION.cff", *kept])


def stage(root: Path, to: Path) -> None:
    """Copy the pages of ``root`` to ``to/build/pages`` and the configuration to ``to``."""
    shutil.rmtree(to / "build", ignore_errors=True)
    for path in pages_of(root):
        copy = to / "build/pages" / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    if root != to:
        shutil.copy(root / "mkdocs.yml", to)


def main(to: Path) -> None:
    """Stage and build below ``to``; a warning is an error."""
    stage(ROOT, to)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    subprocess.run([*command, "--config-file", str(to / "mkdocs.yml")],
                   env=os.environ | {"NO_COLOR": "1"}, check=True)  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
