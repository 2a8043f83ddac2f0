"""One pooled HTTP client: bounded concurrency, timeouts, and trying again where that can help.

429, 408, 409, 5xx, no connection, a broken one, a body that is no JSON    tried again
an answer of 200 that tells of an error, or that its reader cannot use     tried again
one whose form is not known                                                tried once more
401, 403                                                                   UnauthorizedError, at once
the context does not hold the request                                      ContextLengthError, at once
any other 4xx, 3xx                                                         RejectedError, at once
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import re
import ssl
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import httpx2

from motes.errors import (
    BadResponseError,
    ConfigurationError,
    ContextLengthError,
    MotesError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnknownFormError,
    UnreachableError,
)
from motes.http.address import KEY_VARIABLE, Address
from motes.http.events import Events
from motes.http.key import Key
from motes.http.options import seconds, whole_number
from motes.http.parsing import parsed, tells_of_error

T = TypeVar("T")
Reader = Callable[[Events], Awaitable[T]]
"""Makes something of a stream of events."""
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

CONTEXT = re.compile(
    r"context[ _](length|size|window|limit)|maximum (context|model|allowed) length|max_model_len|max_total_tokens"
    r"|max_seq_len|max_new_tokens.{0,40}must be|inputs`? must have less than|longer than the model"
    r"|(input|prompt).{0,20} too long|reduce (the length|your prompt)|maximum number of tokens allowed"
    r"|tokens exceed the configured limit|too many tokens",
    re.IGNORECASE,
)
"""What servers say of a request that their context does not hold."""


def may_be_of_one(error: MotesError) -> bool:
    """Whether what failed a request of several texts may be one of them; otherwise it is the server."""
    if isinstance(error, (ContextLengthError, RejectedError, BadResponseError)):
        return True
    return isinstance(error, ServerError) and error.status == 500


@dataclass(frozen=True)
class Timeouts:
    """In seconds: to connect, between two pieces of an answer, and for a request with all its attempts."""

    connect: float = 10.0
    read: float = 300.0
    total: float = 1800.0


@dataclass(frozen=True)
class Retries:
    """How often and how patiently.

    The pause before attempt k + 1 is drawn evenly from [0, min(longest, first · 2^(k−1))] ("full jitter"); what the
    server says in Retry-After is waited for in full, with that jitter on top. A server that wants longer than
    `patience` is not waited for.
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
class _TransientError(Exception):
    """An attempt that failed in a way that another may not."""

    error: MotesError
    retry_after: float | None = None

    @property
    def attempts(self) -> float:
        """How many are worth while."""
        return 2 if isinstance(self.error, UnknownFormError) else math.inf


@dataclass(eq=False)
class _Pool:
    """What belongs to one event loop: places for requests, and connections that wait for the next one.

    Each connection is a client of its own, because what httpx does for a request grows with the connections of a
    client: with 128 of them a request cost more than twice as much.
    """

    slots: asyncio.Semaphore
    idle: list[httpx2.AsyncClient] = field(default_factory=list)
    all: list[httpx2.AsyncClient] = field(default_factory=list)
    lifetime: AsyncGenerator[None, None] | None = field(default=None, repr=False)


