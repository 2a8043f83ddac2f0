"""What happens to a request for an answer: its model, its room, its run, and what is counted of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import FormData, Headers
from starlette.types import Scope

from motes import api
from motes.core import Record, Result, Trajectory, Usage
from motes.errors import MotesError
from motes.gateway import tracing
from motes.gateway.admission import Admission, Caller
from motes.gateway.answering import ParsedRequest, Served
from motes.gateway.bodies import client_field, read_fields, read_json
from motes.gateway.callers import Callers
from motes.gateway.config import Config, Limits
from motes.gateway.disconnects import unless_disconnected
from motes.gateway.draining import Drain
from motes.gateway.endpoints import ENDPOINTS, error_events
from motes.gateway.endpoints.endpoint import Endpoint
from motes.gateway.errors import BusyError, RefusedError, RelayedError, describe, is_client_error
from motes.gateway.fallback import is_of_reward_model
from motes.gateway.forms import MAX_FORMS, is_form, read_form
from motes.gateway.logs import RequestLog
from motes.gateway.metrics import Metrics
from motes.gateway.options import chosen_options, find_model
from motes.gateway.readiness import Readiness
from motes.gateway.relay import Relay
from motes.gateway.reloading import ConfigFile, Reloading
from motes.gateway.replies import reply_to
from motes.gateway.shared_address import shared_address
from motes.gateway.shared_counters import SharedCounters
from motes.gateway.streaming import EventStream
from motes.gateway.unopened import PAUSE
from motes.gateway.wire import ChatRequest, Request
from motes.methods.run import Observer, ProgressCallback, Run
from motes.text import shortened

log = logging.getLogger(__name__)

RELAYED = (*ENDPOINTS, *(f"/v1/{path}" for path in ("embeddings", "images/generations", "moderations")))
"""Endpoints that metrics name; other endpoints of models that are passed through share a name."""
PASSED_PATH = re.compile(r"/v1(/[\w:@~-][\w.:@~-]*)+", re.ASCII)
"""Paths that are passed through. With ".." or an escape, a request could leave the server's own `/v1/`."""


