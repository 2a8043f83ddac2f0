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
from motes.gateway.answering import ParsedRequest, RefusedError, Served, visible
from motes.gateway.config import Config
from motes.gateway.metrics import Metrics
from motes.gateway.playground import html
from motes.gateway.readiness import Readiness
from motes.gateway.replies import error_body, model_card, response_body
from motes.gateway.streaming import Chunks, EventStream, events
from motes.gateway.wire import ChatRequest, CompletionRequest, Request
from motes.methods.run import Observer, ProgressCallback, Run

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
PAGE_HEADERS = {"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Forbid other pages to embed the page at `/`."""
VALIDATION_MESSAGES = {
    "extra_forbidden": "there is no such field",
    "model_type": "Input should be a JSON object",
    "model_attributes_type": "Input should be a JSON object, sent as application/json",
}
"""Messages for clients in the place of pydantic's, which are for Python programmers, by pydantic's type of error."""
CLIENT_CLOSED_REQUEST = 499
"""The status, in logs and metrics, of a request whose client disconnected before the response."""


class Gateway:
    """The state that requests share: the models, admission, callers and metrics."""

    def __init__(self, config: Config, models: Mapping[str, Served]) -> None:
        self.config, self.models = config, models
        self.gate = Admission(config.limits.particles, config.limits.waiting)
        self.metrics = Metrics(self.gate)
        self.readiness = Readiness(models)
        self.anyone = Caller("anyone", config.limits.waiting + config.limits.particles)
        self._callers = {key.name: Caller(key.name, key.concurrency, key.requests_per_minute) for key in config.keys}
        self.started_at = int(time.time())

    def caller(self, authorization: str | None) -> tuple[Caller, dict[str, Served]]:
        """The caller whose key the header `Authorization` has, and the models that it may use.

        Raises:
            RefusedError: the key is missing or unknown.
        """
        if not self.config.keys:
            return self.anyone, dict(self.models)
        scheme, _, secret = (authorization or "").partition(" ")
        key = self.config.key(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            message = "this API key is not known" if secret else "no API key: send it as `Authorization: Bearer KEY`"
            raise RefusedError(message, status=401, code="invalid_api_key")
        allowed = self.models if key.models is None else key.models
        return self._callers[key.name], {name: model for name, model in self.models.items() if name in allowed}

    async def admit(
        self, request: Request, authorization: str | None, resources: contextlib.AsyncExitStack, entry: RequestLog
    ) -> AdmittedRequest:
        """Parse a request and wait until its particles have room, which `resources` then holds.

        Raises:
            RefusedError, BusyError: see `_error_response`.
        """
        # 1) the caller and the model
        caller, allowed = self.caller(authorization)
        entry.caller = caller.name
        served = _find_model(allowed, request.model)
        entry.model = served.name
        # 2) the request
        if isinstance(request, ChatRequest) and len(request.messages) > self.config.limits.messages:
            raise RefusedError(f"at most {self.config.limits.messages} messages", "messages")
        parsed = served.parse(request)
        entry.particles = parsed.method.budget
        # 3) room
        clock = asyncio.get_running_loop().time
        arrival = clock()
        try:
            with tracing.span("wait for room"):
                entering = resources.enter_async_context(self.gate.enter(caller, parsed.method.budget))
                await asyncio.wait_for(entering, parsed.deadline)
        except TimeoutError:
            raise BusyError("the deadline passed while the request was waiting", parsed.deadline) from None
        self.metrics.waited(served.name, clock() - arrival)
        return AdmittedRequest(served, parsed, arrival + parsed.deadline, self.metrics)


def _find_model(models: Mapping[str, Served], name: str) -> Served:
    """The model of a name. Raises RefusedError if there is none, or none that this caller may use."""
    if name not in models:
        message = f"there is no model {name!r}; there are {', '.join(models) or 'none for this key'}"
        raise RefusedError(message, "model", status=404, code="model_not_found")
    return models[name]


@dataclass
class RequestLog:
    """A request's entry in logs and metrics, filled in while the request is handled.

    Attributes:
        id: the request's id in logs and in the header X-Request-ID.
        status: None: the response's.
    """

    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    model: str = ""
    caller: str = ""
    particles: int = 0
    status: int | None = None


@dataclass(frozen=True)
class AdmittedRequest:
    """A request whose particles have room.

    Attributes:
        deadline: the time on the event loop's clock by which the answer is due.
    """

    served: Served
    request: ParsedRequest
    deadline: float
    metrics: Metrics

    async def solve(self, observe: Observer | None = None, on_progress: ProgressCallback | None = None) -> Result:
        """Run the request, and count its usage after each round, so that a cancelled run's rounds are counted, too."""
        name, counted = self.served.name, Usage()

        def count_round(run: Run, record: Record) -> None:
            nonlocal counted
            self.metrics.round(name, record)
            tracing.note_round(record)
            self.metrics.spent(name, record.usage)
            counted += record.usage
            if observe is not None:
                observe(run, record)

        seconds_left = self.deadline - asyncio.get_running_loop().time()
        result: Result | None = None
        try:
            with tracing.span("run"):
                tracing.note({"motes.method": self.request.spec, "motes.particles": self.request.particles})
                result = await self.served.answer(
                    self.request, deadline=max(seconds_left, 1e-3), observe=count_round, on_progress=on_progress
                )
                tracing.note_result(result)
        except Exception as error:
            result = api.computed(error)
            if not _is_client_error(error):
                self.metrics.failed(name)
            raise
        finally:
            if result is not None:
                self.metrics.spent(name, result.usage - counted)
        return result

    def answers(self, result: Result) -> list[Trajectory]:
        """The trajectories that the client sees.

        Raises:
            RefusedError: no answer was ready at the deadline.
            NoParticlesError: some particles were dropped, and the texts of the others are empty.
        """
        if answers := visible(result, self.request.choices):
            failures = [trajectory.error for trajectory in result.trajectories if trajectory.error is not None]
            if failures and not answers[0].text:
                raise NoParticlesError("the particles that were not dropped have no text") from failures[0]
            return answers
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
    app.add_middleware(_BodyLimit, max_bytes=config.limits.body_bytes)
    app.add_middleware(_RequestLogger, metrics=gateway.metrics)

    if config.playground:

        @app.get("/", include_in_schema=False)
        async def playground() -> Response:
            return HTMLResponse(html(), headers=PAGE_HEADERS)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the gateway is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """Whether all upstream models can be reached: 200, or 503 with the models that cannot."""
        missing = await gateway.readiness.missing()
        return JSONResponse({"status": "unready" if missing else "ready", "missing": missing}, 503 if missing else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' format."""
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models(http: HTTPRequest) -> dict[str, Any]:
        """The virtual models that this caller may use."""
        _, models = gateway.caller(http.headers.get("authorization"))
        return {"object": "list", "data": [model_card(served, gateway.started_at) for served in models.values()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str, http: HTTPRequest) -> dict[str, Any]:
        """One of the virtual models that this caller may use."""
        _, models = gateway.caller(http.headers.get("authorization"))
        return model_card(_find_model(models, model), gateway.started_at)

    @app.post(CHAT)
    async def chat(request: ChatRequest, http: HTTPRequest) -> Response:
        """Answer a conversation."""
        return await complete(request, http, chat=True)

    @app.post(COMPLETIONS)
    async def completions(request: CompletionRequest, http: HTTPRequest) -> Response:
        """Answer a question."""
        return await complete(request, http, chat=False)

    async def complete(request: Request, http: HTTPRequest, *, chat: bool) -> Response:
        resources, entry = contextlib.AsyncExitStack(), http.scope["motes"]

        def log_error_in_stream(error: Exception) -> Mapping[str, Any]:
            entry.status, body, _ = _error_response(error, entry.id)
            tracing.note({"motes.status": entry.status})
            return body

        def log_disconnect() -> None:
            entry.status = CLIENT_CLOSED_REQUEST

        try:
            admission = gateway.admit(request, http.headers.get("authorization"), resources, entry)
            admitted = await _unless_disconnected(admission, http)
            if request.stream:
                options = request.stream_options
                chunks = Chunks(
                    request.model, chat, admitted.request,
                    with_usage=options is not None and bool(options.include_usage), progress=request.motes.progress,
                )  # fmt: skip
                stream = events(chunks, admitted.solve, admitted.answers, log_error_in_stream, config.limits.heartbeat)
                return EventStream(stream, resources.pop_all(), log_disconnect)
            result = await _unless_disconnected(admitted.solve(), http)
            return JSONResponse(response_body(request.model, chat, admitted.request, result, admitted.answers(result)))
        finally:
            await resources.aclose()

    for kind in (MotesError, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, _respond_to_error)
    return app


async def _unless_disconnected(work: Awaitable[T], http: HTTPRequest) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects."""
    task = asyncio.ensure_future(work)

    async def wait_for_disconnect() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    disconnect = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait([task, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client has left")
    finally:
        for future in (task, disconnect):
            future.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _respond_to_error(http: HTTPRequest, error: Exception) -> Response:
    status, body, headers = _error_response(error, http.scope["motes"].id)
    return JSONResponse(body, status, headers)


def _error_response(error: Exception, request_id: str) -> tuple[int, Mapping[str, Any], dict[str, str]]:
    """The response to an error, in OpenAI's format: (status, body, headers). Clients do not see the details of
    internal errors: these are in the log, under the request's id."""
    headers: dict[str, str] = {}
    match error:
        case RefusedError():
            status, kind = error.status, _error_type(error.status)
            body = error_body(str(error), kind, field=error.field, code=error.code)
            if status == 401:
                headers["WWW-Authenticate"] = "Bearer"
        case BusyError():
            status = 503 if error.closing else 429
            body = error_body(str(error), "server_error" if error.closing else "rate_limit_error", code="busy")
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        case RequestValidationError():
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"][1:]))
            message = VALIDATION_MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            status = 400
            body = error_body(f"{field or 'body'}: {message}", "invalid_request_error", field=field or None)
        case StarletteHTTPException():
            status, body = error.status_code, error_body(str(error.detail), _error_type(error.status_code))
            headers.update(error.headers or {})
        case ContextLengthError():
            status = 400
            body = error_body(str(error), "invalid_request_error", field="messages", code="context_length_exceeded")
        case MotesError() if _is_client_error(error):
            status, body = 400, error_body(str(error), "invalid_request_error")
        case MotesError():  # its message may contain addresses
            log.error("a model failed: %s", error, extra={"fields": {"request": request_id}})
            status, body = 502, error_body("a model behind this one failed", "server_error", code="upstream")
        case _:
            log.error("failed", exc_info=error, extra={"fields": {"request": request_id}})
            status = 500
            body = error_body(f"internal error; the log knows it as {request_id}", "server_error")
    return status, body, headers


def _is_client_error(error: Exception) -> bool:
    """Whether the request caused an error of a run, not a model behind the gateway."""
    return isinstance(error, ConfigurationError | ContextLengthError) and not isinstance(error, UnauthorizedError)


def _error_type(status: int) -> str:
    return {401: "authentication_error", 403: "permission_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )


class _RequestLogger:
    """Gives every request an id. When a request for an answer ends, successful or not, counts and logs it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, has_started = time.perf_counter(), 500, False
        entry = scope["motes"] = RequestLog()

        async def send_with_id(message: Message) -> None:
            nonlocal status, has_started
            if message["type"] == "http.response.start":
                status, has_started = message["status"], True
                tracing.note(
                    {"motes.request": entry.id, "motes.caller": entry.caller, "gen_ai.request.model": entry.model}
                )
                message = {**message, "headers": [*message["headers"], (b"x-request-id", entry.id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # an unexpected one: respond here, so that the connection stays open
            if has_started:
                raise
            await (await _respond_to_error(HTTPRequest(scope), error))(scope, receive, send_with_id)
        finally:
            if scope["path"] in (CHAT, COMPLETIONS):
                seconds = time.perf_counter() - began
                status = entry.status or status
                self._metrics.ended(scope["path"], entry.model, entry.caller, status, seconds)
                fields = {"request": entry.id, "endpoint": scope["path"], "model": entry.model, "caller": entry.caller}
                fields |= {"particles": entry.particles, "status": status, "seconds": round(seconds, 4)}
                log.info("%s %d", scope["path"], status, extra={"fields": fields | tracing.identity()})


class _BodyLimit:
    """Refuses bodies of more than `max_bytes`, whatever their Content-Length, without reading them to the end."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, f"the body is larger than {self._max_bytes:,} bytes")
            return message

        await self._app(scope, receive_within_limit, send)
