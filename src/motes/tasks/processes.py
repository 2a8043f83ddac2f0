"""A pool of long-lived processes that can be killed, for any number of threads to ask."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from motes.errors import GraderError
from motes.threads import abandoned


class Closable(Protocol):
    def close(self) -> None: ...


ProcessT = TypeVar("ProcessT", bound=Closable)
T = TypeVar("T")


class Pool(Generic[ProcessT]):
    """Processes, each asked one thing at a time. They are started when they are needed.

    Args:
        start: makes one.
        size: processes at most.
        name: what messages call the pool.

    Attributes:
        processes: those that run.
    """

    def __init__(self, start: Callable[[], ProcessT], size: int, name: str) -> None:
        self.processes: set[ProcessT] = set()
        self._start = start
        self._name = name
        self._slots = threading.BoundedSemaphore(size)
        self._idle: deque[ProcessT] = deque()
        self._closed = False

    def ask(self, question: Callable[[ProcessT], T | None]) -> T | None:
        """What a process answers; None where it died instead.

        Raises:
            GraderError: the pool is closed, or nobody waits for the answer any more.
        """
        with self._slots:
            if self._closed:
                raise GraderError(f"the {self._name} is closed")
            if abandoned():  # while it waited for a process
                raise GraderError("the run that asked has ended")
            try:
                process = self._idle.pop()
            except IndexError:
                process = self._started()
            answer = None
            try:
                answer = question(process)
            finally:
                if answer is None:  # it is dead, or, after an exception, may yet reply to a question of the past
                    self.processes.discard(process)
                    process.close()
                else:
                    self._idle.append(process)
        return answer

    def _started(self) -> ProcessT:
        process = self._start()
        self.processes.add(process)
        if self._closed:  # meanwhile
            process.close()
        return process

    def close(self) -> None:
        """End all processes; no other is started. Who waits for one is told so."""
        self._closed = True
        for process in self.processes.copy():
            process.close()