class Client:
    """Talks JSON with one server. May be used from any number of event loops; connections belong to one each, and are
    closed with it.

    Args:
        base: what relative paths are below; absolute URLs are taken as they are.
        api_key: sent as a bearer token; never shown.
        max_concurrency: requests in flight, in each event loop. Others wait; a request that pauses before its next
            attempt keeps its place, so that a busy server is not pressed harder.
        transport: instead of sockets, for tests.
        sleep, clock: for tests; `clock` gives seconds since 1970.
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
        if max_concurrency < 1:
            raise ConfigurationError(f"max_concurrency must be at least 1, not {max_concurrency}")
        self.base = base.rstrip("/")
        self.timeouts = timeouts or Timeouts()
        self.retries = retries or Retries()
        self.max_concurrency = max_concurrency
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
            api_key: by default that of the environment, in MOTES_API_KEY (or OPENAI_API_KEY, for OpenAI).
            api_key_env: the environment variable that holds it.
            max_concurrency: requests in flight.
            connect_timeout, read_timeout, total_timeout: seconds, see `Timeouts`.
            attempts: of each request.
            transport: instead of sockets, for tests.

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
            max_concurrency=whole_number("max_concurrency", max_concurrency),
            transport=transport,
        )

    async def get(self, path: str, *, attempts: int | None = None) -> Any:
        """What a GET answers, as JSON."""
        return await self._request("GET", path, None, self._json, attempts)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        read: Callable[[Any], Any] | None = None,
        attempts: int | None = None,
    ) -> Any:
        """What a POST answers, as JSON, or what `read` makes of it.

        Args:
            read: an answer that it refuses with a `BadResponseError` is asked for again.
            attempts: instead of those of `Retries`.

        Raises:
            UnauthorizedError, ContextLengthError, RejectedError, ServerError, UnreachableError, BadResponseError: see
                above; the last three after several attempts.
        """

        async def receive(response: httpx2.Response) -> Any:
            answer = await self._json(response)
            return answer if read is None else read(answer)

        return await self._request("POST", path, body, receive, attempts)

    async def stream(self, path: str, body: Mapping[str, Any], read: Reader[T]) -> T:
        """What `read` makes of the events of a POST. When it returns, the connection is closed, whatever is to come.

        An attempt that breaks off is repeated from the beginning: `read` must begin anew.
        """

        async def receive(response: httpx2.Response) -> T:
            return await read(Events(str(response.url), response.aiter_bytes(), self._failure))

        return await self._request("POST", path, body, receive)

    async def aclose(self) -> None:
        """Close this event loop's connections. Otherwise they are closed with the loop."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None and pool.lifetime is not None:
            await pool.lifetime.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        receive: Callable[[httpx2.Response], Awaitable[T]],
        attempts: int | None = None,
    ) -> T:
        url = path if path.startswith("http") else f"{self.base}/{path.lstrip('/')}"
        pool = await self._pool()
        async with pool.slots:
            http = pool.idle.pop() if pool.idle else self._connection(pool)
            try:
                async with asyncio.timeout(self.timeouts.total) as limit:
                    return await self._persist(http, method, url, body, receive, attempts)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise UnreachableError(
                    f"{url} did not answer within {self.timeouts.total:g} s, all attempts together: "
                    "ask for less at once, or give it more time with total_timeout"
                ) from error
            except MotesError as error:
                if self._key is not None and self._key.value not in self.base:  # where it is, it is no secret
                    self._key.hide_in(error)
                raise
            finally:
                pool.idle.append(http)

    async def _persist(
        self,
        http: httpx2.AsyncClient,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        receive: Callable[[httpx2.Response], Awaitable[T]],
        attempts: int | None,
    ) -> T:
        content = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(http, method, url, content, receive)
            except _TransientError as failure:
                impatient = failure.retry_after is not None and failure.retry_after > self.retries.patience
                if attempt >= min(attempts or self.retries.attempts, failure.attempts) or impatient:
                    raise failure.error from failure.__cause__
                await self._sleep(self.retries.pause(attempt, failure.retry_after, self._jitter))

    async def _attempt(
        self,
        http: httpx2.AsyncClient,
        method: str,
        url: str,
        content: bytes | None,
        receive: Callable[[httpx2.Response], Awaitable[T]],
    ) -> T:
        try:
            async with http.stream(method, url, content=content, headers=_trace()) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise self._refusal(response, url)
                return await receive(response)
        except httpx2.TimeoutException as error:
            wanted = f"connect within {self.timeouts.connect:g} s"
            if not isinstance(error, (httpx2.ConnectTimeout, httpx2.PoolTimeout)):
                wanted = f"send anything for {self.timeouts.read:g} s"
            raise _TransientError(
                UnreachableError(f"{url} did not {wanted}: is it running, and is it overloaded? See read_timeout")
            ) from error
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise ConfigurationError(f"{url!r} is no URL that can be asked: {error}") from error
        except httpx2.ConnectError as error:
            raise _TransientError(
                UnreachableError(
                    f"nothing answers at {url}: start the server, or correct the address ({error}){_through()}"
                )
            ) from error
        except httpx2.TransportError as error:
            raise _TransientError(
                UnreachableError(
                    f"the connection to {url} broke off ({error or type(error).__name__}): is it still up?"
                )
            ) from error
        except (BadResponseError, httpx2.DecodingError) as error:
            raise _TransientError(
                error
                if isinstance(error, MotesError)
                else BadResponseError(f"{url} answered what cannot be decoded ({error}): is it the right address?")
            ) from error

    def _refusal(self, response: httpx2.Response, url: str) -> Exception:
        """What an answer of 4xx or 5xx is."""
        status = response.status_code
        if status < 400:
            moved = f"{url} has moved to {response.headers.get('location', 'an unknown place')}: give that address"
            return _with_status(RejectedError(moved), status)
        said = f"{url} answered {status} {_phrase(status)}: {_message(response)}"
        if status in (401, 403):
            hint = "the key it was given is not accepted" if self._key else f"put a key into {KEY_VARIABLE}"
            return UnauthorizedError(f"{said}. It wants an API key: {hint}")
        if status in (408, 409, 429) or status >= 500:
            wait = _retry_after(response.headers.get("retry-after"), self._clock())
            hint = "fewer requests at once (max_concurrency) may help" if status in (408, 429) else "look into its log"
            return _TransientError(_with_status(ServerError(f"{said}. {hint[0].upper()}{hint[1:]}"), status), wait)
        if status in (400, 413, 422) and CONTEXT.search(response.text):
            return ContextLengthError(f"{said}. Shorten the question, or ask for fewer tokens")
        return _with_status(RejectedError(f"{said}. `motes doctor` shows what this server can do"), status)

    async def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        if (pool := self._pools.get(loop)) is None:
            pool = self._pools[loop] = _Pool(asyncio.Semaphore(self.max_concurrency))
            # A started asynchronous generator is closed by the loop before it closes itself: `asyncio.run` leaves no
            # connection behind.
            pool.lifetime = self._lifetime(pool, loop)
            await anext(pool.lifetime)
        return pool

    async def _lifetime(self, pool: _Pool, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self._pools.pop(loop, None)  # which would keep the loop, and so itself, alive
            for http in pool.all:
                await http.aclose()

    def _connection(self, pool: _Pool) -> httpx2.AsyncClient:
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
            raise _bad_proxy(error) from None  # whose text may hold a password
        pool.all.append(http)
        return http

    @cached_property
    def _certificates(self) -> ssl.SSLContext | bool:
        """Made once: it takes longer than a request."""
        if not self.base.startswith("https"):
            return False
        try:
            return httpx2.create_ssl_context()
        except OSError as error:
            raise ConfigurationError(
                f"the certificates that {' or '.join(CERTIFICATES)} names cannot be read ({error}): name a file or a "
                "folder that is there, or unset it"
            ) from error

    async def _json(self, response: httpx2.Response) -> Any:
        content = await response.aread()
        try:
            answer = parsed(content)
        except ValueError as error:
            raise BadResponseError(
                f"{response.url} answered what is no JSON ({content[:80]!r}): is it an OpenAI-compatible server?"
            ) from error
        if tells_of_error(answer):
            raise self._failure(str(response.url), answer)
        return answer

    def _failure(self, url: str, answer: Mapping[str, Any]) -> MotesError:
        """What an answer of 200 is that tells of an error."""
        said = f"{url} failed while it answered: {_said(answer)}"
        if CONTEXT.search(said):
            return ContextLengthError(f"{said}. Shorten the question, or ask for fewer tokens")
        return BadResponseError(f"{said}. Look into its log")


def _proxies() -> list[str]:
    """The environment variables that name proxies."""
    return [name for name in (*PROXIES, *map(str.lower, PROXIES)) if os.environ.get(name)]


def _bad_proxy(error: Exception) -> ConfigurationError:
    remedy = "write http://HOST:PORT there, or unset it"
    if isinstance(error, ImportError):
        remedy = "pip install socksio for socks5://, or unset it"
    return ConfigurationError(
        f"the proxy that the environment names ({', '.join(_proxies())}) cannot be used: {remedy}"
    )


def _through() -> str:
    """A hint at the proxies that may stand between."""
    named = _proxies()
    return f". Requests may go through the proxy of {', '.join(named)}: put the host into NO_PROXY" if named else ""


def _trace() -> dict[str, str]:
    """In whose name a request is made, where the process has OpenTelemetry at work (the header `traceparent`)."""
    headers: dict[str, str] = {}
    if (propagate := sys.modules.get("opentelemetry.propagate")) is not None:
        propagate.inject(headers)
    return headers


def _with_status(error: ServerError, status: int) -> ServerError:
    error.status = status
    return error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _message(response: httpx2.Response) -> str:
    try:
        return _said(parsed(response.content))
    except ValueError:
        return response.text.strip()[:200] or "(nothing said)"


def _said(body: Any) -> str:
    """What an error's body says, in whichever of the usual places."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), None) or json.dumps(body)
    return str(body)[:500]


def _retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a server wants to be left alone: written as such, or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None
