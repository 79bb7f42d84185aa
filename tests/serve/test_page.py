"""The page: what it may load, and a walk through it with a real browser."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_server import listening
from toys import Compose

import hatllm
from hatllm.serve import routes
from hatllm.serve.app import build_app
from hatllm.serve.fleet import Fleet
from hatllm.serve.loading import load_run
from hatllm.serve.service import Service

DOCS = Path(__file__).resolve().parents[2] / "docs"
SOON = 60_000  # milliseconds


def test_the_page_may_load_its_own_files_and_nothing_else(bench: Any) -> None:
    client = bench().client
    scripts = re.findall(r'src="([^"]+)"', client.get("/").text)
    assert scripts == ["/page/page.js", "/page/numbers.js"]
    for path, kind in (("/", "text/html"), *((path, "text/javascript") for path in scripts)):
        answer = client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_file_of_the_page_names_another_machine_or_writes_html() -> None:
    for path in routes.PAGE.iterdir():
        text = path.read_text()
        assert not re.search(r"https?://|//cdn|@import", text), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|\son\w+=", text)
        assert "style=" not in text, path.name


class OneRun:
    """A served small run, as `listening` wants it."""

    def __init__(self, folder: Path, compose_config: Compose) -> None:
        words = ["task=serve", f"task.run_folder={folder}", "task.serve.port=0"]
        self.config = compose_config(*words)
        fleet = Fleet([folder], lambda path: load_run(path, self.config, []))
        fleet.start()
        assert fleet.failure is None and self.config.task.serve is not None
        self.service = Service.of(fleet, self.config.task.serve, may_reload=False)
        self.app = build_app(self.service, None)


@pytest.fixture(params=[(1280, 900), (360, 740)], ids=["desktop", "phone"])
def page(request: Any, finished_once: Path, compose_config: Compose) -> Iterator[Any]:
    """The open page of a small run, and what its console and network said."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    spec = importlib.util.spec_from_file_location("draw_page", DOCS / "draw_page.py")
    assert spec is not None and spec.loader is not None
    draw_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_page)
    if (found := draw_page.chromium()) is None:
        pytest.skip("no chromium on this machine")
    made = OneRun(finished_once, compose_config)
    with listening(made) as (_, address), playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        width, height = request.param
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(SOON)
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}")
                if message.type in ("error", "warning") else None)  # fmt: skip
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda asked: said.append(asked.url)
                if not asked.url.startswith((address, "data:")) else None)  # fmt: skip
        page.goto(address)
        page.said = said
        yield page
        browser.close()
    made.service.batcher.close()


@pytest.mark.slow
def test_a_walk_search_click_recommend_why_what_if_wrong_title(page: Any) -> None:
    page.fill("#query", "red b")
    page.click("#found button:has-text('Red Boat')")
    page.fill("#query", "old lamp")
    page.press("#query", "Enter")  # by keyboard
    page.wait_for_selector("#history li:nth-child(2)")
    page.click("#ask")
    page.wait_for_selector("#answers tr:nth-child(10) td")
    first = titles_of(page)
    assert len(set(first)) == 10

    page.click("#answers button >> nth=0")
    page.wait_for_selector("#why .grid")
    assert first[0] in page.inner_text("#why")
    assert page.locator("#why .steps li").count() > 2
    assert page.locator("#why .masks .grid").count() == 3  # intra, full, cross

    page.click("#history li:nth-child(1) button")  # what if it were not there
    page.wait_for_selector("#history li:nth-child(1) button[aria-pressed=true]")
    page.wait_for_selector("#ask:enabled")

    page.fill("#query", "qqqqzzzz")
    page.wait_for_selector("#problem:has-text('No title like that')")

    page.click("#user-next")
    page.wait_for_selector("#user-line:has-text('true next title')")
    page.wait_for_selector("#answers tr td")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0  # nothing to scroll sideways, on a phone neither
    assert page.said == []


@pytest.mark.slow
def test_another_mask_is_asked_for_and_its_answer_explained(page: Any, finished_once: Path) -> None:
    page.click("#user-next")
    page.wait_for_selector("#answers tr:nth-child(10) td")
    own = cells_of(page)
    page.click("text=What if the mask")
    page.select_option("#mask", "causal")
    page.click("#ask")
    page.wait_for_selector("#answers h3:has-text('under mask causal')")
    history = page.evaluate("state.history")
    expected = hatllm.load(finished_once).recommend(history, 10, mask="causal")
    assert titles_of(page) == [one.title for one in expected]
    assert cells_of(page) != own
    page.click("#answers button >> nth=0")
    page.wait_for_selector("#why .masks .grid")
    assert page.locator("#why .masks .grid").count() == 1  # full
    page.select_option("#mask", "")
    page.click("#ask")
    page.wait_for_selector("#answers h3:not(:has-text('under mask'))")
    assert cells_of(page) == own
    assert page.said == []


@pytest.mark.slow
def test_the_numbers_are_those_of_the_run_and_its_slices(page: Any, finished_once: Path) -> None:
    metrics = json.loads((finished_once / "metrics.json").read_text())["test"]
    page.click("#numbers summary")
    page.wait_for_selector("#numbers-slices tr td")
    whole = row_of(page, "#numbers-all", "NDCG@10")
    assert whole.startswith(f"{metrics['NDCG@10']:.4f}")
    assert f"± {metrics['NDCG@10_se']:.4f}" in whole
    for metric, digits in (("HR@10", 4), ("trie_NLL", 3)):
        page.select_option("#slice-metric", metric)
        for slice_name in ("no_shared_words", "seen_transition"):
            count = metrics[f"{slice_name}/count"]
            if (value := metrics.get(f"{slice_name}/{metric}")) is not None:
                label = f"{slice_name.replace('_', ' ')} ({count:g})"
                assert row_of(page, "#numbers-slices", label).startswith(f"{value:.{digits}f}")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0 and page.said == []


@pytest.mark.slow
def test_a_title_of_html_is_text_on_the_page(page: Any) -> None:
    page.evaluate("add('<img src=x onerror=alert(1)>')")
    assert page.inner_text("#history li") == "<img src=x onerror=alert(1)>"
    assert page.locator("#history img").count() == 0
    page.click("#ask")
    page.wait_for_selector("#answers [role=alert]")
    assert "names no item" in page.inner_text("#answers [role=alert]")


def titles_of(page: Any) -> list[str]:
    """The titles of the answers, without what stands behind the true one."""
    cells = page.locator("#answers td.title")
    found = [cells.nth(place).inner_text() for place in range(cells.count())]
    return [text.removesuffix(" ✓ true next") for text in found]


def cells_of(page: Any) -> list[str]:
    return page.locator("#answers td").all_inner_texts()


def row_of(page: Any, table: str, label: str) -> str:
    rows = page.locator(f"{table} tr")
    for place in range(rows.count()):
        if rows.nth(place).locator("th[scope=row]").all_inner_texts() == [label]:
            return rows.nth(place).locator("td").first.inner_text()
    raise AssertionError(f"{label} has no row: {rows.all_inner_texts()}")
