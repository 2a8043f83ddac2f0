"""The gateway's endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from motes import api
from motes.core import Record, Result, Trajectory, Usage
from motes.errors import MotesError
from motes.gateway import tracing
from motes.gateway.admission import Admission, Caller
from motes.gateway.answering import ParsedRequest, Served
from motes.gateway.config import Config
from motes.gateway.errors import BusyError, RefusedError, is_client_error, response_to_error
from motes.gateway.logs import RequestLog
from motes.gateway.metrics import Metrics
from motes.gateway.playground import html
from motes.gateway.readiness import Readiness
from motes.gateway.replies import model_card, response_body
from motes.gateway.streaming import EventStream, unless_disconnected
from motes.gateway.wire import ChatRequest, CompletionRequest, Request
from motes.methods.run import Observer, ProgressCallback, Run

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PAGE_HEADERS = {"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""Forbid other pages to embed the page at `/`."""


class Gateway:
    """The state that requests share: the models, admission, callers and metrics."""

    def __init__(self, config: Config, models: Mapping[str, Served]) -> None:
        self.config, self.models = config, models
        self.gate = Admission(config.limits.particles, config.limits.waiting)
        self.metrics = Metrics(self.gate)
        self.metrics.watch(models)
        self.readiness = Readiness(models)
        self.anyone = Caller("anyone", config.limits.waiting + config.limits.particles)
        self._callers = {key.name: Caller(key.name, key.concurrency, key.requests_per_minute) for key in config.keys}
        self.started_at = int(time.time())

    def caller(self, http: HTTPRequest) -> tuple[Caller, dict[str, Served]]:
        """The caller whose key is in the header `Authorization`, and the models that it may use.

        Raises:
            RefusedError: the key is missing or unknown.
        """
        if not self.config.keys:
            return self.anyone, dict(self.models)
        scheme, _, secret = http.headers.get("authorization", "").partition(" ")
        key = self.config.key(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            message = "this API key is not known" if secret else "no API key: send it as `Authorization: Bearer KEY`"
            raise RefusedError(message, status=401, code="invalid_api_key")
        allowed = self.models if key.models is None else key.models
        return self._callers[key.name], {name: model for name, model in self.models.items() if name in allowed}

    async def respond(self, body: Request, http: HTTPRequest) -> Response:
        """Answer a request, at once or as a stream. The work is cancelled as soon as the client disconnects.

        Raises:
            MotesError, ClientDisconnect: see `response_to_error`.
        """
        async with contextlib.AsyncExitStack() as resources:
            request = await unless_disconnected(self._admit(body, http, resources), http.receive)
            if body.stream:
                entry, heartbeat = http.scope["motes"], self.config.limits.heartbeat
                return EventStream(request, self._solve, entry, heartbeat, resources.pop_all())
            result = await unless_disconnected(self._solve(request), http.receive)
            return JSONResponse(response_body(request, result))

    async def _admit(self, body: Request, http: HTTPRequest, resources: contextlib.AsyncExitStack) -> ParsedRequest:
        """Parse a request and wait until its particles have room, which `resources` then holds.

        Raises:
            RefusedError, BusyError: it cannot be answered, or not now.
        """
        # 1) the caller and the model
        entry: RequestLog = http.scope["motes"]
        caller, allowed = self.caller(http)
        entry.caller = caller.name
        served = _find_model(allowed, body.model)
        entry.model = served.name
        # 2) the request
        limits = self.config.limits
        if isinstance(body, ChatRequest) and len(body.messages) > limits.messages:
            raise RefusedError(f"at most {limits.messages} messages", "messages")
        if body.n is not None and body.n > limits.choices:
            raise RefusedError(f"at most {limits.choices} answers, not {body.n}", "n")
        request = served.parse(body)
        entry.particles = request.method.budget
        # 3) room
        clock = asyncio.get_running_loop().time
        arrival = clock()
        try:
            with tracing.span("wait for room"):
                entering = resources.enter_async_context(self.gate.enter(caller, entry.particles))
                await asyncio.wait_for(entering, request.deadline)
        except TimeoutError:
            raise BusyError("the deadline passed while the request was waiting", request.deadline) from None
        waited = clock() - arrival
        self.metrics.waited.labels(served.name).observe(waited)
        return replace(request, deadline=max(request.deadline - waited, 1e-3))

    async def _solve(
        self, request: ParsedRequest, observe: Observer | None = None, on_progress: ProgressCallback | None = None
    ) -> Result:
        """Run a request, and count its usage after each round, so that a cancelled run's rounds are counted, too."""
        name, counted = request.served.name, Usage()
        dropped: set[Trajectory] = set()

        def count_round(run: Run, record: Record) -> None:
            nonlocal counted
            self.metrics.count_round(name, record)
            tracing.note_round(record)
            counted += record.usage
            dropped.update(t for t in record.trajectories if t.error is not None)
            if observe is not None:
                observe(run, record)

        result: Result | None = None
        try:
            with tracing.span("run"):
                tracing.note({"motes.method": request.spec, "motes.particles": request.particles})
                result = await request.run(count_round, on_progress)
                tracing.note_result(result)
        except Exception as error:
            result = api.partial_result(error)
            if not is_client_error(error):
                self.metrics.failures.labels(name).inc()
            raise
        finally:
            if result is not None:
                self.metrics.count_usage(name, result.usage - counted)
                dropped.update(t for t in result.trajectories if t.error is not None)
            self.metrics.count_dropped(name, len(dropped))
        return result


def _find_model(models: Mapping[str, Served], name: str) -> Served:
    """The model of a name. Raises RefusedError if there is none, or none that this caller may use."""
    if name not in models:
        message = f"there is no model {name!r}; there are {', '.join(models) or 'none for this key'}"
        raise RefusedError(message, "model", status=404, code="model_not_found")
    return models[name]


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
    app.add_middleware(_Entrance, max_bytes=config.limits.body_bytes, metrics=gateway.metrics)

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
        text = generate_latest(gateway.metrics.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models(http: HTTPRequest) -> dict[str, Any]:
        """The virtual models that this caller may use."""
        _, models = gateway.caller(http)
        return {"object": "list", "data": [model_card(served, gateway.started_at) for served in models.values()]}

    @app.get("/v1/models/{model:path}")
    async def one_model(model: str, http: HTTPRequest) -> dict[str, Any]:
        """One of the virtual models that this caller may use."""
        _, models = gateway.caller(http)
        return model_card(_find_model(models, model), gateway.started_at)

    @app.post(CHAT)
    async def chat(request: ChatRequest, http: HTTPRequest) -> Response:
        """Answer a conversation."""
        return await gateway.respond(request, http)

    @app.post(COMPLETIONS)
    async def completions(request: CompletionRequest, http: HTTPRequest) -> Response:
        """Answer a question."""
        return await gateway.respond(request, http)

    for kind in (MotesError, RequestValidationError, StarletteHTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _respond_to_error)
    return app


async def _respond_to_error(http: HTTPRequest, error: Exception) -> Response:
    status, body, headers = response_to_error(error, http.scope["motes"].request)
    return JSONResponse(body, status, headers)


class _Entrance:
    """Gives every request an id, and refuses bodies that are too large, whatever their Content-Length, without reading
    them to the end. It counts and logs each request for an answer when it ends, with success or not."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: Metrics) -> None:
        self._app, self._max_bytes, self._metrics = app, max_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, size = time.perf_counter(), 0
        entry = scope["motes"] = RequestLog(endpoint=scope["path"])

        async def receive_within_limit() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise HTTPException(413, f"the body is larger than {self._max_bytes:,} bytes")
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                tracing.note(
                    {"motes.request": entry.request, "motes.caller": entry.caller, "gen_ai.request.model": entry.model}
                )
                message = {**message, "headers": [*message["headers"], (b"x-request-id", entry.request.encode())]}
            await send(message)

        try:
            await self._app(scope, receive_within_limit, send_with_id)
        except Exception as error:  # an unexpected one: respond here, so that the connection stays open
            if entry.status is not None:
                raise
            response = await _respond_to_error(HTTPRequest(scope), error)
            await response(scope, receive, send_with_id)
        finally:
            if entry.endpoint in (CHAT, COMPLETIONS):
                entry.status, entry.seconds = entry.status or 500, time.perf_counter() - began
                self._metrics.count_request(entry)
                entry.write(tracing.identity())
