"""Quotas of a caller: requests, tokens and particles, per minute and per day.

A quota per minute is a bucket that refills evenly, so that the whole quota can be used at once after a pause. A quota
per day begins anew at midnight, UTC. A request is admitted if each quota has enough left: one request, its particles
(or the whole quota, if that is less), and one token, because nobody knows before how many tokens a run takes. Tokens
are charged as the rounds of the run end, so what is left can be less than nothing. Then requests wait until it is
refilled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from motes.gateway.errors import QuotaError

log = logging.getLogger(__name__)

Kind = Literal["requests", "tokens", "particles"]
MINUTE, DAY = 60.0, 86_400.0
ROUNDING = 1e-3
"""Rounding errors of amounts are less than this: times since 1970 are known to a quarter of a microsecond."""


@dataclass(frozen=True)
class Quota:
    """An amount that a caller may use in a period.

    Attributes:
        period: in seconds, `MINUTE` or `DAY`.
    """

    kind: Kind
    period: float
    amount: int

    @property
    def name(self) -> str:
        """The name of the setting, such as "tokens_per_day"."""
        return f"{self.kind}_per_{self._period}"

    @property
    def _period(self) -> str:
        return "minute" if self.period == MINUTE else "day"

    def __str__(self) -> str:
        return f"{self.amount:,} {self.kind} a {self._period} ({self.name})"


@dataclass(frozen=True)
class Counter:
    """A counter of what has been used.

    Attributes:
        key: its name.
        leak: amount by which it decreases in a second, down to 0.
        window: a counter of another window begins at 0.
    """

    key: str
    leak: float
    window: int


class Counters(Protocol):
    """Keeps counters, in this process or for several of them."""

    async def add(self, amounts: Mapping[Counter, float], now: float) -> Sequence[float]:
        """Add an amount to each counter, which does not become less than 0, and return the new values.

        Args:
            now: seconds since 1970.
        """
        ...


class LocalCounters:
    """Keeps counters in this process."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[int, float, float]] = {}  # by key: window, value, time

    async def add(self, amounts: Mapping[Counter, float], now: float) -> Sequence[float]:
        """See `Counters`."""
        values = []
        for counter, amount in amounts.items():
            window, value, then = self._values.get(counter.key, (counter.window, 0.0, now))
            value = value - max(0.0, now - then) * counter.leak if window == counter.window else 0.0
            value = max(0.0, max(0.0, value) + amount)
            self._values[counter.key] = counter.window, value, now
            values.append(value)
        return values

    def set(self, values: Mapping[Counter, float], now: float) -> None:
        """Replace the values of counters."""
        for counter, value in values.items():
            self._values[counter.key] = counter.window, value, now


class Quotas:
    """The quotas of one caller.

    Args:
        caller: its name, which the counters' names contain.
        clock: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        caller: str = "",
        quotas: Sequence[Quota] = (),
        counters: Counters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._caller, self._quotas, self._clock = caller, tuple(quotas), clock
        self._counters = counters or LocalCounters()
        self._charges: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def reserved(self, particles: int) -> AsyncIterator[None]:
        """Take one request and its particles for a request that starts within the context. If the context is left by an
        error, they are given back.

        Raises:
            QuotaError: a quota is used up.
        """
        if not self._quotas:
            yield
            return
        needs = {"requests": 1, "particles": particles, "tokens": 0}
        now = self._clock()
        values = await self._add(needs, now)
        refusals = []
        for quota, value in zip(self._quotas, values, strict=True):
            before = value - needs[quota.kind]
            needed = min(max(1, needs[quota.kind]), quota.amount)
            if quota.amount - before < needed - ROUNDING:
                until_there = (before + needed - quota.amount) * MINUTE / quota.amount
                refusals.append((until_there if quota.period == MINUTE else DAY - now % DAY, quota))
        try:
            if refusals:
                seconds, quota = max(refusals, key=lambda refusal: refusal[0])
                raise QuotaError(f"more than {quota}", seconds)
            yield
        except BaseException:
            await self._add({kind: -amount for kind, amount in needs.items()}, self._clock())
            raise

    def charge(self, tokens: int) -> None:
        """Count tokens that a run has used."""
        if tokens and any(quota.kind == "tokens" for quota in self._quotas):
            task = asyncio.get_running_loop().create_task(self._charge(tokens))
            self._charges.add(task)
            task.add_done_callback(self._charges.discard)

    async def _charge(self, tokens: int) -> None:
        try:
            await self._add({"tokens": tokens}, self._clock())
        except Exception:
            log.exception("tokens were not counted")

    async def headers(self) -> dict[str, str]:
        """The state of the quotas as OpenAI's headers have it: for each kind the limit, what remains, and the time
        until all of it does. Of two quotas of a kind, the headers describe the one of which less remains."""
        if not self._quotas:
            return {}
        if self._charges:
            await asyncio.wait(self._charges)  # unlike `gather`, it does not cancel them if it is cancelled itself
        now = self._clock()
        values = await self._add({}, now)
        states: dict[str, tuple[int, Quota, float]] = {}
        for quota, value in zip(self._quotas, values, strict=True):
            remaining = max(0, math.floor(quota.amount - value + ROUNDING))
            until_reset = value * MINUTE / quota.amount if quota.period == MINUTE else DAY - now % DAY
            if quota.kind not in states or remaining < states[quota.kind][0]:
                states[quota.kind] = remaining, quota, until_reset
        headers = {}
        for kind, (remaining, quota, until_reset) in states.items():
            headers[f"x-ratelimit-limit-{kind}"] = str(quota.amount)
            headers[f"x-ratelimit-remaining-{kind}"] = str(remaining)
            headers[f"x-ratelimit-reset-{kind}"] = duration(until_reset)
        return headers

    async def _add(self, amounts: Mapping[str, float], now: float) -> Sequence[float]:
        """Add these amounts, by kind, to the counters of the quotas, and return the counters' values."""
        by_counter = {}
        for quota in self._quotas:
            leak, window = (quota.amount / MINUTE, 0) if quota.period == MINUTE else (0.0, int(now // DAY))
            by_counter[Counter(f"{self._caller}/{quota.name}", leak, window)] = float(amounts.get(quota.kind, 0))
        return await self._counters.add(by_counter, now) if by_counter else ()


def duration(seconds: float) -> str:
    """A time in the notation of OpenAI's headers: 250ms, 6s, 1h0m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"
