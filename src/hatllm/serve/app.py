"""The whole application: routes, page, and the one shape of every error."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.cors import CORSMiddleware

import hatllm
from hatllm.config import ServeConfig
from hatllm.redact import redacted
from hatllm.serve.gate import Gate, response_of
from hatllm.serve.refusal import Refusal
from hatllm.serve.routes import api_of, page_of, probes_of
from hatllm.serve.schema import LONGEST_TITLE
from hatllm.serve.service import Service, passage_of

LIMITED = {  # of the schemas: field, key, setting
    ("RecommendRequest", "k", "maximum"): "max_k",
    ("RecommendRequest", "history", "maxItems"): "max_history",
    ("ScoreRequest", "history", "maxItems"): "max_history",
    ("WhyRequest", "history", "maxItems"): "max_history",
    ("RecommendRequest", "block", "maxItems"): "max_candidates",
    ("ScoreRequest", "titles", "maxItems"): "max_candidates",
}

ENTRY = f"a title of 1 to {LONGEST_TITLE} characters, or an item id of the source files"


def build_app(service: Service, token: str | None) -> Gate:
    """What uvicorn serves.

    Args:
        service: Runs, queue, figures, settings.
        token: What clients must send; None = no token.
    """
    # No /docs: FastAPI's page loads its scripts from elsewhere.
    app = FastAPI(title="HatLLM", version=hatllm.__version__, docs_url=None, redoc_url=None)
    app.include_router(probes_of(service))
    app.include_router(api_of(service))
    app.include_router(page_of())
    _add_errors(app)
    _state_limits(app, service.config)
    if service.config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.config.cors_origins,
            allow_methods=["GET", "POST"], allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    return Gate(app, service.config, token, service.telemetry)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return response_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return response_of(_invalid(error))

    @app.exception_handler(AnyHTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        refusal = Refusal(error.status_code, message.lower().replace(" ", "_")[:40], message)
        answer = response_of(refusal)
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        passage_of(request).log["error"] = redacted(f"{type(error).__name__}: {error}")
        return response_of(Refusal(500, "internal", "the server failed; its log says how"))


def _invalid(error: RequestValidationError) -> Refusal:
    """The first fault that pydantic found, by the name of its field and never its value."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Refusal(400, "no_json", "the body is no JSON", "body")
    field, *entry = [part for part in first["loc"] if part not in ("body", "query")] or ["body"]
    if not entry:
        return Refusal(422, first["type"], f"{field}: {first['msg']}", str(field))
    name = f"{field}[{entry[0]}]"
    return Refusal(422, "no_entry", f"{name} must be {ENTRY}", name)


def _state_limits(app: FastAPI, config: ServeConfig) -> None:
    """Write this server's limits into the description, which knows only the largest possible."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        schema = describe()
        models = schema["components"]["schemas"]
        for (model, field, key), setting in LIMITED.items():
            models[model]["properties"][field][key] = getattr(config, setting)
        return schema

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend it
