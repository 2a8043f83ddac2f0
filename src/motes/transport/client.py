"""A pooled HTTP client: bounded concurrency, timeouts, and retries where they can help.

A request is sent again if there was no connection or it broke off, if the body is not JSON, and if its reader cannot
use a response of 200 (once only, if its form is unknown or it is too large). `motes.transport.failures` lists the other
responses, `motes.transport.stragglers` says when a request with a deadline is sent again because it is slow.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import httpx2

from motes.concurrency import ORIGIN
from motes.errors import (
    BadResponseError,
    ConfigurationError,
    MotesError,
    TooLargeError,
    UnknownFormError,
    UnreachableError,
)
from motes.protocols import RequestObserver
from motes.transport.address import Address, seconds, whole_number
from motes.transport.bodies import BYTES_OF_ERROR, BYTES_PER_TOKEN, read_beginning, read_body
from motes.transport.events import Events
from motes.transport.failures import TransientError, clear_frames, error_from_response, parse_response
from motes.transport.key import Key
from motes.transport.pools import Pools, proxies
from motes.transport.stragglers import Kind, Stragglers

RUN_HEADER = "X-Motes-Run"

T = TypeVar("T")
Receiver = Callable[[httpx2.Response], Awaitable[T]]


@dataclass(frozen=True)
class Timeouts:
    """Seconds to connect, between two pieces of a response, and for a request with all its attempts."""

    connect: float = 10.0
    read: float = 300.0
    total: float = 1800.0


@dataclass(frozen=True)
class Retries:
    """How many attempts, and how long the pauses between them are.

    The pause before attempt k + 1 is uniform on [0, min(longest, first · 2^(k−1))] seconds ("full jitter"), plus the
    seconds in the server's `Retry-After`. If these are more than `patience`, there is no other attempt.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 30.0
    patience: float = 120.0

    def pause(self, attempt: int, retry_after: float | None, rng: random.Random) -> float:
        """Seconds before the next attempt, after `attempt` of them."""
        jitter = rng.uniform(0, min(self.longest, self.first * 2 ** (attempt - 1)))
        return jitter + (retry_after or 0.0)


@dataclass(eq=False)
class _Attempt:
    """One attempt of a request. For its outcome see `RequestObserver`."""

    outcome: str = "connection"


@dataclass(eq=False)
class _Request(Generic[T]):
    """A request with all its attempts.

    Attributes:
        send: makes an attempt.
        timeout: of all attempts together.
        observe: see `Client`.
    """

    send: Callable[[_Attempt], Awaitable[T]]
    kind: Kind
    timeout: asyncio.Timeout
    observe: RequestObserver | None


class _StragglerError(Exception):
    """An attempt took too long, and its request is sent again."""


