"""Concurrent calls: calls that fail together, and calls that become one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from motes.errors import ConfigurationError

T = TypeVar("T")
ItemT = TypeVar("ItemT")
PendingT = TypeVar("PendingT", bound="Pending[Any]")


@dataclass(frozen=True)
class Origin:
    """What the current work is done for.

    Attributes:
        deadline: when it must be done, on the clock of its event loop, in seconds; None: there is no deadline. It ends
            nothing by itself: a client of servers reads it to decide how long to wait for a response before it asks
            again.
        run: the id of the run that it belongs to; None: of none, or of several.
    """

    deadline: float | None = None
    run: str | None = None


ORIGIN: ContextVar[Origin] = ContextVar("origin", default=Origin())  # noqa: B039 (frozen)


@contextmanager
def working_for(origin: Origin) -> Iterator[None]:
    """Set the origin of the work within the context, and of the tasks that it starts."""
    token = ORIGIN.set(origin)
    try:
        yield
    finally:
        ORIGIN.reset(token)


async def gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first failure cancels the rest and is raised. A single coroutine needs no task."""
    awaited = list(coroutines)
    if len(awaited) == 1:
        return [await awaited[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in awaited]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def first_result(coroutines: Iterable[Coroutine[Any, Any, T]], failure: type[Exception]) -> T:
    """The result of the first of several coroutines, which run at once, that does not fail; the others are cancelled.

    Raises:
        failure: all have failed so: the error of the first. Another error is raised at once.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        for next_one in asyncio.as_completed(tasks):
            with suppress(failure):
                return await next_one
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_here(work: Callable[[], Coroutine[Any, Any, T]], instead: str) -> T:
    """The result of the coroutine that `work` makes, for code that is not async.

    Raises:
        ConfigurationError: an event loop is running here, as in a notebook. The message says to write `instead`.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    raise ConfigurationError(f"an event loop is running here, as in a notebook: write `{instead}`")


class Pending(Generic[T]):
    """A request that waits for its outcome. Subclasses add its content.

    Attributes:
        origin: of the caller's work.
    """

    future: asyncio.Future[T]
    origin: Origin = Origin()

    def settle(self, outcome: T) -> None:
        """Give the caller the outcome, unless the request is settled or withdrawn already."""
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Raise an error in the caller, unless the request is settled or withdrawn already."""
        if not self.future.done():
            self.future.set_exception(error)


class Batcher(Generic[PendingT, T]):
    """Collects the requests of concurrent calls until the event loop has run everything that was ready, then passes
    them to `process` as one batch, without waiting for a clock.

    `process` settles each request of the batch, or starts work that does. Work on a batch, or on a part of it passed to
    `start`, is cancelled when all its requests are withdrawn. An error of the work is raised in every caller whose
    request is not settled yet. The work has the origin of its requests: the latest of their deadlines, and their run if
    it is the same.
    """

    def __init__(self, process: Callable[[list[PendingT]], Coroutine[Any, Any, None]]) -> None:
        self._process = process
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[PendingT]] = WeakKeyDictionary()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, requests: Sequence[PendingT]) -> list[T]:
        """The outcomes, in order. Cancelling the call withdraws its requests, and so does the first error."""
        loop = asyncio.get_running_loop()
        for request in requests:
            request.future = loop.create_future()
            request.origin = ORIGIN.get()
        waiting = self._waiting.setdefault(loop, [])
        if not waiting:
            loop.call_soon(self._flush, loop)
        waiting.extend(requests)
        try:
            return list(await asyncio.gather(*(request.future for request in requests)))
        finally:
            for request in requests:
                request.future.cancel()

    def start(self, work: Coroutine[Any, Any, None], requests: Sequence[PendingT]) -> None:
        """Run `work`, which settles `requests`, beside everything else."""

        async def run() -> None:
            try:
                with working_for(_common_origin(requests)):
                    await work
            except asyncio.CancelledError:
                for request in requests:
                    request.future.cancel()
                raise
            except Exception as error:  # callers must not wait forever, whatever the error
                for request in requests:
                    request.fail(error)

        task = asyncio.ensure_future(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        unsettled = len(requests)

        def count_down(future: asyncio.Future[Any]) -> None:
            nonlocal unsettled
            unsettled -= 1
            if unsettled == 0 and any(request.future.cancelled() for request in requests):
                task.cancel()

        for request in requests:
            request.future.add_done_callback(count_down)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        requests = [request for request in self._waiting.pop(loop, ()) if not request.future.done()]
        if requests:
            self.start(self._process(requests), requests)


def _common_origin(requests: Sequence[Pending[Any]]) -> Origin:
    """There is no deadline if one of the requests has none."""
    deadlines = [request.origin.deadline for request in requests if request.origin.deadline is not None]
    latest = max(deadlines, default=None) if len(deadlines) == len(requests) else None
    runs = {request.origin.run for request in requests}
    return Origin(latest, runs.pop() if len(runs) == 1 else None)


@dataclass(eq=False)
class _Call(Pending[list[T]], Generic[ItemT, T]):
    items: list[ItemT]


class CallBatcher(Generic[ItemT, T]):
    """Merges all calls in one turn of the event loop into one call of `function`, which takes the items of all calls,
    (B,), and returns an outcome for each, in order."""

    def __init__(self, function: Callable[[list[ItemT]], Awaitable[Sequence[T]]]) -> None:
        self._function = function
        self._batcher: Batcher[_Call[ItemT, T], list[T]] = Batcher(self._process)

    async def __call__(self, items: Iterable[ItemT]) -> list[T]:
        """The outcomes of the items, in order. An error of the batch is raised in each of its callers."""
        call: _Call[ItemT, T] = _Call(list(items))
        if not call.items:
            return []
        (outcomes,) = await self._batcher.submit([call])
        return outcomes

    async def _process(self, calls: list[_Call[ItemT, T]]) -> None:
        items = [item for call in calls for item in call.items]
        outcomes = list(await self._function(items))
        if len(outcomes) != len(items):
            raise ValueError(f"the function returned {len(outcomes)} outcomes for {len(items)} items")
        start = 0
        for call in calls:
            end = start + len(call.items)
            call.settle(outcomes[start:end])
            start = end
