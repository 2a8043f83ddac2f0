"""The gateway's endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from motes import api
from motes.core import Record, Result, Trajectory, Usage
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    MotesError,
    NoParticlesError,
    UnauthorizedError,
)
from motes.gateway import tracing
from motes.gateway.admission import Admission, BusyError, Caller
from motes.gateway.answering import Asked, RefusedError, Served, visible
from motes.gateway.config import Config
from motes.gateway.metrics import Metrics
from motes.gateway.playground import html
from motes.gateway.readiness import Readiness
from motes.gateway.replies import card, failure, reply
from motes.gateway.streaming import Chunks, EventStream, events
from motes.gateway.wire import ChatRequest, CompletionRequest, Request
from motes.methods.run import Follower, Observer, Run

try:
    from fastapi import FastAPI, HTTPException
    from fastapi import Request as HTTPRequest
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException as StarletteHTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("the gateway", "serve") from error

T = TypeVar("T")
log = logging.getLogger(__name__)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NOT_ELSEWHERE = {"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""The page is not to be shown within another one."""
FAULTS = {
    "extra_forbidden": "there is no such field",
    "model_type": "Input should be a JSON object",
    "model_attributes_type": "Input should be a JSON object, sent as application/json",
}
"""What pydantic says for readers of Python, by its kind."""
GONE = 499
"""The status of a request whose client has left: nobody reads it but the log."""


