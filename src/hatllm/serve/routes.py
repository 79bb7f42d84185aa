"""The routes: what each path answers. How a request waits for a model stands in `service`."""

import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from hatllm.serve.gate import Passage
from hatllm.serve.refusal import ErrorBody, Refusal
from hatllm.serve.schema import (
    LONGEST_NAME,
    LONGEST_TITLE,
    Health,
    Item,
    ItemsAnswer,
    RecommendAnswer,
    RecommendRequest,
    ReloadAnswer,
    ReloadRequest,
    RunAnswer,
    RunsAnswer,
    RunSummary,
    ScoreAnswer,
    ScoreRequest,
    UsersAnswer,
    WhyAnswer,
    WhyRequest,
)
from hatllm.serve.served_run import ServedRun, ranked
from hatllm.serve.service import Service, check_length, passage_of

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


MOST_LISTED = 100  # items or users of one answer
RunQuery = Annotated[
    str | None,
    Query(min_length=1, max_length=LONGEST_NAME, description="Name of a run; none = the first."),
]
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED, description="How many at most.")]
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The body is no JSON."),
        (401, "The bearer token is missing or wrong."),
        (404, "There is no such run."),
        (408, "The body came too slowly."),
        (413, "The body is too large."),
        (421, "The Host header is not this machine's."),
        (422, "A field is wrong, or a title unknown."),
        (429, "The queue is full; see Retry-After."),
        (499, "The client left."),
        (503, "The server is loading or ending."),
        (504, "The time limit is over."),
    )
}


def api_of(service: Service) -> APIRouter:
    """The routes under ``/v1``."""
    api = APIRouter(prefix="/v1", responses=ERRORS)
    asking, known = Asking(service), Known(service)
    api.add_api_route("/recommend", asking.recommend, methods=["POST"])
    api.add_api_route("/score", asking.score, methods=["POST"])
    api.add_api_route("/why", asking.why, methods=["POST"])
    refused: dict[str, Any] = {"model": ErrorBody}
    of_reload: dict[int | str, dict[str, Any]] = {403: refused, 409: refused}
    api.add_api_route("/reload", asking.reload, methods=["POST"], responses=of_reload)
    api.add_api_route("/items", known.items, methods=["GET"])
    api.add_api_route("/run", known.run, methods=["GET"])
    api.add_api_route("/runs", known.runs, methods=["GET"])
    api.add_api_route("/users", known.users, methods=["GET"])
    return api


