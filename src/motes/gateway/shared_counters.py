"""Counters that several gateways share through a server that speaks Redis' protocol: Redis, Valkey.

The server's clock says how much a counter has decreased, so the clocks of the gateways may differ. A counter of a
window has a key for each window: gateways whose clocks differ count around midnight for two days, and reset neither.

While the server cannot be used, each gateway counts alone, from the latest values that it has seen. Requests do not
wait for the server then: a task looks every few seconds whether it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from motes.errors import EngineError, MissingExtraError
from motes.gateway.quotas import Counter, LocalCounters
from motes.gateway.shared_address import Address
from motes.text import shortened

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

TIMEOUT = 1.0
"""Seconds after which the server counts as one that cannot be used."""
PAUSE = 5.0
"""Seconds between two checks whether the server can be used."""
BATCH = 200
"""The most additions in one call. The server does nothing else meanwhile."""
PREFIX = "{motes}:quota:"
"""Begins the server's keys. What is in braces puts them all on the same node of a cluster."""
Addition = tuple[Mapping[Counter, float], "asyncio.Future[Sequence[float] | None]"]
PROBE = Counter("probe", leak=1.0, window=0)

ADD = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local values = {}
for i, key in ipairs(KEYS) do
  local leak, amount = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local before = redis.call('HMGET', key, 'value', 'time')
  local value, since = tonumber(before[1]) or 0, tonumber(before[2]) or now
  value = math.max(0, math.max(0, value - math.max(0, now - since) * leak) + amount)
  if value == 0 then
    redis.call('DEL', key)
  else
    local seconds = leak > 0 and math.min(value / leak + 1, 31536000) or 172800
    redis.call('HSET', key, 'value', string.format('%.17g', value), 'time', string.format('%.17g', now))
    redis.call('PEXPIRE', key, string.format('%.0f', seconds * 1000))
  end
  values[i] = string.format('%.17g', value)
end
return values
"""
"""Adds amounts to counters. A key is kept until its counter is 0 again; that of a window, which is a day, for two."""


class SharedCounters:
    """Keeps counters in a server, and in this process while the server cannot be used.

    One call of the server is under way at a time. What is to be added meanwhile goes together into the next one.

    Attributes:
        is_up: whether the server is used.
    """

    def __init__(self, address: Address) -> None:
        self.address, self.is_up = address, True
        self._alone = LocalCounters()
        self._client = connect(address)
        self._waiting: deque[Addition] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._closing = False

    async def add(self, amounts: Mapping[Counter, float], now: float) -> Sequence[float]:
        """See `Counters`. If it is cancelled, nothing is added."""
        try:
            values = await self._enqueue(amounts)
        except asyncio.CancelledError:
            self._enqueue({counter: -amount for counter, amount in amounts.items()})
            raise
        if values is None:
            return await self._alone.add(amounts, now)
        self._alone.set(dict(zip(amounts, values, strict=True)), now)
        return values

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """A context in which the server is watched. At its end, all that waits is added, and the connections closed."""
        await self._check()
        watch = asyncio.get_running_loop().create_task(self._watch())
        try:
            yield
        finally:
            self._closing = True  # since asyncio.wait_for of Python 3.11, which the client uses, loses cancellations
            watch.cancel()
            await asyncio.gather(watch, *([] if self._sender is None else [self._sender]), return_exceptions=True)
            await self.aclose()

    async def probe(self) -> None:
        """Use the server once.

        Raises:
            EngineError: it does not answer within a second, or refuses what counting needs.
        """
        await self._call([(PROBE, 1.0)])

    async def aclose(self) -> None:
        """Close the connections."""
        with contextlib.suppress(Exception):
            await self._client.aclose()

    async def _watch(self) -> None:
        while not self._closing:
            await asyncio.sleep(PAUSE)
            await self._check()

    async def _check(self) -> None:
        """Find out whether the server can be used."""
        try:
            if not self.is_up:
                await self.aclose()  # the pool may count connections that broke off as busy
                self._client = connect(self.address)
            await self.probe()
        except EngineError as error:
            self._note_failure(error)
        else:
            if not self.is_up:
                self.is_up = True
                log.info("%s can be used again: the quotas are shared", self.address.shown)

    def _note_failure(self, error: EngineError) -> None:
        if self.is_up:
            self.is_up = False
            log.warning("%s: until it can be used, this process counts quotas alone", error)

    def _enqueue(self, amounts: Mapping[Counter, float]) -> asyncio.Future[Sequence[float] | None]:
        """The new values of counters after amounts are added to them; None if the server cannot be used."""
        loop = asyncio.get_running_loop()
        added: asyncio.Future[Sequence[float] | None] = loop.create_future()
        self._waiting.append((amounts, added))
        if self._sender is None or self._sender.done():
            self._sender = loop.create_task(self._send())
        return added

    async def _send(self) -> None:
        """Add what waits, until nothing waits any more."""
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
            values: Iterator[float] | None = None
            if self.is_up:
                try:
                    values = iter(await self._call([item for amounts, _ in batch for item in amounts.items()]))
                except EngineError as error:
                    self._note_failure(error)
            for amounts, added in batch:
                own = None if values is None else list(islice(values, len(amounts)))
                if not added.done():  # it is, where the addition was cancelled
                    added.set_result(own)

    async def _call(self, items: Sequence[tuple[Counter, float]]) -> Sequence[float]:
        """Add amounts to counters in the server, one after the other, and return each new value.

        Raises:
            EngineError: see `probe`.
        """
        keys = [f"{PREFIX}{counter.key}:{counter.window}" for counter, _ in items]
        numbers = [repr(float(number)) for counter, amount in items for number in (counter.leak, amount)]
        client: Any = self._client  # the types of its commands are those of the client that blocks, too
        try:
            async with asyncio.timeout(TIMEOUT):
                values = await client.eval(ADD, len(keys), *keys, *numbers)
            return [float(value) for _, value in zip(items, values, strict=True)]
        except Exception as error:
            raise EngineError(f"{self.address.shown}, which shares the limits, {_reason(error)}") from error


def connect(address: Address) -> Redis:
    """A client of a server, with connections that are opened when they are needed.

    Raises:
        MissingExtraError: the client for such servers is not installed.
    """
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ModuleNotFoundError as error:
        raise MissingExtraError("limits that processes share", "redis") from error
    pool = BlockingConnectionPool.from_url(
        address.url,
        max_connections=2,  # for additions, and for the check
        timeout=TIMEOUT,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=Retry(NoBackoff(), 0),  # an amount that is sent twice may be added twice
        protocol=2,  # which all versions of both servers speak
    )
    return Redis.from_pool(pool)


def _reason(error: Exception) -> str:
    """Why the server cannot be used, for the log."""
    if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":
        return f"does not answer within {TIMEOUT:g} s"
    return f"cannot be used ({type(error).__name__}: {shortened(' '.join(str(error).split()), 200)})"
