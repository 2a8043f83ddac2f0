"""An event loop whose clock nobody waits for: it stands still while anything can run, then jumps to the next timer.

It stands still, too, while a daemon thread that was started meanwhile is at work: its result takes no virtual time.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class _Jumping(selectors.DefaultSelector):
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
        self.clock = _Jumping()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def timed(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, float]:
    """What the coroutine gives, and how many seconds it would have taken."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(work())
        return result, runner.get_loop().time()