class Gateway:
    """What answers requests: the models, the gate, and who may ask."""

    def __init__(self, config: Config, models: Mapping[str, Served]) -> None:
        self.config, self.models = config, models
        self.gate = Admission(config.limits.particles, config.limits.waiting)
        self.metrics = Metrics(self.gate)
        self.readiness = Readiness(models)
        self.anyone = Caller("anyone", config.limits.waiting + config.limits.particles)
        self._callers = {key.name: Caller(key.name, key.concurrency, key.requests_per_minute) for key in config.keys}
        self.began = int(time.time())

    def caller(self, authorization: str | None) -> tuple[Caller, dict[str, Served]]:
        """Who asks, and the models that it may ask for.

        Raises:
            RefusedError: the key is missing or unknown.
        """
        if not self.config.keys:
            return self.anyone, dict(self.models)
        scheme, _, secret = (authorization or "").partition(" ")
        key = self.config.key(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            told = "no API key: send it as `Authorization: Bearer KEY`" if not secret else "this API key is not known"
            raise RefusedError(told, status=401, code="invalid_api_key")
        allowed = self.models if key.models is None else key.models
        return self._callers[key.name], {name: model for name, model in self.models.items() if name in allowed}

    async def enter(
        self, request: Request, authorization: str | None, held: contextlib.AsyncExitStack, fate: Fate
    ) -> Started:
        """Understand a request and wait for room, which is held until `held` lets go.

        Raises:
            RefusedError, BusyError: see `_told`.
        """
        caller, known = self.caller(authorization)
        fate.caller = caller.name
        served = chosen(known, request.model)
        fate.model = served.name
        if isinstance(request, ChatRequest) and len(request.messages) > self.config.limits.messages:
            raise RefusedError(f"at most {self.config.limits.messages} messages", "messages")
        asked = served.understand(request)
        fate.particles = asked.method.budget
        clock = asyncio.get_running_loop().time
        came = clock()
        try:
            with tracing.span("wait for room"):
                entering = held.enter_async_context(self.gate.enter(caller, asked.method.budget))
                await asyncio.wait_for(entering, asked.deadline)
        except TimeoutError:
            raise BusyError("the deadline passed while the request was waiting", asked.deadline) from None
        self.metrics.waited(served.name, clock() - came)
        return Started(served, asked, came + asked.deadline, self.metrics)


def chosen(known: Mapping[str, Served], name: str) -> Served:
    """Raises RefusedError where there is no such model, or none that this caller may ask for."""
    if name not in known:
        told = f"there is no model {name!r}; there are {', '.join(known) or 'none for this key'}"
        raise RefusedError(told, "model", status=404, code="model_not_found")
    return known[name]


@dataclass
class Fate:
    """What becomes of a request, for those who count and write it down.

    Attributes:
        id: its name in logs and in the header X-Request-ID.
        status: where it is not that of the response.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    model: str = ""
    caller: str = ""
    particles: int = 0
    status: int | None = None


@dataclass(frozen=True)
class Started:
    """A request that has room.

    Attributes:
        latest: on the event loop's clock, when its answer is wanted.
    """

    served: Served
    asked: Asked
    latest: float
    metrics: Metrics

    async def solve(self, observe: Observer | None = None, follow: Follower | None = None) -> Result:
        """Run, and count what it costs round by round, so that what a cancelled run had spent is known as well."""
        name, counted = self.served.name, Usage()

        def told(run: Run, record: Record) -> None:
            nonlocal counted
            self.metrics.round(name, record)
            tracing.note_round(record)
            self.metrics.spent(name, record.usage)
            counted += record.usage
            if observe is not None:
                observe(run, record)

        left = self.latest - asyncio.get_running_loop().time()
        result: Result | None = None
        try:
            with tracing.span("run"):
                tracing.note({"motes.method": self.asked.spec, "motes.particles": self.asked.particles})
                result = await self.served.answer(self.asked, deadline=max(left, 1e-3), observe=told, follow=follow)
                tracing.note_result(result)
        except Exception as error:
            result = api.computed(error)
            if not _of_the_request(error):
                self.metrics.failed(name)
            raise
        finally:
            if result is not None:
                self.metrics.spent(name, result.usage - counted)
        return result

    def shown(self, result: Result) -> list[Trajectory]:
        """The answers that the client sees.

        Raises:
            RefusedError: there was no time for one.
            NoParticlesError: particles were dropped, and all others have said nothing.
        """
        if shown := visible(result, self.asked.choices):
            failures = [trajectory.error for trajectory in result.trajectories if trajectory.error is not None]
            if failures and not shown[0].text:
                raise NoParticlesError("what is left has said nothing") from failures[0]
            return shown
        raise RefusedError("no answer was ready when the deadline came", status=504, code="deadline")


def application(config: Config, models: Mapping[str, Served]) -> FastAPI:
    """The gateway as an ASGI application."""
    gateway = Gateway(config, models)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        await gateway.gate.close(config.limits.drain)

    app = FastAPI(
        title="motes", lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None,
        telemetry=tracing.settings(CHAT, COMPLETIONS),
    )  # fmt: skip
    app.state.gateway = gateway
    app.add_middleware(_BodyLimit, most=config.limits.body_bytes)
    app.add_middleware(_Counted, metrics=gateway.metrics)

    if config.playground:

        @app.get("/", include_in_schema=False)
        async def playground() -> Response:
            return HTMLResponse(html(), headers=NOT_ELSEWHERE)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether every model that answers stand on can be reached: 200, or 503 with those that cannot."""
        missing = await gateway.readiness.missing()
        return JSONResponse({"status": "unready" if missing else "ready", "missing": missing}, 503 if missing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models(http: HTTPRequest) -> dict[str, Any]:
        """The virtual models that this caller may ask for."""
        _, known = gateway.caller(http.headers.get("authorization"))
        return {"object": "list", "data": [card(served, gateway.began) for served in known.values()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str, http: HTTPRequest) -> dict[str, Any]:
        """One of them."""
        _, known = gateway.caller(http.headers.get("authorization"))
        return card(chosen(known, model), gateway.began)

    @app.post(CHAT)
    async def chat(request: ChatRequest, http: HTTPRequest) -> Response:
        """Answer a conversation."""
        return await complete(request, http, chat=True)

    @app.post(COMPLETIONS)
    async def completions(request: CompletionRequest, http: HTTPRequest) -> Response:
        """Answer a question."""
        return await complete(request, http, chat=False)

    async def complete(request: Request, http: HTTPRequest, *, chat: bool) -> Response:
        held, fate = contextlib.AsyncExitStack(), http.scope["motes"]

        def told_in_stream(error: Exception) -> Mapping[str, Any]:
            fate.status, told, _ = _told(error, fate.id)
            tracing.note({"motes.status": fate.status})
            return told

        def left() -> None:
            fate.status = GONE

        try:
            entering = gateway.enter(request, http.headers.get("authorization"), held, fate)
            started = await _unless_gone(entering, http)
            if request.stream:
                options, own = request.stream_options, request.motes
                chunks = Chunks(
                    request.model, chat, started.asked,
                    with_usage=options is not None and bool(options.include_usage), progress=own.progress,
                )  # fmt: skip
                sent = events(chunks, started.solve, started.shown, told_in_stream, config.limits.heartbeat)
                return EventStream(sent, held.pop_all(), left)
            result = await _unless_gone(started.solve(), http)
            return JSONResponse(reply(request.model, chat, started.asked, result, started.shown(result)))
        finally:
            await held.aclose()

    for kind in (MotesError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, _failed)
    return app


async def _unless_gone(work: Awaitable[T], http: HTTPRequest) -> T:
    """What the work comes to; it is cancelled as soon as the client has left."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(GONE, "the client has left")
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _failed(http: HTTPRequest, error: Exception) -> Response:
    status, told, headers = _told(error, http.scope["motes"].id)
    return JSONResponse(told, status, headers)


def _told(error: Exception, request: str) -> tuple[int, Mapping[str, Any], dict[str, str]]:
    """An error as OpenAI's clients understand it: status, body, headers. Of what was not meant for clients nothing is
    told but the request's id, under which the log has it."""
    headers: dict[str, str] = {}
    match error:
        case RefusedError():
            status, told = error.status, failure(str(error), _kind(error.status), field=error.field, code=error.code)
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
        case BusyError():
            status = 503 if error.closing else 429
            told = failure(str(error), "server_error" if error.closing else "rate_limit_error", code="busy")
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        case RequestValidationError():
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"][1:]))
            words = FAULTS.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            status, told = 400, failure(f"{place or 'body'}: {words}", "invalid_request_error", field=place or None)
        case StarletteHTTPException():
            status, told = error.status_code, failure(str(error.detail), _kind(error.status_code))
            headers.update(error.headers or {})
        case ContextLengthError():
            status = 400
            told = failure(str(error), "invalid_request_error", field="messages", code="context_length_exceeded")
        case MotesError() if _of_the_request(error):
            status, told = 400, failure(str(error), "invalid_request_error")
        case MotesError():  # whose words may name addresses
            log.error("a model failed: %s", error, extra={"fields": {"request": request}})
            status, told = 502, failure("a model behind this one failed", "server_error", code="upstream")
        case _:
            log.error("failed", exc_info=error, extra={"fields": {"request": request}})
            status, told = 500, failure(f"something went wrong here; the log knows it as {request}", "server_error")
    return status, told, headers


def _of_the_request(error: Exception) -> bool:
    """Whether an error of a run is the request's own fault, not that of a model behind the gateway."""
    return isinstance(error, ConfigurationError | ContextLengthError) and not isinstance(error, UnauthorizedError)


def _kind(status: int) -> str:
    return {401: "authentication_error", 403: "permission_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )


class _Counted:
    """Gives every request an id; counts and writes down those that ask for an answer when they end, whichever way."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, started = time.perf_counter(), 500, False
        fate = scope["motes"] = Fate()

        async def told(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                tracing.note(
                    {"motes.request": fate.id, "motes.caller": fate.caller, "gen_ai.request.model": fate.model}
                )
                message = {**message, "headers": [*message["headers"], (b"x-request-id", fate.id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception as error:  # what nobody expected: answered here, so that the connection stays
            if started:
                raise
            await (await _failed(HTTPRequest(scope), error))(scope, receive, told)
        finally:
            if scope["path"] in (CHAT, COMPLETIONS):
                seconds = time.perf_counter() - began
                status = fate.status or status
                self._metrics.ended(scope["path"], fate.model, fate.caller, status, seconds)
                told_of = {"request": fate.id, "endpoint": scope["path"], "model": fate.model, "caller": fate.caller}
                told_of |= {"particles": fate.particles, "status": status, "seconds": round(seconds, 4)}
                log.info("%s %d", scope["path"], status, extra={"fields": told_of | tracing.identity()})


class _BodyLimit:
    """Refuses bodies that are too large, whether they say so or not, without reading them to the end."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise HTTPException(413, f"the body is larger than {self._most:,} bytes")
            return message

        await self._app(scope, counted, send)
