"""Links of the pages lead somewhere, their anchors too; the site builds without a warning."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from toys import CONF

ROOT = CONF.parent
sys.path.insert(0, str(ROOT / "docs"))
import build_site  # noqa: E402

LINK = re.compile(
    r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\""
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PAGES = [path for path in build_site.pages_of(ROOT) if path.suffix == ".md"]


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")


def anchors_of(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {slug(heading) for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Targets of a page's links that are not there, as they stand in it."""
    found = []
    for target in (a or b or c for a, b, c in LINK.findall(FENCE.sub("", page.read_text()))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text())):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One, two\n\n```bash\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#one-two) [c](other.md#no-heading) ![d](d.png) [e](#f)\n"
        '[![g](other.md)](gone.md) <img src="i.png">\n```\n[h](h.md)\n```\n'
    )
    assert broken_links(page) == ["other.md#no-heading", "d.png", "#f", "gone.md", "i.png"]


def test_the_front_page_is_short_in_lines_and_letters() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


FORMS = sorted((ROOT / "experiments").rglob("README.md"))
QUESTIONS = [page for page in FORMS if (page.parent / "results.md").exists()]


@pytest.mark.parametrize("page", FORMS, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_the_page_of_an_experiment_is_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= 80, "what is more stands in details.md beside it"


@pytest.mark.parametrize("page", QUESTIONS, ids=lambda page: str(page.parent.relative_to(ROOT)))
def test_the_page_of_an_experiment_asks_answers_and_says_how(page: Path) -> None:
    text = page.read_text()
    assert text.index("**Question.**") < text.index("**Answer.**") < text.index("```bash")
    assert ("\n|" in text or "![" in text) and "Cost" in text


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT).as_posix() for page in PAGES]
    wanted = [page for page in pages if page.startswith("docs/") or page.endswith("README.md")]
    assert [page for page in wanted if page not in listed] == []


def test_the_site_stages_only_pages_and_pictures(tmp_path: Path) -> None:
    build_site.stage(ROOT, tmp_path)
    kinds = {path.suffix for path in (tmp_path / "build/pages").rglob("*") if path.is_file()}
    assert kinds <= {".md", ".png", ".css", ".cff", ""}  # "": the licence
    assert (tmp_path / "build/pages/experiments/paper/main/README.md").is_file()


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("zensical"), reason="pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build_site.main(tmp_path)
    for page in ("", "docs/running/", "experiments/paper/main/"):
        assert "<h1" in (tmp_path / "build/site" / page / "index.html").read_text()
