"""Run slow work in threads beside the event loop: work that waits for others or takes long to compute."""

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
    """Call a function in a thread of its own while the event loop goes on, and return or raise its outcome. Exceptions
    that would end the event loop, such as `SystemExit`, or look like the caller's cancellation become a RuntimeError.

    The thread is a daemon: unlike with `asyncio.to_thread`, neither a cancelled caller nor the end of the process waits
    for it. A thread cannot be stopped from outside, but it can call `abandoned()` and stop by itself.
    """
    outcome: Future[tuple[T | None, BaseException | None]] = Future()
    outcome.set_running_or_notify_cancel()
    caller_gone = threading.Event()
    context = contextvars.copy_context()

    def work() -> None:
        _current.caller_gone = caller_gone
        try:
            outcome.set_result((context.run(function, *arguments), None))
        except BaseException as error:  # as a value: a future refuses some exceptions, StopIteration for one
            outcome.set_result((None, error))

    threading.Thread(target=work, name="motes-slow-work", daemon=True).start()
    try:
        value, error = await asyncio.wrap_future(outcome)
    finally:
        caller_gone.set()
    if isinstance(error, Exception):
        raise error
    if error is not None:
        raise RuntimeError(f"{function!r} raised {type(error).__name__}: {error}") from error
    return value  # type: ignore[return-value]  # None only where the function returned it


LONG = 20_000
"""Number of characters for which a tokenizer needs some hundredths of a second."""


async def in_thread_if_long(length: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that tokenizes `length` characters: in a thread if these are many, at once if they are few."""
    return await in_thread(function, *arguments) if length > LONG else function(*arguments)


class OneAtATime:
    """Lets threads of `in_thread` work one after the other. They do not wait for an abandoned thread, which may never
    end."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._working: threading.Event | None = None  # set when the caller of the working thread is gone

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread works, or until this thread is abandoned."""
        own_caller_gone: threading.Event = _current.caller_gone
        with self._condition:
            while not (self._working is None or self._working.is_set() or own_caller_gone.is_set()):
                self._condition.wait(0.1)  # there is no notification when a caller is cancelled
            self._working = own_caller_gone
        try:
            yield
        finally:
            with self._condition:
                if self._working is own_caller_gone:
                    self._working = None
                self._condition.notify_all()


def abandoned() -> bool:
    """Whether the caller of `in_thread` that this thread works for was cancelled: nobody will read the result."""
    caller_gone: threading.Event | None = getattr(_current, "caller_gone", None)
    return caller_gone is not None and caller_gone.is_set()