class Gateway:
    """The state that requests share: the models, admission, callers and metrics.

    Args:
        file: the file of the configuration, from which keys and limits are read again.
    """

    def __init__(self, config: Config, models: Mapping[str, Served], file: ConfigFile | None = None) -> None:
        self.config, self.models = config, dict(models)
        self.gate = Admission(config.limits.particles, config.limits.waiting)
        self.drain = Drain(self.gate, config.limits.drain)
        self.metrics = Metrics(self.gate)
        self.metrics.watch(models)
        self.readiness = Readiness(self.models)
        self.anyone = Caller("anyone", config.limits.waiting + config.limits.particles)
        address = shared_address(config.limits.shared)
        self.shared = None if address is None else SharedCounters(address)
        if self.shared is not None:
            up = self.metrics.shared_limits.labels(self.shared.address.shown)
            up.set_function(lambda: self.shared is not None and self.shared.is_up)
        self.callers = Callers(config.keys, counters=self.shared)
        self.reloading = None if file is None else Reloading(file, config, self.callers, self.set_limits)
        self.forms = asyncio.Semaphore(MAX_FORMS)
        self.started_at = int(time.time())

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits that requests and connections read; see `motes.gateway.reloading`."""
        self.config = self.config.model_copy(update={"limits": limits})
        self.drain.seconds = limits.drain

    def caller(self, headers: Headers) -> tuple[Caller, dict[str, Served]]:
        """The caller whose key is in the header `Authorization` or `X-API-Key`, and the models that it may use.

        Raises:
            RefusedError: the key is missing, unknown or expired.
        """
        if not self.callers.keys:
            return self.anyone, dict(self.models)
        authorization = headers.get("authorization", "")
        if (secret := headers.get("x-api-key")) and not authorization.lower().startswith("bearer "):
            authorization = f"Bearer {secret}"
        caller, key = self.callers.identify(authorization)
        allowed = self.models if key.models is None else key.models
        return caller, {name: model for name, model in self.models.items() if name in allowed}

    async def answer(self, http: HTTPRequest, endpoint: Endpoint[Any] | None) -> Response:
        """The response to a POST at this endpoint; None: only models that are passed through have it.

        Raises:
            RefusedError: there is no such model or endpoint, or the body does not have that form.
        """
        if self.config.takes_forms and is_form(http.headers.get("content-type", "")):
            async with self.forms:
                try:
                    form = await read_form(http, has_keys=bool(self.callers.keys), origins=self.config.cors)
                    if (served := self._relayed(form, http)) is None:
                        raise RefusedError("this model takes no forms: send a JSON object", status=415)
                    return await self._pass_through(form, served, http)
                finally:
                    await http.close()
        value = await read_json(http)
        if (served := self._relayed(value, http)) is not None:
            return await self._pass_through(value, served, http)
        if endpoint is None:
            raise RefusedError(f"{http.url.path}: this model has no such endpoint", status=404)
        body, request, ignored = await read_fields(
            http, value, endpoint.kind, endpoint.to_request, strict=self.config.strict
        )
        http.scope["motes.ignored"] = ignored
        return await self._respond(endpoint, body, request, http)

    def _relayed(self, body: Any, http: HTTPRequest) -> Served | None:
        """The virtual model that a body names, if it is passed through."""
        _, allowed = http.scope["motes.caller"]
        name = body.get("model") if isinstance(body, (dict, FormData)) else None
        served = allowed.get(name) if isinstance(name, str) else None
        return served if served is not None and isinstance(served.lm, Relay) else None

    async def _pass_through(self, body: Mapping[str, Any] | FormData, served: Served, http: HTTPRequest) -> Response:
        assert isinstance(served.lm, Relay)
        if PASSED_PATH.fullmatch(http.scope["path"]) is None:
            raise RefusedError(f"{shortened(http.scope['path'], 100)}: there is no such endpoint", status=404)
        caller, _ = http.scope["motes.caller"]
        entry: RequestLog = http.scope["motes"]
        entry.caller, entry.model, entry.particles = caller.name, served.name, 1
        entry.method, entry.stream = "none", body.get("stream") in (True, "true")
        entry.endpoint = entry.endpoint if entry.endpoint in RELAYED else "/v1/…"
        deadline = served.settings.deadline
        async with contextlib.AsyncExitStack() as resources:
            await unless_disconnected(self._enter(caller, 1, deadline, resources), http.receive)
            responding = served.lm.respond(
                http,
                body,
                resources.pop_all(),
                deadline=deadline,
                count=partial(self._count, http.scope),
                failure=partial(error_events, entry=entry, path=http.url.path),
            )
            try:
                return await unless_disconnected(responding, http.receive)
            except MotesError as error:
                if not isinstance(error, RelayedError) or error.status >= 500:
                    self.metrics.failures.labels(served.name).inc()
                raise

    async def _respond(self, endpoint: Endpoint[Any], body: Any, asked: Request, http: HTTPRequest) -> Response:
        """Answer a request, at once or as a stream. The work is cancelled as soon as the client disconnects.

        Raises:
            MotesError, ClientDisconnect: see `response_to_error`.
        """
        async with contextlib.AsyncExitStack() as resources:
            request = await unless_disconnected(self._admit(asked, http, resources), http.receive)
            http.scope["motes.ignored"] += (client_field(name, endpoint.names) for name in request.ignored)
            solve = partial(self._solve_or_fall_back, http.scope)
            if asked.stream:
                entry, heartbeat = http.scope["motes"], self.config.limits.heartbeat
                writer = endpoint.writer(body, request)
                return EventStream(request, writer, solve, entry, heartbeat, resources.pop_all())
            request, result = await unless_disconnected(solve(request), http.receive)
            return JSONResponse(endpoint.reply_body(body, request, reply_to(request, result)))

    async def _admit(self, body: Request, http: HTTPRequest, resources: contextlib.AsyncExitStack) -> ParsedRequest:
        """Parse a request and wait until its particles have room, which `resources` then holds.

        Raises:
            RefusedError, BusyError: it cannot be answered, or not now.
        """
        # 1) the caller and the model
        entry: RequestLog = http.scope["motes"]
        caller: Caller
        allowed: dict[str, Served]
        caller, allowed = http.scope["motes.caller"]
        entry.caller, entry.stream = caller.name, bool(body.stream)
        served, in_name = find_model(allowed, body.model)
        if served.unopened:
            raise _not_there_yet()
        entry.model = served.name
        # 2) the request
        limits = self.config.limits
        if isinstance(body, ChatRequest) and len(body.messages) > limits.messages:
            raise RefusedError(f"at most {limits.messages} messages", "messages")
        if body.n is not None and body.n > limits.choices:
            raise RefusedError(f"at most {limits.choices} answers, not {body.n}", "n")
        options = chosen_options(body.motes, http.headers, in_name)
        request = served.parse(body, options, strict=self.config.strict)
        entry.method, entry.particles = request.spec, request.method.budget
        # 3) room
        clock = asyncio.get_running_loop().time
        arrival = clock()
        with tracing.span("wait for room"):
            await self._enter(caller, entry.particles, request.deadline, resources)
        waited = clock() - arrival
        self.metrics.waited.labels(served.name).observe(waited)
        return replace(request, deadline=max(request.deadline - waited, 1e-3))

    async def _enter(
        self, caller: Caller, particles: int, deadline: float, resources: contextlib.AsyncExitStack
    ) -> None:
        """Wait until so many particles of a caller have room, which `resources` then holds.

        Raises:
            BusyError: there is none within the deadline, or the caller has used up a quota.
        """
        try:
            async with caller.quotas.reserved(particles):
                await asyncio.wait_for(resources.enter_async_context(self.gate.enter(caller, particles)), deadline)
        except TimeoutError:
            raise BusyError("the deadline passed while the request was waiting", deadline) from None

    async def _solve_or_fall_back(
        self,
        scope: Scope,
        request: ParsedRequest,
        observe: Observer | None = None,
        on_progress: ProgressCallback | None = None,
        may_begin_again: Callable[[], bool] = lambda: True,
    ) -> tuple[ParsedRequest, Result]:
        """The result of a request; or of the same request without the reward model, if that fails and the virtual model
        allows it. `may_begin_again`: whether the client has got nothing of the answer yet."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            return request, await self._solve(scope, request, observe, on_progress)
        except MotesError as error:
            other = request.without_reward(clock() - began) if is_of_reward_model(error) else None
            if other is None or not may_begin_again():
                raise
            entry: RequestLog = scope["motes"]
            fields = {"fields": {"request": entry.request}}
            log.warning("answered without the reward model, which failed: %s", describe(error), extra=fields)
            entry.fallback = True
            self.metrics.fallbacks.labels(entry.model).inc()
            return other, await self._solve(scope, other, observe, on_progress)

    async def _solve(
        self,
        scope: Scope,
        request: ParsedRequest,
        observe: Observer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Result:
        """Run a request, and count its usage after each round, so that a cancelled run's rounds are counted, too."""
        name, counted = request.served.name, Usage()
        dropped: set[Trajectory] = set()

        def count_round(run: Run, record: Record) -> None:
            nonlocal counted
            self.metrics.count_round(name, record)
            tracing.note_round(record)
            self._count(scope, record.usage)
            counted += record.usage
            dropped.update(t for t in record.trajectories if t.error is not None)
            if observe is not None:
                observe(run, record)

        result: Result | None = None
        try:
            with tracing.span("run"):
                tracing.note({"motes.method": request.spec, "motes.particles": request.particles})
                result = await self.drain.run(request, count_round, on_progress)
                tracing.note_result(result)
        except Exception as error:
            result = api.partial_result(error)
            if not isinstance(error, BusyError) and not is_client_error(error):
                self.metrics.failures.labels(name).inc()
            raise
        finally:
            if result is not None:
                scope["motes"].stopped = result.stopped
                self._count(scope, result.usage - counted)
                dropped.update(t for t in result.trajectories if t.error is not None)
            self.metrics.count_dropped(name, len(dropped))
        return result

    def _count(self, scope: Scope, usage: Usage) -> None:
        """Count the usage of a request: in the log, in the metrics, and in the quotas of its caller."""
        entry, (caller, _) = scope["motes"], scope["motes.caller"]
        entry.usage += usage
        self.metrics.count_usage(entry.model, caller.name, usage)
        caller.quotas.charge(usage.generated_tokens + usage.prefill_tokens)


def _not_there_yet() -> BusyError:
    return BusyError("a server behind this model does not answer yet", PAUSE, unavailable=True)
