"""The end of a gateway: it admits nothing more, and the runs in flight end early, with the best answer so far."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from motes.core import Result
from motes.gateway.admission import Admission
from motes.gateway.answering import ParsedRequest, visible
from motes.gateway.errors import BusyError
from motes.methods.limits import Limits
from motes.methods.run import Observer, ProgressCallback

LATE = 5.0
"""Seconds after the drain for a run to return its best answer. After that it is cancelled."""


class Drain:
    """Runs requests, and ends the runs when the gateway closes.

    Args:
        gate: closed when the drain begins.
        seconds: that the requests in flight have from then on.

    Attributes:
        begun: whether the gateway is closing.
    """

    def __init__(self, gate: Admission, seconds: float) -> None:
        self.seconds, self.begun = seconds, False
        self._gate = gate
        self._deadline = self._end = math.inf  # of all runs
        self._runs: dict[Limits, asyncio.Timeout] = {}  # with the time at which each is cancelled

    @property
    def remaining(self) -> float:
        """The longest time in seconds until all runs have ended, once the drain has begun."""
        return max(0.0, self._end - asyncio.get_running_loop().time())

    async def begin(self) -> None:
        """Turn the waiting requests away, and shorten the deadlines of those in flight."""
        if not self.begun:
            self.begun = True
            self.shorten(self.seconds)
            await self._gate.close(0.0)

    async def finish(self) -> None:
        """Begin, if that has not happened, and wait for the requests in flight."""
        await self.begin()
        await self._gate.close(self.remaining)

    def shorten(self, seconds: float, late: float = LATE) -> None:
        """Give the runs in flight `seconds` to end, and cancel them `late` seconds after that."""
        self._deadline = min(self._deadline, asyncio.get_running_loop().time() + seconds)
        self._end = min(self._end, self._deadline + late)
        for limits, patience in self._runs.items():
            self._limit(limits, patience)

    async def run(
        self, request: ParsedRequest, observe: Observer | None = None, on_progress: ProgressCallback | None = None
    ) -> Result:
        """Run a request.

        Raises:
            BusyError: the gateway closed before there was an answer.
            MotesError: see `motes.asolve`.
        """
        async with self.limits(request.deadline) as limits:
            result = await request.run(observe, on_progress, limits)
        if self.begun and result.stopped == "deadline" and not visible(result, 1):
            error = self._closing_error()
            error.result = result  # its cost counts, see `motes.api.partial_result`
            raise error
        return result

    @asynccontextmanager
    async def limits(self, seconds: float = math.inf) -> AsyncIterator[Limits]:
        """A context for work that ends with the drain, and the limits of a run within it.

        Args:
            seconds: until the deadline of the run.

        Raises:
            BusyError: the work has not ended `LATE` seconds after the drain.
        """
        limits = Limits(deadline=asyncio.get_running_loop().time() + seconds)
        try:
            async with asyncio.timeout(None) as patience:
                self._runs[limits] = patience
                if self.begun:
                    self._limit(limits, patience)
                try:
                    yield limits
                finally:
                    del self._runs[limits]
        except TimeoutError:
            if not patience.expired():
                raise
            raise self._closing_error() from None

    def _limit(self, limits: Limits, patience: asyncio.Timeout) -> None:
        limits.bring_forward(self._deadline)
        if not patience.expired():
            patience.reschedule(self._end)

    @staticmethod
    def _closing_error() -> BusyError:
        return BusyError("shutting down before there was an answer", 1.0, unavailable=True)
