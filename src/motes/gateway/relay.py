"""Pass-through: a virtual model without a method is a served model itself, at every endpoint that its servers have."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from motes.concurrency import first_result
from motes.core import Usage
from motes.errors import ConfigurationError, MotesError, UnreachableError
from motes.gateway.disconnects import unless_disconnected
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, RefusedError, RelayedError
from motes.gateway.forms import parts
from motes.gateway.relayed import Names, counts_of, media_type, passed_headers, passed_json, reports_error, usage_of
from motes.opening import parse_spec
from motes.protocols import RequestObserver
from motes.text import json_line, parse_json
from motes.threads import in_thread_if_long
from motes.transport import Address, value_at
from motes.transport.client import outcome_of

log = logging.getLogger(__name__)

STREAMS_WITH_OPTIONS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose streams have the usage if a request asks for it."""
MAX_ERROR, MAX_BODY, MAX_EVENT = 100_000, 64_000_000, 10_000_000
"""Maximum number of bytes of an error's body, of another body, and of one line of a stream."""
PAUSE, CONNECT = 5.0, 5.0
"""Seconds for which a server that could not be reached is only used if all others failed; seconds to connect."""


@dataclass(eq=False)
class Upstream:
    """One of the servers of a model.

    Attributes:
        model: the model's name on this server.
        in_flight: number of requests that it is working on.
        is_down: whether it could not be reached when it was last used.
        down_until: until when the others are preferred then, on the clock of the event loop.
    """

    address: Address
    model: str
    api_key: str | None
    in_flight: int = 0
    is_down: bool = False
    down_until: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def note(self, failure: UnreachableError | None) -> None:
        """Note whether it could be reached. The log tells changes."""
        if failure is not None:
            self.down_until = asyncio.get_running_loop().time() + PAUSE
            if not self.is_down:
                log.warning("%s: until it answers again, others are preferred", failure)
        elif self.is_down:
            log.info("%s answers again", self.address.base)
        self.is_down = failure is not None


@dataclass(frozen=True)
class Terms:
    """The terms on which a request is passed on.

    Attributes:
        until: when the response has to begin, and one that is no stream has to end, on the clock of the event loop.
        patience: seconds between two pieces of a stream.
        count: called with the usage, if the server reports it.
        fail: notes an error of a stream that has begun, and returns the events after it.
        limits: a context that ends by an error when the gateway closes.
        note_text: called with the first piece of a stream.
    """

    until: float
    patience: float
    count: Callable[[Usage], None]
    fail: Callable[[MotesError], bytes]
    limits: Callable[[], AbstractAsyncContextManager[Any]]
    note_text: Callable[[], None]


@dataclass(eq=False)
class _Attempt:
    """An attempt of a request. Its outcome is one of `motes.protocols.RequestObserver`'s."""

    server: Upstream
    names: Names
    response: httpx2.Response
    outcome: str = "cancelled"


