"""Pass-through: a virtual model without a method is a served model itself, at every endpoint that its server has."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

import httpx2
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from motes.core import Usage
from motes.errors import ConfigurationError, UnreachableError
from motes.gateway.disconnects import unless_disconnected
from motes.gateway.errors import CLIENT_CLOSED_REQUEST, RefusedError, response_to_error
from motes.gateway.logs import RequestLog
from motes.opening import parse_spec
from motes.text import json_line
from motes.transport import Address, value_at
from motes.transport.failures import whole_number_of

PASSED_HEADERS = ("content-type", "retry-after")
ERROR_FIELDS = ("type", "param", "code")
MAX_ERROR, MAX_BODY, MAX_EVENT = 100_000, 64_000_000, 10_000_000
"""Maximum number of bytes of an error's body, of another body, and of one line of a stream."""


class Relay:
    """Sends requests on to a server, under its own name of the model, and the responses back, under the model's name
    here.

    Args:
        address: of the server, with the model's name there.
        api_key: of the server.
        transport: instead of sockets, for tests.
    """

    def __init__(
        self, name: str, address: Address, api_key: str | None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        if address.model is None:
            raise ConfigurationError(f"{name}: a model without a method needs its name on the server: {address}#MODEL")
        self.name, self.address, self._model = name, address, address.model
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._transport = transport
        self._http: httpx2.AsyncClient | None = None

    async def respond(
        self,
        http: HTTPRequest,
        body: Mapping[str, Any],
        resources: AsyncExitStack,
        *,
        deadline: float,
        count: Callable[[Usage], None],
    ) -> Response:
        """The server's response to a request with this JSON body.

        Args:
            resources: released when the response has been sent.
            deadline: seconds until the response has to begin, and between two pieces of it.
            count: called with the usage, if the server tells it.

        Raises:
            UnreachableError: the server does not respond in time.
        """
        async with AsyncExitStack() as stack:
            stack.push_async_exit(resources)
            request = self._client().build_request(
                "POST",
                f"{self.address.base}/{http.url.path.removeprefix('/v1/')}",
                params=http.query_params,
                content=json.dumps({**body, "model": self._model}, ensure_ascii=False).encode(),
                headers={**self._headers, "Content-Type": "application/json"},
                timeout=httpx2.Timeout(deadline, pool=None),
            )
            try:
                response = await self._client().send(request, stream=True)
                stack.push_async_callback(response.aclose)
                kind = response.headers.get("content-type", "")
                headers = {name: response.headers[name] for name in PASSED_HEADERS if name in response.headers}
                if response.status_code >= 400:
                    return self._error(response.status_code, await _read(response, MAX_ERROR), headers)
                if not kind.startswith(("text/event-stream", "application/json")):
                    return _Stream(self._bytes(response, stack.pop_all()), response.status_code, headers)
                if kind.startswith("application/json"):
                    content = await _read(response, MAX_BODY)
                    count(_usage(content))
                    return Response(self._renamed(content), response.status_code, headers)
                events = self._events(response, count, stack.pop_all(), http.scope["motes"])
                return _Stream(events, response.status_code, headers)
            except httpx2.TransportError as error:
                raise UnreachableError(f"{self.address.base} did not respond: {type(error).__name__}") from error

    async def ready(self) -> None:
        """Raise an `UnreachableError` if the server does not respond."""
        try:
            await self._client().get(f"{self.address.base}/models", headers=self._headers)
        except httpx2.TransportError as error:
            raise UnreachableError(f"{self.address.base} did not respond: {type(error).__name__}") from error

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
            self._http = httpx2.AsyncClient(transport=self._transport, limits=limits)
        return self._http

    def _renamed(self, content: bytes) -> bytes:
        """A response, or an event, with the model's name here. Only the field `model` changes."""
        field = rf'("model"\s*:\s*){re.escape(json.dumps(self._model))}'.encode()
        name = json.dumps(self.name).encode()
        return re.sub(field, lambda match: match[1] + name, content, count=1)

    async def _bytes(self, response: httpx2.Response, stack: AsyncExitStack) -> AsyncGenerator[bytes]:
        async with stack:
            async for piece in response.aiter_bytes():
                yield piece

    async def _events(
        self, response: httpx2.Response, count: Callable[[Usage], None], stack: AsyncExitStack, entry: RequestLog
    ) -> AsyncGenerator[bytes]:
        rest, usage = b"", Usage()
        async with stack, aclosing(response.aiter_bytes()) as pieces:
            try:
                async for piece in pieces:
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if b'"usage"' in line and (counted := _usage(line.partition(b":")[2])) != Usage():
                            usage = counted
                        yield self._renamed(line) + b"\n"
                    if len(rest) > MAX_EVENT:
                        raise UnreachableError(f"{self.address.base} sends an event without an end")
                yield self._renamed(rest)
            except (httpx2.TransportError, UnreachableError) as error:
                broken = UnreachableError(f"{self.address.base} broke off a stream: {type(error).__name__}")
                entry.status, body, _ = response_to_error(broken, entry.request)
                entry.note_error(body)
                yield f"\n\ndata: {json_line(body)}\n\ndata: [DONE]\n\n".encode()
            finally:
                count(usage)

    def _error(self, status: int, content: bytes, headers: Mapping[str, str]) -> Response:
        """An error of the server, with its fields for programs, and its message without addresses."""
        try:
            error = json.loads(content)
        except ValueError:
            error = None
        told = value_at(error, ("error",)) if isinstance(value_at(error, ("error",)), dict) else error
        told = told if isinstance(told, dict) else {}
        if status in (401, 403):  # the gateway's key, not the client's
            raise UnreachableError(f"{self.address.base} refuses the key")
        fields = {name: told.get(name) for name in ERROR_FIELDS}
        message = self._without_addresses(str(told.get("message") or f"the model answered {status}"))
        body = json_line({"error": {"message": message[:1000], **fields}})
        kept = {name: value for name, value in headers.items() if name != "content-type"}
        return Response(body, status, kept, media_type="application/json")

    def _without_addresses(self, message: str) -> str:
        message = re.sub(r"\bhttps?://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b", "(an address)", message)
        return message.replace(self._model, self.name).replace(self.address.host, "(a host)")


class _Stream(StreamingResponse):
    """A stream that ends when its client disconnects."""

    def __init__(self, pieces: AsyncGenerator[bytes], status: int, headers: Mapping[str, str]) -> None:
        self._pieces = pieces
        super().__init__(pieces, status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(self.stream_response(send), receive)
        except (ClientDisconnect, OSError):
            scope["motes"].status = CLIENT_CLOSED_REQUEST
        finally:
            await self._pieces.aclose()


def open_relay(name: str, spec: str) -> Relay:
    """The relay to the server in a model's spec, "http://HOST:PORT/v1#MODEL?api_key_env=NAME"."""
    place, options = parse_spec(spec, {})
    unknown = sorted(options.keys() - {"api_key_env"})
    if unknown:
        raise ConfigurationError(f"{name}: a model without a method has no option {unknown[0]!r}")
    address = Address.parse(place)
    return Relay(name, address, address.key(options.get("api_key_env")))


def _usage(content: bytes) -> Usage:
    """The usage in a JSON response; empty if it has none."""
    try:
        value = json.loads(content)
    except ValueError:
        return Usage()
    numbers = {
        name: whole_number_of(value_at(value, ("usage", *path))) or 0
        for name, path in {
            "prompt": ("prompt_tokens",),
            "input": ("input_tokens",),
            "completion": ("completion_tokens",),
            "output": ("output_tokens",),
            "cached": ("prompt_tokens_details", "cached_tokens"),
        }.items()
    }
    prompt = numbers["prompt"] or numbers["input"]
    cached = min(numbers["cached"], prompt)
    return Usage(
        generated_tokens=numbers["completion"] or numbers["output"],
        prefill_tokens=prompt - cached,
        prefill_tokens_cached=cached,
        computed_prefill_tokens=prompt - cached,
    )


async def _read(response: httpx2.Response, most: int) -> bytes:
    """The body of a response. Raises RefusedError if it has more bytes."""
    pieces, size = [], 0
    async for piece in response.aiter_bytes():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise RefusedError("the model's response is too large", status=502, code="upstream")
    return b"".join(pieces)
