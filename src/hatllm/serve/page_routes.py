"""The page at ``/``: static files that need nothing from elsewhere."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from hatllm.serve.refusal import Refusal

PAGE = Path(__file__).parent / "page"
FILES = {
    "page.js": "text/javascript", "numbers.js": "text/javascript", "page.css": "text/css",
}  # fmt: skip
# Nothing is loaded from elsewhere, nothing runs that does not stand in these.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_of() -> APIRouter:
    """The page and its files."""
    pages = APIRouter(include_in_schema=False)

    @pages.get("/")
    def index() -> Response:
        return _file("index.html", "text/html; charset=utf-8")

    @pages.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in FILES:
            raise Refusal(404, "not_found", "the page has no such file")
        return _file(name, f"{FILES[name]}; charset=utf-8")

    return pages


def _file(name: str, media_type: str) -> Response:
    headers = {"Content-Security-Policy": POLICY}
    return Response((PAGE / name).read_bytes(), media_type=media_type, headers=headers)
