"""Pass-through: a virtual model without a method is a served model itself, at every endpoint that its servers have."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from motes.core import Usage
from motes.errors import ConfigurationError, UnreachableError
from motes.gateway.disconnects import unless_disconnected
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, RefusedError, RelayedError
from motes.gateway.forms import parts
from motes.opening import parse_spec
from motes.protocols import RequestObserver
from motes.transport import Address, value_at
from motes.transport.failures import whole_number_of

PASSED_HEADERS = ("content-type", "retry-after")
MAX_ERROR, MAX_BODY, MAX_EVENT = 100_000, 64_000_000, 10_000_000
"""Maximum number of bytes of an error's body, of another body, and of one line of a stream."""
PAUSE = 5.0
"""Seconds for which a server that could not be reached is only used if all others failed."""


@dataclass(eq=False)
class Upstream:
    """One of the servers of a model.

    Attributes:
        model: the model's name on this server.
        in_flight: number of requests that it is working on.
        down_until: when it may be up again, after it could not be reached, on the monotonic clock.
    """

    address: Address
    model: str
    api_key: str | None
    in_flight: int = 0
    down_until: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


@dataclass(eq=False)
class _Attempt:
    """An attempt of a request. Its outcome is one of `motes.protocols.RequestObserver`'s."""

    server: Upstream
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
        clock: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        name: str,
        upstreams: Sequence[Upstream],
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.upstreams = name, tuple(upstreams)
        self._transport, self._clock = transport, clock
        self._observe: RequestObserver | None = None
        self._http: httpx2.AsyncClient | None = None

    async def respond(
        self,
        http: HTTPRequest,
        body: Mapping[str, Any] | FormData,
        resources: AsyncExitStack,
        *,
        deadline: float,
        count: Callable[[Usage], None],
        failure: Callable[[Exception], bytes],
    ) -> Response:
        """The server's response to a request with this body: a JSON object, or a form.

        Args:
            resources: released when the response has been sent.
            deadline: seconds until the response has to begin, and between two pieces of it.
            count: called with the usage, if the server tells it.
            failure: returns the events after an error in a stream.

        Raises:
            UnreachableError: no server responds in time.
            RelayedError: the server's response is an error.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_exit(resources)
            attempt = await self._send(http, body, deadline, stack)
            response = attempt.response
            kind = response.headers.get("content-type", "")
            headers = {name: response.headers[name] for name in PASSED_HEADERS if name in response.headers}
            if kind.startswith("application/json"):
                content = await self._read(attempt, MAX_BODY)
                attempt.outcome = "ok"
                count(_usage(_counts(content)))
                return Response(self._renamed(content, attempt.server), response.status_code, headers)
            is_stream = kind.startswith("text/event-stream")
            pieces = self._events(attempt, count, failure) if is_stream else self._bytes(attempt)
            return _Stream(pieces, stack.pop_all(), response.status_code, headers)

    async def ready(self) -> None:
        """Check that a server responds. Raises an UnreachableError if none does."""
        for server in self.upstreams:
            try:
                await self._client().get(f"{server.address.base}/models", headers=server.headers)
            except httpx2.TransportError as error:
                failure = _unreachable(server, error)
            else:
                return
        raise failure

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
        self, http: HTTPRequest, body: Mapping[str, Any] | FormData, deadline: float, stack: AsyncExitStack
    ) -> _Attempt:
        """The attempt whose response is passed on; `stack` then closes it."""
        left = sorted(self.upstreams, key=lambda server: (server.down_until > self._clock(), server.in_flight))
        while True:
            server = left.pop(0)
            try:
                async with AsyncExitStack() as own:
                    attempt = await self._send_to(server, http, body, deadline, own)
                    if (status := attempt.response.status_code) >= 400:
                        attempt.outcome = str(status)
                        raise self._error(attempt, await self._read(attempt, MAX_ERROR))
                    stack.push_async_exit(own.pop_all())
                    return attempt
            except UnreachableError:
                server.down_until = self._clock() + PAUSE
                if not left:
                    raise
            except RelayedError as error:
                if not left or not (error.status >= 500 or error.status == 429):
                    raise

    async def _send_to(
        self,
        server: Upstream,
        http: HTTPRequest,
        body: Mapping[str, Any] | FormData,
        deadline: float,
        stack: AsyncExitStack,
    ) -> _Attempt:
        """An attempt whose response has begun; `stack` then closes it, and reports how it ended."""
        content: dict[str, Any] = {"headers": server.headers}
        if isinstance(body, FormData):
            content["files"] = parts(body, server.model)
        else:
            content["content"] = json.dumps({**body, "model": server.model}, ensure_ascii=False).encode()
            content["headers"]["Content-Type"] = "application/json"
        url = f"{server.address.base}/{http.url.path.removeprefix('/v1/')}"
        timeout = httpx2.Timeout(deadline, pool=None)
        request = self._client().build_request("POST", url, params=http.query_params, timeout=timeout, **content)
        attempt, began = _Attempt(server, httpx2.Response(0)), self._clock()

        def end() -> None:
            server.in_flight -= 1
            if self._observe is not None:
                self._observe(attempt.outcome, self._clock() - began)

        server.in_flight += 1
        stack.callback(end)
        try:
            attempt.response = await self._client().send(request, stream=True)
        except httpx2.TransportError as error:
            attempt.outcome = _outcome_of(error)
            raise _unreachable(server, error) from error
        stack.push_async_callback(attempt.response.aclose)
        return attempt

    async def _pieces(self, attempt: _Attempt) -> AsyncGenerator[bytes]:
        """The pieces of a response's body. Raises an UnreachableError if it breaks off."""
        try:
            async with aclosing(attempt.response.aiter_bytes()) as pieces:
                async for piece in pieces:
                    yield piece
        except httpx2.TransportError as error:
            attempt.outcome = _outcome_of(error)
            raise _unreachable(attempt.server, error) from error

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

    async def _bytes(self, attempt: _Attempt) -> AsyncGenerator[bytes]:
        async with aclosing(self._pieces(attempt)) as pieces:
            async for piece in pieces:
                yield piece
        attempt.outcome = "ok"

    async def _events(
        self, attempt: _Attempt, count: Callable[[Usage], None], failure: Callable[[Exception], bytes]
    ) -> AsyncGenerator[bytes]:
        rest, server = b"", attempt.server
        counts: dict[str, int] = {}  # the newest ones: servers repeat them, and Anthropic's format divides them
        try:
            async with aclosing(self._pieces(attempt)) as pieces:
                async for piece in pieces:
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if b'"usage"' in line:
                            counts |= _counts(line.partition(b":")[2])
                        yield self._renamed(line, server) + b"\n"
                    if len(rest) > MAX_EVENT:
                        attempt.outcome = "bad_response"
                        raise UnreachableError(f"{server.address.base} sends an event without an end")
            yield self._renamed(rest, server)
            attempt.outcome = "ok"
        except UnreachableError as error:
            yield b"\n\n" + failure(error)
        finally:
            count(_usage(counts))

    def _renamed(self, content: bytes, server: Upstream) -> bytes:
        """A response, or an event, with the model's name here. Only the field `model` changes."""
        field = rf'("model"\s*:\s*){re.escape(json.dumps(server.model))}'.encode()
        name = json.dumps(self.name).encode()
        return re.sub(field, lambda match: match[1] + name, content, count=1)

    def _error(self, attempt: _Attempt, content: bytes) -> RelayedError:
        """An error of a server, with its fields for programs, and its message without addresses."""
        response, server = attempt.response, attempt.server
        status = response.status_code
        if status in (401, 403):  # the gateway's key, not the client's
            raise UnreachableError(f"{server.address.base} refuses the key")
        try:
            error = json.loads(content)
        except ValueError:
            error = None
        inner = value_at(error, ("error",))
        fields = next((value for value in (inner, error) if isinstance(value, dict)), {})
        message = str(fields.get("message") or f"the model answered {status}")
        message = re.sub(r"\bhttps?://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "(an address)", message)
        message = message.replace(server.model, self.name).replace(server.address.host, "(a host)")
        return RelayedError(message[:1000], status, fields, response.headers.get("retry-after"))


class _Stream(StreamingResponse):
    """A stream that ends when its client disconnects."""

    def __init__(
        self, pieces: AsyncGenerator[bytes], resources: AsyncExitStack, status: int, headers: Mapping[str, str]
    ) -> None:
        self._pieces, self._resources = pieces, resources
        super().__init__(pieces, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources, aclosing(self._pieces):
            try:
                await unless_disconnected(self.stream_response(send), receive)
            except (ClientDisconnect, OSError):
                scope["motes"].status = CLIENT_CLOSED_REQUEST


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


def _unreachable(server: Upstream, error: httpx2.TransportError) -> UnreachableError:
    return UnreachableError(f"{server.address.base} did not respond: {type(error).__name__}")


def _outcome_of(error: httpx2.TransportError) -> str:
    return "timeout" if isinstance(error, httpx2.TimeoutException) else "connection"


def _counts(content: bytes) -> dict[str, int]:
    """The numbers of tokens, by kind, in the usage of a JSON response or event of any API; those that it has not are
    left out."""
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    # Chats, and events of OpenAI's responses and of Anthropic's messages.
    places = (("usage",), ("response", "usage"), ("message", "usage"))
    usage = next((found for place in places if isinstance(found := value_at(value, place), dict)), {})

    def number(*path: str) -> int:
        return whole_number_of(value_at(usage, path)) or 0

    prompt = number("prompt_tokens") or number("input_tokens")
    cached = number("prompt_tokens_details", "cached_tokens") or number("input_tokens_details", "cached_tokens")
    counts = {
        "generated": number("completion_tokens") or number("output_tokens"),
        # Anthropic counts those of the cache apart.
        "prefill": prompt - min(cached, prompt) + number("cache_creation_input_tokens"),
        "cached": min(cached, prompt) + number("cache_read_input_tokens"),
    }
    return {kind: count for kind, count in counts.items() if count}


def _usage(counts: Mapping[str, int]) -> Usage:
    prefill = counts.get("prefill", 0)
    return Usage(
        generated_tokens=counts.get("generated", 0),
        prefill_tokens=prefill,
        prefill_tokens_cached=counts.get("cached", 0),
        computed_prefill_tokens=prefill,
    )
