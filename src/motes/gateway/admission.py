"""Admission of requests: a limit on particles in flight, shared fairly between callers, and on each caller's requests.

Each caller has a queue. The next request comes from the caller that has received the fewest particles since it began
to wait (start-time fair queueing: Goyal, Vin, Cheng 1996), so that a request does not wait for all requests of a caller
with a thousand. It starts as soon as its particles have room, and no other request overtakes it: small requests do not
starve large ones. A request that is withdrawn before it starts does not count, and one that is cancelled or fails
counts for the part of the usual time that it held its room.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from motes.gateway.errors import BusyError
from motes.gateway.quotas import Quotas


@dataclass(eq=False)
class Caller:
    """A caller with its limits and the state of its requests.

    Args:
        concurrency: maximum number of requests in flight or waiting.
        quotas: see `motes.gateway.quotas`.
    """

    name: str
    concurrency: int
    quotas: Quotas = field(default_factory=Quotas)
    present: int = 0  # requests in flight or waiting
    virtual_end: float = 0.0  # virtual time at which the admitted requests end, see `Admission`
    queue: dict[asyncio.Future[None], int] = field(default_factory=dict)  # particles of waiting requests, by arrival


class Admission:
    """Admits requests, one after the other, within the limits.

    A virtual clock counts particles: a caller's requests follow one another, each takes as many units of virtual time
    as it has particles, and the request with the earliest virtual start is admitted next.

    Args:
        particles: maximum number of particles in flight.
        waiting: maximum number of waiting requests.
        clock: returns the time in seconds.

    Attributes:
        in_flight: number of particles of admitted requests.
        in_queue: number of waiting requests.
    """

    def __init__(self, particles: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_particles, self._max_waiting, self._clock = particles, waiting, clock
        self._waiting_callers: dict[Caller, None] = {}  # in the order of their arrival
        self._virtual_time = 0.0  # at which the latest request started
        self._mean_seconds = 1.0  # that a completed request was in flight: a moving average
        self._ends: set[asyncio.Future[None]] = set()  # a future for each admitted request, done when it ends
        self._closed = False
        self.in_flight = 0
        self.in_queue = 0

    @contextlib.asynccontextmanager
    async def enter(self, caller: Caller, particles: int) -> AsyncIterator[None]:
        """Wait until `particles` particles have room, and hold the room during the context.

        Raises:
            BusyError: the caller has too many requests at once, too many requests wait, or the gateway is closing.
        """
        if self._closed:
            raise BusyError("shutting down", 1.0, unavailable=True)
        if caller.present >= caller.concurrency:
            raise BusyError(f"more than {caller.concurrency} requests at once", self._mean_seconds)
        must_wait = bool(self._waiting_callers) or self.in_flight + particles > self._max_particles
        if must_wait and self.in_queue >= self._max_waiting:
            raise BusyError(f"{self.in_queue} requests are waiting already", self._expected_wait())
        caller.present += 1
        try:
            await self._wait_for_room(caller, particles)
            began = self._clock()
            ended = asyncio.get_running_loop().create_future()
            self._ends.add(ended)
            try:
                yield
                self._mean_seconds += 0.1 * (self._clock() - began - self._mean_seconds)
            except BaseException:
                unused = max(0.0, 1 - (self._clock() - began) / self._mean_seconds)
                caller.virtual_end -= unused * particles
                raise
            finally:
                self._ends.remove(ended)
                ended.set_result(None)
                self.in_flight -= particles
                self._admit_next()
        finally:
            caller.present -= 1

    async def close(self, patience: float) -> bool:
        """Admit no further requests, turn away the waiting ones, and wait for those in flight.

        Args:
            patience: the longest time to wait, in seconds.

        Returns:
            Whether all requests in flight finished.
        """
        self._closed = True
        for caller in list(self._waiting_callers):
            for admitted in caller.queue:
                if not admitted.done():
                    admitted.set_exception(BusyError("shutting down", 1.0, unavailable=True))
        if self._ends:
            await asyncio.wait(self._ends, timeout=patience)
        return not self._ends

    async def _wait_for_room(self, caller: Caller, particles: int) -> None:
        admitted = asyncio.get_running_loop().create_future()
        caller.queue[admitted] = particles
        self._waiting_callers[caller] = None
        self.in_queue += 1
        self._admit_next()
        try:
            await admitted
        except BaseException:
            if admitted in caller.queue:
                self._remove(caller, admitted)
            elif not admitted.cancelled() and admitted.exception() is None:  # admitted and cancelled at the same time
                self.in_flight -= particles
                caller.virtual_end -= particles
            self._admit_next()
            raise

    def _admit_next(self) -> None:
        """Admit the next requests, as long as they have room."""
        while self._waiting_callers and not self._closed:
            caller = min(self._waiting_callers, key=self._virtual_start)
            admitted, particles = next(iter(caller.queue.items()))
            if self.in_flight + particles > self._max_particles:
                return
            self._remove(caller, admitted)
            if admitted.done():  # cancelled meanwhile
                continue
            self._virtual_time = self._virtual_start(caller)
            caller.virtual_end = self._virtual_time + particles
            self.in_flight += particles
            admitted.set_result(None)

    def _virtual_start(self, caller: Caller) -> float:
        """The virtual time at which the caller's next request starts. A time without requests earns no credit."""
        return max(self._virtual_time, caller.virtual_end)

    def _remove(self, caller: Caller, admitted: asyncio.Future[None]) -> None:
        del caller.queue[admitted]
        self.in_queue -= 1
        if not caller.queue:
            del self._waiting_callers[caller]

    def _expected_wait(self) -> float:
        """A rough time in seconds until all waiting requests have started, if they are as large as those in flight."""
        return max(1.0, self._mean_seconds * (1 + self.in_queue / max(1, len(self._ends))))