class Asking:
    """What a model is asked for."""

    def __init__(self, service: Service) -> None:
        self.service, self.fleet, self.limits = service, service.fleet, service.config

    async def recommend(self, body: RecommendRequest, request: Request) -> RecommendAnswer:
        """The best next titles of a history."""
        run, passage = self._begin(body, request)
        passage.log["k"] = body.k
        if body.k > self.limits.max_k:
            raise Refusal(422, "too_many", f"k={body.k} must be at most {self.limits.max_k}", "k")
        if (what_if := await run_in_threadpool(run.what_if_of, body)) is not None:
            found, job = await self.service.ask(request, run.recommend_if, what_if, joins=False)
        else:
            asked = await run_in_threadpool(run.request_of, body)
            found, job = await self.service.ask(request, run.recommend, asked, joins=True)
        if self.limits.log_titles:
            titles = [one.title for one in found]
            passage.log |= {"history_titles": body.history, "titles": titles}
        seconds = time.monotonic() - passage.start
        return RecommendAnswer(
            run=run.name, recommendations=ranked(found), batch_size=job.batch_size,
            seconds=round(seconds, 4),
        )  # fmt: skip

    async def score(self, body: ScoreRequest, request: Request) -> ScoreAnswer:
        """The candidates by probability after a history."""
        run, _ = self._begin(body, request)
        await run_in_threadpool(run.check, "history", body.history)
        await run_in_threadpool(run.check, "titles", body.titles)
        found, _ = await self.service.ask(request, run.score, body, joins=False)
        return ScoreAnswer(run=run.name, scores=ranked(found))

    async def why(self, body: WhyRequest, request: Request) -> WhyAnswer:
        """How a title came about: trie path, masks, attention; of LLM runs only."""
        run, _ = self._begin(body, request)
        asked = await run_in_threadpool(run.why_request_of, body)
        answer, _ = await self.service.ask(request, run.why, asked, joins=False)
        found: WhyAnswer = answer
        return found

    async def reload(self, body: ReloadRequest, request: Request) -> ReloadAnswer:
        """Load a run anew, or another in its place; the old one answers until it is ready."""
        if not self.service.may_reload:
            raise Refusal(403, "no_reload", "reloading needs a server with HATLLM_TOKEN set")
        new = await run_in_threadpool(self.fleet.reload, body.run, body.folder)
        seconds = time.monotonic() - passage_of(request).start
        return ReloadAnswer(run=new.name, seconds=round(seconds, 3))

    def _begin(
        self, body: RecommendRequest | ScoreRequest | WhyRequest, request: Request
    ) -> tuple[ServedRun, Passage]:
        """The run that is asked, once there is room and no list is too long."""
        run, passage = self.fleet.run(body.run), passage_of(request)
        self.service.batcher.check_room()  # before any work for a request that is refused anyway
        passage.log |= {"run": run.name, "history": len(body.history)}
        check_length("history", body.history, self.limits.max_history)
        for field in ("only", "block", "titles"):
            check_length(field, getattr(body, field, None), self.limits.max_candidates)
        return run, passage


class Known:
    """What is known of the runs without asking a model."""

    def __init__(self, service: Service) -> None:
        self.fleet = service.fleet

    async def items(
        self,
        query: Annotated[str, Query(min_length=1, max_length=LONGEST_TITLE)],
        run: RunQuery = None,
        limit: Limit = 10,
    ) -> ItemsAnswer:
        """Items by the beginning of their title, then by near spelling."""
        chosen = self.fleet.run(run)
        found = await run_in_threadpool(chosen.recommender.items, query, limit)
        return ItemsAnswer(run=chosen.name, items=[Item(**one._asdict()) for one in found])

    def run(self, run: RunQuery = None) -> RunAnswer:
        """Settings, numbers and mask schedule of a run."""
        chosen = self.fleet.run(run)
        return RunAnswer(
            **self._summary(chosen).model_dump(), settings=chosen.settings(),
            metrics=chosen.metrics, patterns=chosen.patterns,
        )  # fmt: skip

    def runs(self) -> RunsAnswer:
        """All served runs, the default first."""
        self.fleet.run(None)
        return RunsAnswer(runs=[self._summary(run) for run in self.fleet.runs.values()])

    def users(
        self,
        run: RunQuery = None,
        offset: Annotated[int, Query(ge=0, le=2**31, description="Where to begin.")] = 0,
        limit: Limit = 10,
    ) -> UsersAnswer:
        """Test users of a run: their history, the true next title, its rank as evaluated."""
        chosen = self.fleet.run(run)
        found = chosen.users.page(offset, limit)
        return UsersAnswer(run=chosen.name, total=len(chosen.users), users=found)

    def _summary(self, run: ServedRun) -> RunSummary:
        return run.summary(is_default=run is self.fleet.run(None))


def probes_of(service: Service) -> APIRouter:
    """What orchestrators and Prometheus ask."""
    probes = APIRouter()

    @probes.get("/healthz")
    async def healthz() -> Health:
        """The server lives."""
        return Health(status="ok")

    @probes.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz() -> Health:
        """Every run is loaded, and the server does not end."""
        service.fleet.run(None)
        return Health(status="ready")

    @probes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Figures as Prometheus reads them."""
        service.telemetry.ready.set(service.fleet.is_ready)
        return Response(service.telemetry.text(), media_type="text/plain; version=0.0.4")

    return probes
