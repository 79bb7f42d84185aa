"""Pictures of the page of a server, by a real browser: page_desktop.png, page_phone.png.

The upper part of the first, history and answers, is page_answers.png of the front page.

    python docs/draw_page.py http://127.0.0.1:8000

Start the server before (`make serve`). Needs `pip install -e '.[browser]'` and a Chromium:
``apt-get install chromium``, or HATLLM_CHROMIUM=PATH.
"""

import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ABOVE_WHY = 1530  # pixels from the top of page_desktop.png
LONGEST_WAIT = 60_000  # milliseconds for one answer of a model


def chromium() -> str | None:
    """The browser of this machine; None = there is none."""
    return os.environ.get("HATLLM_CHROMIUM") or shutil.which("chromium")


def draw(browser: Browser, address: str, name: str, folder: Path) -> Path:
    """Walk to a test user and to why the first title came about, and take a picture.

    Args:
        browser: A Chromium.
        address: Of the server.
        name: One of SIZES.
        folder: Where the picture goes.
    """
    width, height = SIZES[name]
    scheme = "dark" if name == "phone" else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(LONGEST_WAIT)
    page.goto(address)
    page.click("#user-next")
    page.wait_for_selector("#answers tr td")
    page.click("#answers button >> nth=0")
    page.wait_for_selector("#why .grid")
    page.evaluate("window.scrollTo(0, 0)")
    path = folder / f"page_{name}.png"
    page.screenshot(path=path, full_page=True)
    page.close()
    return path


def upper_part(folder: Path) -> None:
    """History and answers alone: what lies above why."""
    with Image.open(folder / "page_desktop.png") as whole:
        whole.crop((0, 0, whole.width, ABOVE_WHY)).save(folder / "page_answers.png", optimize=True)


def main(address: str) -> None:
    """The pictures, into this folder."""
    found = chromium()
    if found is None:
        sys.exit("no chromium on this machine: apt-get install chromium, or HATLLM_CHROMIUM=PATH")
    with sync_playwright() as playwright:
        # A container's root may not use Chromium's own sandbox; the page is our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for name in SIZES:
            print(draw(browser, address, name, Path(__file__).parent))
        browser.close()
    upper_part(Path(__file__).parent)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
