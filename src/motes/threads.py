"""Slow work beside the event loop: what waits for others, or computes for long, runs in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_current = threading.local()


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread of its own, while the event loop goes on; return what it returns, or raise what it
    raises. What would end the event loop, `SystemExit`, or pass for the caller's cancellation is a RuntimeError.

    The thread is a daemon: neither a cancelled caller nor the end of the process waits for it, as both would with
    `asyncio.to_thread`. Nobody can stop it, but it can ask `abandoned()` and stop by itself.
    """
    outcome: Future[tuple[T | None, BaseException | None]] = Future()
    outcome.set_running_or_notify_cancel()
    left = threading.Event()
    context = contextvars.copy_context()

    def work() -> None:
        _current.left = left
        try:
            outcome.set_result((context.run(function, *arguments), None))
        except BaseException as error:  # as a value: a future refuses some exceptions, StopIteration for one
            outcome.set_result((None, error))

    threading.Thread(target=work, name="motes-slow-work", daemon=True).start()
    try:
        value, error = await asyncio.wrap_future(outcome)
    finally:
        left.set()
    if isinstance(error, Exception):
        raise error
    if error is not None:
        raise RuntimeError(f"{function!r} raised {type(error).__name__}: {error}") from error
    return value  # type: ignore[return-value]  # None only where the function returned it


LONG = 20_000
"""Characters of text that take a tokenizer some hundredths of a second."""


async def in_thread_if_long(length: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that tokenizes `length` characters: in a thread if these are many, at once if they are few."""
    return await in_thread(function, *arguments) if length > LONG else function(*arguments)


class OneAtATime:
    """Lets threads of `in_thread` work one after the other. It does not wait for one whose caller has gone, since that
    one may never end."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._working: threading.Event | None = None  # of the thread at work: whether its caller has gone

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread is at work; or no longer than one's own caller does."""
        mine: threading.Event = _current.left
        with self._condition:
            while not (self._working is None or self._working.is_set() or mine.is_set()):
                self._condition.wait(0.1)  # nobody notifies when a caller goes
            self._working = mine
        try:
            yield
        finally:
            with self._condition:
                if self._working is mine:
                    self._working = None
                self._condition.notify_all()


def abandoned() -> bool:
    """Whether this thread works for a caller of `in_thread` that was cancelled: nobody will read the result."""
    left: threading.Event | None = getattr(_current, "left", None)
    return left is not None and left.is_set()
