"""The routes: what each path answers. How a request waits for a model stands in `service`."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

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
    ScoreAnswer,
    ScoreRequest,
    UsersAnswer,
    WhyAnswer,
    WhyRequest,
)
from hatllm.serve.served_run import ServedRun, ranked
from hatllm.serve.service import Service, passage_of

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
    _add_models(api, service)
    _add_runs(api, service)
    return api


def _add_models(api: APIRouter, service: Service) -> None:
    """What a model is asked for."""
    limits = service.config

    def check_lists(body: RecommendRequest | ScoreRequest | WhyRequest) -> None:
        service.check_length("history", body.history, limits.max_history)
        for field in ("only", "block", "titles"):
            service.check_length(field, getattr(body, field, None), limits.max_candidates)

    @api.post("/recommend")
    async def recommend(body: RecommendRequest, request: Request) -> RecommendAnswer:
        """The best next titles of a history."""
        run, passage = service.fleet.run(body.run), passage_of(request)
        passage.log |= {"run": run.name, "k": body.k, "history": len(body.history)}
        check_lists(body)
        if body.k > limits.max_k:
            raise Refusal(422, "too_many", f"k={body.k} must be at most {limits.max_k}", "k")
        if (what_if := await run_in_threadpool(run.what_if_of, body)) is not None:
            found, job = await service.ask(request, run.recommend_if, what_if, joins=False)
        else:
            asked = await run_in_threadpool(run.request_of, body)
            found, job = await service.ask(request, run.recommend, asked, joins=True)
        if limits.log_titles:
            titles = [one.title for one in found]
            passage.log |= {"history_titles": body.history, "titles": titles}
        seconds = time.monotonic() - passage.start
        return RecommendAnswer(
            run=run.name, recommendations=ranked(found), batch_size=job.batch_size,
            seconds=round(seconds, 4),
        )  # fmt: skip

    @api.post("/score")
    async def score(body: ScoreRequest, request: Request) -> ScoreAnswer:
        """The candidates by probability after a history."""
        run, passage = service.fleet.run(body.run), passage_of(request)
        passage.log |= {"run": run.name, "history": len(body.history)}
        check_lists(body)
        await run_in_threadpool(run.check, "history", body.history)
        await run_in_threadpool(run.check, "titles", body.titles)
        found, _ = await service.ask(request, run.score, body, joins=False)
        return ScoreAnswer(run=run.name, scores=ranked(found))

    @api.post("/why")
    async def why(body: WhyRequest, request: Request) -> WhyAnswer:
        """How a title came about: trie path, masks, attention; of LLM runs only."""
        run, passage = service.fleet.run(body.run), passage_of(request)
        passage.log |= {"run": run.name, "history": len(body.history)}
        check_lists(body)
        asked = await run_in_threadpool(run.why_request_of, body)
        answer, _ = await service.ask(request, run.why, asked, joins=False)
        found: WhyAnswer = answer
        return found

    @api.post("/reload", responses={403: {"model": ErrorBody}, 409: {"model": ErrorBody}})
    async def reload(body: ReloadRequest, request: Request) -> ReloadAnswer:
        """Load a run anew, or another in its place; the old one answers until it is ready."""
        if not service.may_reload:
            raise Refusal(403, "no_reload", "reloading needs a server with HATLLM_TOKEN set")
        new = await run_in_threadpool(service.fleet.reload, body.run, body.folder)
        seconds = time.monotonic() - passage_of(request).start
        return ReloadAnswer(run=new.name, seconds=round(seconds, 3))


def _add_runs(api: APIRouter, service: Service) -> None:
    """What is known of the runs without asking a model."""
    fleet = service.fleet

    @api.get("/items")
    async def items(
        query: Annotated[str, Query(min_length=1, max_length=LONGEST_TITLE)],
        run: RunQuery = None,
        limit: Limit = 10,
    ) -> ItemsAnswer:
        """Items by the beginning of their title, then by near spelling."""
        chosen = fleet.run(run)
        found = await run_in_threadpool(chosen.recommender.items, query, limit)
        return ItemsAnswer(run=chosen.name, items=[Item(**one._asdict()) for one in found])

    @api.get("/run")
    def one_run(run: RunQuery = None) -> RunAnswer:
        """Settings, numbers and mask schedule of a run."""
        chosen = fleet.run(run)
        return RunAnswer(
            **chosen.summary(_is_default(chosen)).model_dump(), settings=chosen.settings(),
            metrics=chosen.metrics, patterns=chosen.patterns,
        )  # fmt: skip

    @api.get("/runs")
    def runs() -> RunsAnswer:
        """All served runs, the default first."""
        fleet.run(None)
        return RunsAnswer(runs=[run.summary(_is_default(run)) for run in fleet.runs.values()])

    @api.get("/users")
    def users(
        run: RunQuery = None,
        offset: Annotated[int, Query(ge=0, le=2**31, description="Where to begin.")] = 0,
        limit: Limit = 10,
    ) -> UsersAnswer:
        """Test users of a run: their history, the true next title, its rank as evaluated."""
        chosen = fleet.run(run)
        found = chosen.users.page(offset, limit)
        return UsersAnswer(run=chosen.name, total=len(chosen.users), users=found)

    def _is_default(run: ServedRun) -> bool:
        return run is fleet.run(None)


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
