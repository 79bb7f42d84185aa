"""What every request passes before a route sees it: host, token, size; afterwards figures and log.

Plain ASGI, so that a body that is too large is refused while it comes in.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from hatllm.config.serve import ServeConfig, is_loopback
from hatllm.serve.refusal import Refusal
from hatllm.serve.telemetry import Telemetry, log_line

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN_PATHS = ("/", "/healthz", "/readyz")  # need no token
PAGE = "/page/"  # its files neither
UNCOUNTED = ("/healthz", "/readyz", "/metrics")  # asked every few seconds; not in the log
WHILE_ENDING = ("/healthz", "/metrics")  # answered until the end
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
)


@dataclass
class Passage:
    """One request on its way; routes write into ``log`` what its line should hold."""

    start: float
    log: dict[str, Any] = field(default_factory=dict)
    status: int = 500
    route: str = "other"


class Gate:
    """The outermost layer of the server."""

    def __init__(
        self, app: App, config: ServeConfig, token: str | None, telemetry: Telemetry
    ) -> None:
        self.app, self.config, self.telemetry = app, config, telemetry
        self._token = None if token is None else token.encode()
        self.in_flight = 0
        self.is_ending = False  # then only those who came before are answered

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = Passage(time.monotonic())
        scope.setdefault("state", {})["passage"] = passage
        request_id = uuid.uuid4().hex
        counted = scope["path"] not in UNCOUNTED

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                passage.status = message["status"]
                added = (*SECURITY_HEADERS, (b"x-request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        self._count(counted, 1)
        try:
            await self._pass(scope, receive, answer)
        finally:
            self._count(counted, -1)
            self._tell(scope, passage, request_id, counted)

    async def _pass(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            headers = Headers(scope=scope)
            self._check_ending(scope)
            self._check_host(headers)
            self._check_token(scope, headers)
            body = await self._body(headers, receive)
        except Refusal as refusal:
            await response_of(refusal)(scope, receive, send)
            return
        await self.app(scope, _replayed(body, receive), send)

    def _check_ending(self, scope: MutableMapping[str, Any]) -> None:
        if self.is_ending and scope["path"] not in WHILE_ENDING:
            raise Refusal(503, "ending", "the server is ending", retry_after=1)

    def _check_host(self, headers: Headers) -> None:
        """A page of elsewhere can name this machine by a name of its own (DNS rebinding)."""
        name = re.sub(r":\d+$", "", headers.get("host", ""))
        if self.config.is_local and not is_loopback(name):
            raise Refusal(
                421, "wrong_host", "this server answers to localhost and 127.0.0.1", "Host"
            )

    def _check_token(self, scope: MutableMapping[str, Any], headers: Headers) -> None:
        path = scope["path"]
        if self._token is None or path in OPEN_PATHS or path.startswith(PAGE):
            return
        if scope["method"] == "OPTIONS":  # asked by browsers before the request, without a token
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not compare_digest(given.strip().encode(), self._token):
            raise Refusal(401, "no_token", "needs Authorization: Bearer TOKEN", "Authorization")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, unless it is too large or too slow."""
        limit = self.config.max_body_bytes
        too_large = Refusal(413, "too_large", f"a body has at most {limit} bytes", "body")
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        try:
            async with asyncio.timeout(self.config.request_timeout_seconds):
                body = b""
                while True:
                    message = await receive()
                    body += bytes(message.get("body", b""))
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return body
        except TimeoutError:
            raise Refusal(408, "too_slow", "the body did not come in time", "body") from None

    def _count(self, counted: bool, change: int) -> None:
        if counted:
            self.in_flight += change
            self.telemetry.in_flight.set(self.in_flight)

    def _tell(
        self, scope: MutableMapping[str, Any], passage: Passage, request_id: str, counted: bool
    ) -> None:
        seconds = time.monotonic() - passage.start
        route = getattr(scope.get("route"), "path", passage.route)
        self.telemetry.requests.labels(route, str(passage.status)).inc()
        self.telemetry.seconds.labels(route).observe(seconds)
        if counted:
            log_line(
                request=request_id, method=scope["method"], route=route, status=passage.status,
                seconds=round(seconds, 4), **passage.log,
            )  # fmt: skip


def response_of(refusal: Refusal) -> Response:
    """The answer that a refusal is."""
    return Response(
        refusal.body().model_dump_json(), refusal.status, refusal.headers(), "application/json"
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hand a body out that was read already; then what comes, such as the end of the line."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
