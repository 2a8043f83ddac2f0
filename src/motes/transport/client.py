"""A pooled HTTP client: bounded concurrency, timeouts, and retries where they can help.

A request is sent again if there was no connection or it broke off, if the body is not JSON, and if its reader cannot
use a response of 200 (once only, if its form is unknown). `motes.transport.failures` lists the other responses.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx2

from motes.errors import BadResponseError, ConfigurationError, MotesError, UnknownFormError, UnreachableError
from motes.transport.address import Address, seconds, whole_number
from motes.transport.events import Events
from motes.transport.failures import TransientError, error_from_response, parse_response
from motes.transport.key import Key

T = TypeVar("T")
Receiver = Callable[[httpx2.Response], Awaitable[T]]
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


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
class _Pool:
    """The connections of one event loop.

    Each connection is an httpx client of its own: the time that httpx needs for a request grows with the number of its
    client's connections, and more than doubles with 128.

    Attributes:
        lifetime: closes the connections when the event loop ends.
    """

    slots: asyncio.Semaphore
    lifetime: AsyncGenerator[None]
    idle: list[httpx2.AsyncClient] = field(default_factory=list)
    all: list[httpx2.AsyncClient] = field(default_factory=list)


class Client:
    """Sends JSON to one server. Any number of event loops can use it; each has connections of its own, which close with
    it.

    Args:
        base: URL that relative paths continue.
        api_key: sent in a header, as a bearer token; no message contains it.
        max_concurrency: requests in flight in each event loop. A request keeps its place in the pause before its next
            attempt, so that a busy server does not get more of them.
        transport: instead of sockets, for tests.
        sleep, clock: for tests; `clock` returns seconds since 1970.
    """

    def __init__(
        self,
        base: str,
        *,
        api_key: str | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        max_concurrency: int = 256,
        transport: httpx2.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base = base.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        self.retries = retries or Retries()
        self.max_concurrency = whole_number("max_concurrency", max_concurrency)
        self._key = Key.clean(api_key, "`api_key`")
        self._transport = transport
        self._sleep = sleep
        self._clock = clock
        self._jitter = random.Random()
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Client:
        """The client of an address, with the options of a model's spec.

        Args:
            api_key, api_key_env: the key, or the environment variable with it; see `Address.key`.
            max_concurrency, transport: see the class.
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
            transport=transport,
        )

    async def get(self, path: str, *, attempts: int | None = None) -> Any:
        """The JSON response to a GET."""
        return await self._send("GET", path, None, _read_json, attempts)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        read: Callable[[Any], Any] | None = None,
        attempts: int | None = None,
    ) -> Any:
        """The JSON response to a POST.

        Args:
            read: converts the response. If it raises a `BadResponseError`, there is another attempt.
            attempts: instead of `Retries.attempts`.

        Raises:
            UnauthorizedError, ContextLengthError, RejectedError, ServerError, UnreachableError, BadResponseError: see
                `motes.transport.failures`; the last three after several attempts.
        """

        async def receive(response: httpx2.Response) -> Any:
            content = await _read_json(response)
            return content if read is None else read(content)

        return await self._send("POST", path, body, receive, attempts)

    async def stream(self, path: str, body: Mapping[str, Any], read: Callable[[Events], Awaitable[T]]) -> T:
        """The result of `read` for the events of a POST; each attempt calls it with a new stream. The connection closes
        when it returns, even within the stream."""

        async def receive(response: httpx2.Response) -> T:
            return await read(Events(str(response.url), response.aiter_bytes()))

        return await self._send("POST", path, body, receive)

    async def aclose(self) -> None:
        """Close this event loop's connections. Otherwise they are closed with the loop."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None:
            await pool.lifetime.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        receive: Receiver[T],
        attempts: int | None = None,
    ) -> T:
        url = path if path.startswith("http") else f"{self.base}/{path.lstrip('/')}"
        pool = await self._pool()
        async with pool.slots:
            http = pool.idle.pop() if pool.idle else self._connect(pool)
            try:
                content = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
                send_once = partial(self._send_once, http, method, url, content, receive)
                async with asyncio.timeout(self.timeouts.total) as limit:
                    return await self._send_with_retries(send_once, attempts or self.retries.attempts)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise UnreachableError(
                    f"{url} did not answer within {self.timeouts.total:g} s, all attempts together: "
                    "ask for less at once, or give it more time with total_timeout"
                ) from error
            except MotesError as error:
                if self._key is not None and self._key.value not in self.base:  # otherwise it is no secret
                    self._key.hide_in(error)
                raise
            finally:
                pool.idle.append(http)

    async def _send_with_retries(self, send_once: Callable[[], Awaitable[T]], attempts: int) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await send_once()
            except TransientError as failure:
                # A server rarely changes the form of its responses.
                most = min(attempts, 2) if isinstance(failure.error, UnknownFormError) else attempts
                is_too_long = failure.retry_after is not None and failure.retry_after > self.retries.patience
                if attempt >= most or is_too_long:
                    raise failure.error from failure.__cause__
                await self._sleep(self.retries.pause(attempt, failure.retry_after, self._jitter))

    async def _send_once(
        self, http: httpx2.AsyncClient, method: str, url: str, content: bytes | None, receive: Receiver[T]
    ) -> T:
        try:
            async with http.stream(method, url, content=content, headers=_trace_headers()) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise error_from_response(response, url, has_key=self._key is not None, now=self._clock())
                return await receive(response)
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise ConfigurationError(f"{url!r} is no valid URL: {error}") from error
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise TransientError(self._error_of_connection(error, url)) from error
        except BadResponseError as error:
            raise TransientError(error) from error.__cause__

    def _error_of_connection(self, error: httpx2.RequestError, url: str) -> MotesError:
        match error:
            case httpx2.DecodingError():
                return BadResponseError(f"the response of {url} cannot be decoded ({error}): is it the right address?")
            case httpx2.ConnectError():
                remedy = f"start the server, or correct the address ({error})"
                if names := _proxies():
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

    async def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # A loop closes started asynchronous generators before it closes itself: `asyncio.run` leaves no connection
            # open.
            lifetime = self._lifetime(loop)
            self._pools[loop] = _Pool(asyncio.Semaphore(self.max_concurrency), lifetime)
            await anext(lifetime)
        return self._pools[loop]

    async def _lifetime(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            pool = self._pools.pop(loop)  # it keeps its loop, and so its entry, alive
            for http in pool.all:
                await http.aclose()

    def _connect(self, pool: _Pool) -> httpx2.AsyncClient:
        timeouts, certificates = self.timeouts, self._certificates
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.value}"
        try:
            http = httpx2.AsyncClient(
                headers=headers,
                timeout=httpx2.Timeout(timeouts.read, connect=timeouts.connect, pool=None),
                limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
                transport=self._transport,
                verify=certificates,
                follow_redirects=False,
            )
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            remedy = "write http://HOST:PORT there"
            if isinstance(error, ImportError):
                remedy = "pip install socksio for socks5://"
            raise ConfigurationError(
                f"the proxy that the environment names ({_proxies()}) cannot be used: {remedy}, or unset it"
            ) from None  # its text may contain a password
        pool.all.append(http)
        return http

    @cached_property
    def _certificates(self) -> ssl.SSLContext | bool:
        """Cached: reading them takes longer than a request."""
        if not self.base.startswith("https"):
            return False
        try:
            return httpx2.create_ssl_context()
        except OSError as error:
            raise ConfigurationError(
                f"the certificates that {' or '.join(CERTIFICATES)} names cannot be read ({error}): name a file or a "
                "folder that is there, or unset it"
            ) from error


async def _read_json(response: httpx2.Response) -> Any:
    return parse_response(await response.aread(), str(response.url), "a response")


def _proxies() -> str:
    """The environment variables with proxies, as a list in words."""
    return ", ".join(name for name in (*PROXIES, *map(str.lower, PROXIES)) if os.environ.get(name))


def _trace_headers() -> dict[str, str]:
    """The header `traceparent` of the current span, if the process uses OpenTelemetry."""
    headers: dict[str, str] = {}
    if (propagate := sys.modules.get("opentelemetry.propagate")) is not None:
        propagate.inject(headers)
    return headers
