"""A thread in which concurrent calls are served in one batch."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch

from motes.errors import MotesError

RequestT = TypeVar("RequestT", bound="Request")

IDLE_SECONDS = 5.0

_WORKERS: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop all threads before Python exits: a daemon thread that is inside torch then would abort the process."""
    for worker in list(_WORKERS):
        worker.stop()


class Request:
    """One unit of a call's work, with the future that its caller awaits."""

    __slots__ = ("future", "loop", "outbox")

    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    outbox: Outbox

    def attach(self, outbox: Outbox) -> asyncio.Future[Any]:
        self.loop = asyncio.get_running_loop()
        self.future = self.loop.create_future()
        self.outbox = outbox
        return self.future

    @property
    def settled(self) -> bool:
        """Whether nobody waits for it any more: it has a result, or was withdrawn."""
        return self.future.done() or self.loop.is_closed()

    def resolve(self, result: object) -> None:
        """Send the caller the result, at the next delivery of the outbox."""
        self.outbox.put(self.loop, lambda: None if self.future.done() else self.future.set_result(result))

    def fail(self, error: BaseException) -> None:
        """Send the caller an error, at the next delivery of the outbox."""
        self.outbox.put(self.loop, lambda: None if self.future.done() else self.future.set_exception(error))


class Outbox:
    """Results and errors of a round, delivered at its end: each event loop is woken once, not once per request."""

    def __init__(self) -> None:
        self._letters: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, settle: Callable[[], None]) -> None:
        self._letters.setdefault(loop, []).append(settle)

    def deliver(self) -> None:
        letters, self._letters = self._letters, {}
        for loop, settles in letters.items():
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_call_all, settles)


def _call_all(settles: list[Callable[[], None]]) -> None:
    for settle in settles:
        settle()


class Worker(ABC, Generic[RequestT]):
    """Serves requests of any number of callers and event loops in a thread of its own.

    The thread starts with the first request and ends after a few idle seconds. A subclass implements `work`, one round
    of work on the new requests and those in progress.

    Args:
        num_threads: torch's threads in this thread. The default is OMP_NUM_THREADS or half of the processors, so that
            a language model and a reward model can work side by side.
    """

    def __init__(self, name: str, num_threads: int | None = None) -> None:
        self._name = name
        self._num_threads = num_threads or int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // 2))
        self._inbox: list[RequestT] = []
        self._in_progress: list[RequestT] = []  # requests that `work` has received and not settled yet
        self._outbox = Outbox()
        self._condition = threading.Condition()
        self._round = threading.Lock()  # held while the thread works or cleans up
        self._thread: threading.Thread | None = None
        self._stopping = False
        _WORKERS.add(self)

    async def submit(self, requests: Sequence[RequestT]) -> list[Any]:
        """The results, in order. Raises the first failure; cancelling the call withdraws its requests."""
        futures = [request.attach(self._outbox) for request in requests]
        with self._condition:
            self._inbox.extend(requests)
            if self._thread is None or not self._thread.is_alive():  # a forked process has inherited a dead thread
                self._round = threading.Lock()  # and perhaps a locked lock
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._condition.notify()
        return await asyncio.gather(*futures)

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether work is in progress."""

    @abstractmethod
    def work(self, arrived: list[RequestT]) -> None:
        """Do one round of work, and settle the requests that it finishes."""

    def stop(self) -> None:
        """End the thread after its current round; pending requests fail. A later request starts a new thread."""
        with self._condition:
            thread, self._stopping = self._thread, True
            self._condition.notify()
        if thread is not None and thread.is_alive():
            thread.join()
        self._stopping = False

    def rest(self) -> None:
        """Free the memory that is needed during work only."""

    @abstractmethod
    def abandon(self) -> None:
        """Drop all work in progress. Its requests have failed already."""

    @abstractmethod
    def failure(self, error: BaseException) -> MotesError:
        """The error that callers get when `work` raised `error`."""

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._num_threads)
            while self._wait():
                with self._round, torch.inference_mode():
                    try:
                        self.work(self._accept())
                        self._outbox.deliver()
                    except BaseException as error:  # callers are waiting: every error is theirs
                        self._fail(error)
                        self.abandon()
        except BaseException as error:  # cleaning up failed as well: the next request starts a new thread
            with self._condition:
                self._thread = None
                self._fail_all(error)

    def _wait(self) -> bool:
        """Wait until there is work. False when the thread is to end."""
        with self._condition:
            if not (self._inbox or self.busy or self._stopping):
                self._condition.wait_for(lambda: bool(self._inbox) or self._stopping, IDLE_SECONDS)
            if not self._stopping and (self._inbox or self.busy):
                return True
            if self._stopping:
                self._fail_all(RuntimeError("it was stopped"))
                self.abandon()
            self.rest()
            self._thread, self._in_progress = None, []
            return False

    def _accept(self) -> list[RequestT]:
        with self._condition:
            arrived, self._inbox = self._inbox, []
        if arrived:
            self._in_progress = [request for request in self._in_progress if not request.settled] + arrived
        return arrived

    def _fail_all(self, error: BaseException) -> None:
        """Like `_fail`, but includes the requests in the inbox. The caller must hold `self._condition`."""
        self._in_progress += self._inbox
        self._inbox = []
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Fail all requests in progress, each with its own error: a shared one would collect all their tracebacks."""
        for request in self._in_progress:
            failure = self.failure(error)
            failure.__cause__ = error
            request.fail(failure)
        self._outbox.deliver()
        self._in_progress = []