class Relay:
    """Sends requests on to a server, under its own name of the model, and the responses back, under the model's name
    here.

    Of several servers it takes the one with the fewest requests in flight. Where a server cannot be reached, fails or
    is busy before its response has begun, the request is sent to the next one.

    Args:
        upstreams: the servers.
        transport: instead of sockets, for tests.
    """

    def __init__(
        self, name: str, upstreams: Sequence[Upstream], transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.name, self.upstreams = name, tuple(upstreams)
        self._transport = transport
        self._observe: RequestObserver | None = None
        self._http: httpx2.AsyncClient | None = None

    async def respond(
        self, http: HTTPRequest, body: Mapping[str, Any] | FormData, resources: AsyncExitStack, terms: Terms
    ) -> Response:
        """The server's response to a request with this body: a JSON object, or a form.

        Args:
            resources: closed when the response has been sent.

        Raises:
            UnreachableError: no server responds.
            RelayedError: the server's response is an error.
            RefusedError: the response did not begin in time.
        """
        try:
            async with asyncio.timeout_at(terms.until), AsyncExitStack() as stack:
                stack.push_async_exit(resources)
                attempt = await self._send(http, body, terms, stack)
                response = attempt.response
                kind, headers = media_type(response.headers), passed_headers(response.headers)
                if response.status_code in (204, 205):
                    attempt.outcome = "ok"
                    return Response(None, response.status_code)
                if kind == "application/json" or kind.endswith("+json"):
                    content = await self._read(attempt, MAX_BODY)
                    attempt.outcome = "bad_response"  # until it is understood
                    content, counts = await in_thread_if_long(len(content), passed_json, content, attempt.names)
                    attempt.outcome = "ok"
                    terms.count(usage_of(counts))
                    return Response(content, response.status_code, headers)
                if is_stream := kind == "text/event-stream":
                    wants_usage = value_at(body, ("stream_options", "include_usage"))
                    hides_usage = _asks_for_usage(http, body) and not wants_usage
                    pieces = self._events(attempt, terms, hides_usage=hides_usage)
                else:
                    pieces = self._pieces(attempt)
                return _Stream(pieces, stack.pop_all(), response.status_code, headers, terms, is_stream)
        except TimeoutError:
            raise RefusedError("the deadline came before the model answered", status=504, code="deadline") from None

    async def ready(self) -> None:
        """Check that a server responds. Raises an UnreachableError if none does."""

        async def get(server: Upstream) -> None:
            try:
                await self._client().get(f"{server.address.base}/models", headers=server.headers)
            except httpx2.RequestError as error:
                raise _unreachable(server, error) from error

        await first_result(map(get, self.upstreams), UnreachableError)

    def watch_requests(self, observe: RequestObserver) -> None:
        """Call `observe` after each attempt of a request, from now on."""
        self._observe = observe

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
            self._http = httpx2.AsyncClient(transport=self._transport, limits=limits)
        return self._http

    async def _send(
        self, http: HTTPRequest, body: Mapping[str, Any] | FormData, terms: Terms, stack: AsyncExitStack
    ) -> _Attempt:
        """The attempt whose response is passed on; `stack` then closes it."""
        now = asyncio.get_running_loop().time()
        left = sorted(self.upstreams, key=lambda server: (server.down_until > now, server.in_flight))
        while True:
            server = left.pop(0)
            try:
                async with AsyncExitStack() as own:
                    attempt = await self._send_to(server, http, body, terms, own)
                    status = attempt.response.status_code
                    if status < 200 or 300 <= status < 400 or status >= 600:
                        attempt.outcome = "bad_response"
                        raise UnreachableError(f"{server.address.base} answered {status}: correct its address")
                    if status >= 400:
                        attempt.outcome = str(status)
                        raise self._error(attempt, await self._read(attempt, MAX_ERROR))
                    server.note(None)
                    stack.push_async_exit(own.pop_all())
                    return attempt
            except UnreachableError as error:
                server.note(error)
                if not left:
                    raise
            except RelayedError as error:
                server.note(None)
                if not left or not (error.status >= 500 or error.status == 429):
                    raise

    async def _send_to(
        self,
        server: Upstream,
        http: HTTPRequest,
        body: Mapping[str, Any] | FormData,
        terms: Terms,
        stack: AsyncExitStack,
    ) -> _Attempt:
        """An attempt whose response has begun; `stack` then closes it, and reports how it ended."""
        content: dict[str, Any] = {"headers": server.headers}
        if isinstance(body, FormData):
            content["files"] = parts(body, server.model)
        else:
            value = {**body, "model": server.model}
            if _asks_for_usage(http, body):
                options = body.get("stream_options")
                value["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
            content["content"] = json.dumps(value, ensure_ascii=False).encode()
            content["headers"]["Content-Type"] = "application/json"
        url = f"{server.address.base}/{http.url.path.removeprefix('/v1/')}"
        timeout = httpx2.Timeout(terms.patience, connect=min(CONNECT, terms.patience), pool=None)
        query = httpx2.QueryParams(http.url.query)
        request = self._client().build_request("POST", url, params=query, timeout=timeout, **content)
        names = Names(self.name, server.model, server.address.host)
        attempt, clock = _Attempt(server, names, httpx2.Response(0)), asyncio.get_running_loop().time
        began = clock()

        def end() -> None:
            server.in_flight -= 1
            if attempt.outcome == "cancelled" and not attempt.response.status_code and clock() >= terms.until:
                attempt.outcome = "timeout"
            if self._observe is not None:
                self._observe(attempt.outcome, clock() - began)

        server.in_flight += 1
        stack.callback(end)
        try:
            attempt.response = await self._client().send(request, stream=True)
        except httpx2.RequestError as error:
            attempt.outcome = outcome_of(error)
            raise _unreachable(server, error) from error
        stack.push_async_callback(attempt.response.aclose)
        return attempt

    async def _pieces(self, attempt: _Attempt) -> AsyncGenerator[bytes]:
        """The pieces of a response's body. Raises an UnreachableError if it breaks off."""
        try:
            async with aclosing(attempt.response.aiter_bytes()) as pieces:
                async for piece in pieces:
                    yield piece
        except httpx2.RequestError as error:
            attempt.outcome = outcome_of(error)
            raise _unreachable(attempt.server, error) from error
        if attempt.outcome == "cancelled":
            attempt.outcome = "ok"

    async def _read(self, attempt: _Attempt, most: int) -> bytes:
        """The body of a response. Raises a RefusedError if it has more bytes."""
        body = bytearray()
        async with aclosing(self._pieces(attempt)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > most:
                    attempt.outcome = "bad_response"
                    raise RefusedError("the model's response is too large", status=502, code="upstream")
        return bytes(body)

    async def _events(self, attempt: _Attempt, terms: Terms, *, hides_usage: bool) -> AsyncGenerator[bytes]:
        """The lines of a stream, each when it is whole. Raises a RelayedError if an event reports one."""
        counts: dict[str, int] = {}  # the newest ones: servers repeat them, and Anthropic's format divides them
        num_deltas, is_hidden = 0, False
        try:
            async for line in self._lines(attempt):
                num_deltas += b'"delta"' in line or b'"text"' in line
                if is_hidden and not line.strip():  # the blank line that ends an event that was left out
                    is_hidden = False
                    continue
                name, _, data = line.partition(b":")
                if name != b"data" or not any(word in data for word in (b'"model"', b'"usage"', b'"error"')):
                    yield line
                    continue
                try:
                    event = parse_json(data)
                except ValueError:
                    yield line
                    continue
                counts |= counts_of(event)
                if reports_error(event):
                    attempt.outcome = "bad_response"
                    raise attempt.names.error(event, 502)
                if is_hidden := hides_usage and isinstance(event, dict) and event.get("choices") == []:
                    continue
                attempt.names.set_in(event)
                yield f"data: {json_line(event)}\n".encode()
        finally:
            terms.count(usage_of({"generated": num_deltas, **counts}))

    async def _lines(self, attempt: _Attempt) -> AsyncIterator[bytes]:
        rest = b""
        async with aclosing(self._pieces(attempt)) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    yield line + b"\n"
                if len(rest) > MAX_EVENT:
                    attempt.outcome = "bad_response"
                    raise UnreachableError(f"{attempt.server.address.base} sends an event without an end")
        if rest:
            yield rest

    def _error(self, attempt: _Attempt, content: bytes) -> RelayedError:
        """An error of a server, with its fields for programs, and its message without addresses."""
        status = attempt.response.status_code
        if status in (401, 403):  # the gateway's key, not the client's
            raise UnreachableError(f"{attempt.server.address.base} refuses the key")
        try:
            value = parse_json(content)
        except ValueError:
            value = None
        return attempt.names.error(value, status, passed_headers(attempt.response.headers).get("retry-after"))


class _Stream(StreamingResponse):
    """A response that is sent piece by piece. It ends when its client disconnects, when the gateway closes, or by an
    error: a stream of events by an event, any other one by the end of the connection."""

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        resources: AsyncExitStack,
        status: int,
        headers: Mapping[str, str],
        terms: Terms,
        has_events: bool,
    ) -> None:
        self._pieces, self._resources, self._terms, self._has_events = pieces, resources, terms, has_events
        super().__init__(self._noted(), status, headers)

    async def _noted(self) -> AsyncGenerator[bytes]:
        async for piece in self._pieces:
            self._terms.note_text()
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._pieces):
            try:
                async with self._terms.limits():
                    await unless_disconnected(self.stream_response(send), receive)
            except (ClientDisconnect, OSError):
                scope["motes"].status = CLIENT_CLOSED_REQUEST
            except MotesError as error:
                events = self._terms.fail(error)
                if self._has_events:
                    await send({"type": "http.response.body", "body": b"\n\n" + events, "more_body": False})


def open_relay(name: str, specs: str | Sequence[str]) -> Relay:
    """The relay to the servers in a model's spec or specs, "http://HOST:PORT/v1#MODEL?api_key_env=NAME"."""
    upstreams = []
    for spec in (specs,) if isinstance(specs, str) else specs:
        place, options = parse_spec(spec, {})
        if unknown := sorted(options.keys() - {"api_key_env"}):
            raise ConfigurationError(f"{name}: a model without a method has no option {unknown[0]!r}")
        address = Address.parse(place)
        if address.model is None:
            raise ConfigurationError(f"{name}: a model without a method needs its name on the server: {address}#MODEL")
        upstreams.append(Upstream(address, address.model, address.key(options.get("api_key_env"))))
    return Relay(name, upstreams)


def _asks_for_usage(http: HTTPRequest, body: Mapping[str, Any] | FormData) -> bool:
    """Whether the server is asked for the usage of a stream, by which quotas count it."""
    return http.url.path in STREAMS_WITH_OPTIONS and isinstance(body, dict) and body.get("stream") is True


def _unreachable(server: Upstream, error: httpx2.RequestError) -> UnreachableError:
    return UnreachableError(f"{server.address.base} did not respond: {type(error).__name__}")
