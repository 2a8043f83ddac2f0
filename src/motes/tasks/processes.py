"""A pool of long-lived processes that can be killed, for calls from any number of threads."""

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
    """Processes, each of which serves one call at a time. They are started when they are needed.

    Args:
        start: starts a process.
        size: maximum number of processes.
        name: of the pool, in messages.

    Attributes:
        processes: all running ones.
    """

    def __init__(self, start: Callable[[], ProcessT], size: int, name: str) -> None:
        self.processes: set[ProcessT] = set()
        self._start = start
        self._name = name
        self._slots = threading.BoundedSemaphore(size)
        self._idle: deque[ProcessT] = deque()
        self._closed = False

    def ask(self, question: Callable[[ProcessT], T | None]) -> T | None:
        """A process's answer to a question; None if it died instead.

        Raises:
            GraderError: the pool is closed, or nobody waits for the answer any more.
        """
        with self._slots:
            if self._closed:
                raise GraderError(f"the {self._name} is closed")
            if abandoned():  # while this call waited for a process
                raise GraderError("the run that waits for the grader has ended")
            try:
                process = self._idle.pop()
            except IndexError:
                process = self._start_process()
            answer = None
            try:
                answer = question(process)
            finally:
                if answer is None:  # it is dead, or an exception came: it may still reply to the old question
                    self.processes.discard(process)
                    process.close()
                else:
                    self._idle.append(process)
        return answer

    def _start_process(self) -> ProcessT:
        process = self._start()
        self.processes.add(process)
        if self._closed:  # while the process started
            process.close()
        return process

    def close(self) -> None:
        """End all processes; no other is started. Calls that wait for a process fail."""
        self._closed = True
        for process in self.processes.copy():
            process.close()
