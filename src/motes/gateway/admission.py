"""Who may start, and when: a bound on particles in flight, shared out fairly, and limits for each caller.

Requests wait in a queue for each caller. The next to start is of the caller that has been given the fewest particles
since it began to wait (start-time fair queueing: Goyal, Vin, Cheng 1996), so that one caller's thousand requests do not
keep another's one waiting for all of them. It starts as soon as its particles have room, and nobody overtakes it
meanwhile: large requests are not starved by small ones. Requests that left before they started were given nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from motes.errors import MotesError


class BusyError(MotesError, RuntimeError):
    """There is no room now.

    Attributes:
        retry_after: seconds after which there may be.
        closing: no request is taken any more.
    """

    def __init__(self, reason: str, retry_after: float, *, closing: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.closing = retry_after, closing


@dataclass(eq=False)
class _Waiting:
    particles: int
    admitted: asyncio.Future[None]


@dataclass(eq=False)
class Caller:
    """One who asks, and what is known of it.

    Args:
        concurrency: requests that it may have in flight or waiting. per_minute: that it may begin; None: any number.
    """

    name: str
    concurrency: int
    per_minute: int | None = None
    present: int = 0
    allowance: float = field(init=False)
    refilled: float = -math.inf
    served: float = 0.0  # where what it has been given ends on the virtual clock
    waiting: deque[_Waiting] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.allowance = float(self.per_minute or 0)

    def take(self, now: float) -> None:
        """Use up one of its requests a minute, which come back evenly.

        Raises:
            BusyError: there is none.
        """
        if self.per_minute is None:
            return
        rate = self.per_minute / 60
        self.allowance = min(self.per_minute, self.allowance + (now - self.refilled) * rate)
        self.refilled = now
        if self.allowance < 1:
            raise BusyError(f"more than {self.per_minute} requests a minute", (1 - self.allowance) / rate)
        self.allowance -= 1


class Admission:
    """The gate that every request goes through.

    Args:
        particles: the bound on those in flight.
        waiting: the bound on requests that wait.
        clock: in seconds.

    Attributes:
        in_flight: particles of the requests that have started. in_queue: requests that wait.
    """

    def __init__(self, particles: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._particles, self._most_waiting, self._clock = particles, waiting, clock
        self._queued: dict[Caller, None] = {}  # callers with requests that wait, in the order in which they came
        self._virtual = 0.0  # where the latest request started
        self._mean = 1.0  # seconds that a request was in flight, lately
        self._requests = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.in_flight = 0
        self.in_queue = 0

    @contextlib.asynccontextmanager
    async def enter(self, caller: Caller, particles: int) -> AsyncIterator[None]:
        """Wait until so many particles have room, and hold the room.

        Raises:
            BusyError: the caller has as many requests as it may, or began too many within a minute; too many wait; or
                the gate is closed.
        """
        if self._closed:
            raise BusyError("shutting down", 1.0, closing=True)
        if caller.present >= caller.concurrency:
            raise BusyError(f"more than {caller.concurrency} requests at once", self._mean)
        waits = bool(self._queued) or self.in_flight + particles > self._particles
        if waits and self.in_queue >= self._most_waiting:
            raise BusyError(f"{self.in_queue} requests are waiting already", self._patience())
        caller.take(self._clock())
        caller.present += 1
        try:
            await self._admitted(caller, particles)
            began = self._clock()
            self._requests += 1
            self._idle.clear()
            try:
                yield
            finally:
                self._mean += 0.1 * (self._clock() - began - self._mean)
                self._requests -= 1
                if not self._requests:
                    self._idle.set()
                self._release(particles)
        finally:
            caller.present -= 1

    async def close(self, patience: float) -> bool:
        """Take no more requests, turn away those that wait, and let those in flight finish, for so many seconds.

        Returns:
            whether all have.
        """
        self._closed = True
        for caller in list(self._queued):
            for waiting in caller.waiting:
                if not waiting.admitted.done():
                    waiting.admitted.set_exception(BusyError("shutting down", 1.0, closing=True))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), patience)
        return not self._requests

    async def _admitted(self, caller: Caller, particles: int) -> None:
        admitted = asyncio.get_running_loop().create_future()
        waiting = _Waiting(particles, admitted)
        caller.waiting.append(waiting)
        self._queued[caller] = None
        self.in_queue += 1
        self._admit()
        try:
            await admitted
        except BaseException:
            if waiting in caller.waiting:
                self._leave(caller, waiting)
            elif not admitted.cancelled() and admitted.exception() is None:  # it was let in and cancelled at once
                self.in_flight -= particles
                caller.served -= particles
            self._admit()
            raise

    def _admit(self) -> None:
        """Let in whoever is next, as long as there is room."""
        while self._queued and not self._closed:
            caller = min(self._queued, key=self._start)
            first = caller.waiting[0]
            if self.in_flight + first.particles > self._particles:
                return
            self._leave(caller, first)
            if first.admitted.done():  # cancelled meanwhile
                continue
            self._virtual = self._start(caller)
            caller.served = self._virtual + first.particles
            self.in_flight += first.particles
            first.admitted.set_result(None)

    def _start(self, caller: Caller) -> float:
        """Where the caller's next request starts on the virtual clock: time in which it asked for nothing is lost."""
        return max(self._virtual, caller.served)

    def _leave(self, caller: Caller, waiting: _Waiting) -> None:
        caller.waiting.remove(waiting)
        self.in_queue -= 1
        if not caller.waiting:
            del self._queued[caller]

    def _release(self, particles: int) -> None:
        self.in_flight -= particles
        self._admit()

    def _patience(self) -> float:
        """About how long until those that wait have started, had all as many particles as those in flight."""
        return max(1.0, self._mean * (1 + self.in_queue / max(1, self._requests)))
