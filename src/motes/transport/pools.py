"""Connections to one server, in a pool for each event loop, with the environment's proxies and certificates."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import httpx2

from motes.errors import ConfigurationError
from motes.transport.key import Key

CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass(eq=False)
class Pool:
    """The connections of one event loop.

    Each connection is an httpx client of its own: the time that httpx needs for a request grows with the number of its
    client's connections, and more than doubles with 128.

    Attributes:
        slots: for requests in flight.
        lifetime: closes the connections when the event loop ends, or when nobody uses the client any more.
    """

    slots: asyncio.Semaphore
    lifetime: AsyncGenerator[None] = field(init=False)
    idle: list[httpx2.AsyncClient] = field(default_factory=list)
    all: list[httpx2.AsyncClient] = field(default_factory=list)


class Pools:
    """The pools of a client, and how its connections are made.

    Args:
        base: the server's URL.
        key: see `motes.transport.Client`.
        timeout: of each connection.
        max_concurrency: requests in flight in each pool.
        transport: instead of sockets, for tests.
    """

    def __init__(
        self,
        base: str,
        key: Key | None,
        timeout: httpx2.Timeout,
        max_concurrency: int,
        transport: httpx2.AsyncBaseTransport | None,
    ) -> None:
        self._base, self._key, self._timeout, self._max_concurrency = base, key, timeout, max_concurrency
        self._transport = transport
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._pools)

    async def here(self) -> Pool:
        """The pool of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # A loop closes started asynchronous generators before it closes itself: `asyncio.run` leaves no connection
            # open.
            self._pools[loop] = pool = Pool(asyncio.Semaphore(self._max_concurrency))
            pool.lifetime = self._lifetime(loop, pool)
            await anext(pool.lifetime)
        return self._pools[loop]

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        pool = self._pools.get(asyncio.get_running_loop())
        if pool is not None:
            await pool.lifetime.aclose()

    def connect(self, pool: Pool) -> httpx2.AsyncClient:
        """A new connection.

        Raises:
            ConfigurationError: the environment names a proxy or certificates that cannot be used.
        """
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.value}"
        certificates = self._certificates
        try:
            http = httpx2.AsyncClient(
                headers=headers,
                timeout=self._timeout,
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
                f"the proxy that the environment names ({proxies()}) cannot be used: {remedy}, or unset it"
            ) from None  # its text may contain a password
        pool.all.append(http)
        return http

    async def _lifetime(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._pools.pop(loop, None)  # `self` may be garbage that has lost its entries already
            for http in pool.all:
                await http.aclose()

    @cached_property
    def _certificates(self) -> ssl.SSLContext | bool:
        """Cached: reading them takes longer than a request."""
        if not self._base.startswith("https"):
            return False
        try:
            return httpx2.create_ssl_context()
        except OSError as error:
            raise ConfigurationError(
                f"the certificates that {' or '.join(CERTIFICATES)} names cannot be read ({error}): name a file or a "
                "folder that is there, or unset it"
            ) from error


def proxies() -> str:
    """The environment variables with proxies, as a list in words."""
    return ", ".join(name for name in (*PROXIES, *map(str.lower, PROXIES)) if os.environ.get(name))
