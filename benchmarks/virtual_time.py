"""An event loop with a virtual clock, which stands still while anything can run, then jumps to the next timer.

The clock also stands still while a daemon thread runs that was started after the loop: its work takes no virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that does not wait for a timeout, but adds it to `now`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._threads = set(threading.enumerate())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout and any(thread.daemon for thread in set(threading.enumerate()) - self._threads):
            return super().select(0.001)
        self.now += timeout or 0.0
        return super().select(timeout and 0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _JumpingSelector()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def timed(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, float]:
    """Run a coroutine. Returns its result, and the number of virtual seconds that it took."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(work())
        return result, runner.get_loop().time()