class Client:
    """Sends JSON to one server. Any number of event loops can use it; each has connections of its own, which close with
    it.

    Args:
        base: URL that relative paths continue.
        api_key: sent in a header, as a bearer token; no message contains it.
        max_concurrency: requests in flight in each event loop. A request keeps its place in the pause before its next
            attempt, so that a busy server does not get more of them.
        max_response_bytes: maximum size of a response, or of an event of a stream, decompressed; for each token that a
            request asks for, a response may have `motes.transport.bodies.BYTES_PER_TOKEN` more.
        transport: instead of sockets, for tests.
        sleep, clock: for tests; `clock` returns seconds since 1970.

    Attributes:
        observe: called after each attempt of a POST.
    """

    def __init__(
        self,
        base: str,
        *,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        max_concurrency: int = 256,
        max_response_bytes: int = 1 << 24,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base = base.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        self.retries = retries or Retries()
        self.max_concurrency = whole_number("max_concurrency", max_concurrency)
        self.max_response_bytes = whole_number("max_response_bytes", max_response_bytes)
        self.observe: RequestObserver | None = None
        self._stragglers = Stragglers()
        self._key = Key.clean(api_key, "`api_key`")
        self._transport = transport
        self._sleep = sleep
        self._clock = clock
        self._jitter = random.Random()
        timeout = httpx2.Timeout(self.timeouts.read, connect=self.timeouts.connect, pool=None)
        self._pools = Pools(self.base, self._key, timeout, self.max_concurrency, transport)

    @classmethod
    def open(
        cls,
        address: Address,
        *,
        api_key: str | None = None,
        api_key_env: str | None = None,
        max_concurrency: int = 256,
        connect_timeout: float = 10.0,
        read_timeout: float = 300.0,
        total_timeout: float = 1800.0,
        attempts: int = 8,
        max_response_bytes: int = 1 << 24,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Client:
        """The client of an address, with the options of a model's spec.

        Args:
            api_key, api_key_env: the key, or the environment variable with it; see `Address.key`.
            max_concurrency, max_response_bytes, transport: see the class.
            connect_timeout, read_timeout, total_timeout, attempts: see `Timeouts` and `Retries`.

        Raises:
            ConfigurationError: an option is out of its range, or the named variable is not set.
        """
        return cls(
            address.base,
            api_key=api_key or address.key(api_key_env),
            timeouts=Timeouts(
                seconds("connect_timeout", connect_timeout),
                seconds("read_timeout", read_timeout),
                seconds("total_timeout", total_timeout),
            ),
            retries=Retries(attempts=whole_number("attempts", attempts)),
            max_concurrency=max_concurrency,
            max_response_bytes=max_response_bytes,
            transport=transport,
        )

    async def get(self, path: str, *, attempts: int | None = None) -> Any:
        """The JSON response to a GET."""
        return await self._send("GET", path, None, partial(_read_json, max_bytes=self.max_response_bytes), attempts)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        read: Callable[[Any], Any] | None = None,
        attempts: int | None = None,
        num_tokens: int = 0,
    ) -> Any:
        """The JSON response to a POST.

        Args:
            read: converts the response. If it raises a `BadResponseError`, there is another attempt.
            attempts: instead of `Retries.attempts`.
            num_tokens: tokens that the response is about, at most.

        Raises:
            UnauthorizedError, ContextLengthError, RejectedError, ServerError, UnreachableError, BadResponseError: see
                `motes.transport.failures`; the last three after several attempts.
        """

        max_bytes = self._max_bytes(num_tokens)

        async def receive(response: httpx2.Response) -> Any:
            content = await _read_json(response, max_bytes)
            return content if read is None else read(content)

        return await self._send("POST", path, body, receive, attempts, num_tokens)

    async def stream(
        self, path: str, body: Mapping[str, Any], read: Callable[[Events], Awaitable[T]], *, num_tokens: int = 0
    ) -> T:
        """The result of `read` for the events of a POST; each attempt calls it with a new stream. The connection closes
        when it returns, even within the stream. `num_tokens` is the maximum number of tokens in the stream."""
        max_bytes = self._max_bytes(num_tokens)

        async def receive(response: httpx2.Response) -> T:
            async with aclosing(response.aiter_bytes()) as pieces:
                return await read(Events(str(response.url), pieces, max_bytes))

        return await self._send("POST", path, body, receive, None, num_tokens)

    def _max_bytes(self, num_tokens: int) -> int:
        return self.max_response_bytes + BYTES_PER_TOKEN * num_tokens

    async def aclose(self) -> None:
        """Close this event loop's connections. Otherwise they are closed with the loop."""
        await self._pools.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        receive: Receiver[T],
        attempts: int | None = None,
        num_tokens: int = 0,
    ) -> T:
        url = path if path.startswith("http") else f"{self.base}/{path.lstrip('/')}"
        pool = await self._pools.here()
        async with pool.slots:
            http = pool.idle.pop() if pool.idle else self._pools.connect(pool)
            try:
                content = (
                    None
                    if body is None
                    else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
                )
                send_once = partial(self._send_once, http, method, url, content, receive)
                observe = self.observe if method == "POST" else None
                async with asyncio.timeout(self.timeouts.total) as limit:
                    request = _Request(send_once, (url, num_tokens.bit_length()), limit, observe)
                    return await self._send_with_retries(request, attempts or self.retries.attempts)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise UnreachableError(
                    f"{url} did not answer within {self.timeouts.total:g} s, all attempts together: "
                    "ask for less at once, or give it more time with total_timeout"
                ) from error
            except MotesError as error:
                clear_frames(error)
                if self._key is not None and self._key.value not in self.base:  # otherwise it is no secret
                    self._key.hide_in(error)
                raise
            finally:
                pool.idle.append(http)

    async def _send_with_retries(self, request: _Request[T], attempts: int) -> T:
        now, deadline = asyncio.get_running_loop().time(), ORIGIN.get().deadline
        half = None if deadline is None else (now + deadline) / 2
        attempt = num_stragglers = 0
        while True:
            attempt += 1
            try:
                return await self._send_watched(request, half if attempt < attempts else None, num_stragglers)
            except _StragglerError:
                num_stragglers += 1
            except TransientError as failure:
                # A server rarely changes the form of its responses.
                most = min(attempts, 2) if isinstance(failure.error, (UnknownFormError, TooLargeError)) else attempts
                is_too_long = failure.retry_after is not None and failure.retry_after > self.retries.patience
                if attempt >= most or is_too_long:
                    raise failure.error from failure.__cause__
                await self._sleep(self.retries.pause(attempt, failure.retry_after, self._jitter))

    async def _send_watched(self, request: _Request[T], half: float | None, num_stragglers: int) -> T:
        """Make one attempt, and report how it ended.

        Args:
            half, num_stragglers: see `Stragglers.watch`; if `half` is None, the attempt is not given up.

        Raises:
            _StragglerError: it was given up.
            TransientError: it failed, and another attempt may not.
        """
        clock = asyncio.get_running_loop().time
        began, attempt = clock(), _Attempt()
        try:
            async with asyncio.timeout(None) as own:
                watch = self._stragglers.watch
                with nullcontext() if half is None else watch(own, request.kind, half, num_stragglers):
                    result = await request.send(attempt)
        except TimeoutError as error:
            if not own.expired():
                raise
            attempt.outcome = "straggler"
            raise _StragglerError from error
        finally:
            if attempt.outcome == "cancelled" and request.timeout.expired():
                attempt.outcome = "timeout"
            if request.observe is not None:
                request.observe(attempt.outcome, clock() - began)
        self._stragglers.note(request.kind, clock() - began)
        return result

    async def _send_once(
        self,
        http: httpx2.AsyncClient,
        method: str,
        url: str,
        content: bytes | None,
        receive: Receiver[T],
        attempt: _Attempt,
    ) -> T:
        try:
            async with http.stream(method, url, content=content, headers=_headers_of_origin()) as response:
                if response.status_code >= 300:
                    body = await read_beginning(response, BYTES_OF_ERROR)
                    attempt.outcome = str(response.status_code)
                    raise error_from_response(response, body, url, has_key=self._key is not None, now=self._clock())
                attempt.outcome = "bad_response"  # until it is read
                result = await receive(response)
            attempt.outcome = "ok"
            return result
        except asyncio.CancelledError:
            attempt.outcome = "cancelled"
            raise
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise ConfigurationError(f"{url!r} is no valid URL: {error}") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            attempt.outcome = outcome_of(error)
            raise TransientError(self._error_of_connection(error, url)) from error
        except BadResponseError as error:
            raise TransientError(error) from error.__cause__

    def _error_of_connection(self, error: httpx2.RequestError, url: str) -> MotesError:
        match error:
            case httpx2.DecodingError():
                return BadResponseError(f"the response of {url} cannot be decoded ({error}): is it the right address?")
            case httpx2.ConnectError():
                remedy = f"start the server, or correct the address ({error})"
                if names := proxies():
                    remedy += f". Requests may go through the proxy of {names}: put the host into NO_PROXY"
                return UnreachableError(f"nothing answers at {url}: {remedy}")
            case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
                missed = f"connect within {self.timeouts.connect:g} s"
            case httpx2.TimeoutException():
                missed = f"send anything for {self.timeouts.read:g} s"
            case _:
                broken = f"the connection to {url} broke off ({error or type(error).__name__})"
                return UnreachableError(f"{broken}: is it still up?")
        return UnreachableError(f"{url} did not {missed}: is it running, and is it overloaded? See read_timeout")


def outcome_of(error: httpx2.RequestError) -> str:
    """How an attempt ended that failed so; see `motes.protocols.RequestObserver`."""
    if isinstance(error, httpx2.DecodingError):
        return "bad_response"
    return "timeout" if isinstance(error, httpx2.TimeoutException) else "connection"


async def _read_json(response: httpx2.Response, max_bytes: int) -> Any:
    return parse_response(await read_body(response, max_bytes), str(response.url), "a response")


def _headers_of_origin() -> dict[str, str]:
    """The run that a request is sent for, for balancers that keep a run on one server; and the header `traceparent` of
    the current span, if the process uses OpenTelemetry."""
    run = ORIGIN.get().run
    headers = {} if run is None else {RUN_HEADER: run}
    if (propagate := sys.modules.get("opentelemetry.propagate")) is not None:
        propagate.inject(headers)
    return headers
