"""Long-lived processes that can be killed, and pools of them, for calls from any number of threads."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError
from motes.threads import abandoned


class Process(Protocol):
    def is_ready(self) -> bool: ...  # waits until it is, or raises GraderTimeoutError

    def close(self) -> None: ...


class JsonProcess:
    """A process that reads one request per line and writes one reply per line, both in JSON, after a first reply that
    says that it is ready. It serves one request at a time. Ctrl-C does not reach it, and it should end when its
    standard input does."""

    start_seconds = 20.0
    """Time within which it must start."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
        )

    def is_ready(self) -> bool:
        return self._read(self.start_seconds) is not None

    def ask(self, request: Sequence[Any], timeout: float) -> dict[str, Any] | None:
        """The process's reply to a request; None if it died instead. If there is no reply in time, the process is
        killed. Raises GraderTimeoutError in this case."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._read(timeout)
        except (BrokenPipeError, ValueError):  # it died before, or was closed by another thread
            return None

    def _read(self, timeout: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        timer = threading.Timer(timeout, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        if time.monotonic() >= deadline:
            raise GraderTimeoutError(f"not graded within {timeout:g} seconds")
        return None

    def close(self) -> None:
        """Kill the process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):  # text in its buffer can no longer be written
                pipe.close()


ProcessT = TypeVar("ProcessT", bound=Process)
T = TypeVar("T")


class Pool(Generic[ProcessT]):
    """Processes, each of which serves one call at a time. They are started when they are needed.

    Args:
        start: starts a process by its command.
        command: of each process.
        size: maximum number of processes.
        name: of the pool, in messages.

    Attributes:
        processes: all running ones.
    """

    def __init__(
        self, start: Callable[[Sequence[str]], ProcessT], command: Sequence[str], size: int, name: str
    ) -> None:
        if size < 1:
            raise ConfigurationError(f"a {name} needs a worker, not {size}")
        self.processes: set[ProcessT] = set()
        self._start = start
        self._command = command
        self._name = name
        self._slots = threading.BoundedSemaphore(size)
        self._idle: deque[ProcessT] = deque()
        self._closed = False

    def ask(self, question: Callable[[ProcessT], T | None]) -> T | None:
        """A process's answer to a question; None if two processes died of it. One alone may have been killed for other
        reasons, by an operator or for lack of memory.

        Raises:
            GraderError: the pool is closed, a process does not start, or nobody waits for the answer any more.
        """
        return self._ask_once(question) or self._ask_once(question)

    def _ask_once(self, question: Callable[[ProcessT], T | None]) -> T | None:
        with self._slots:
            if self._closed:
                raise GraderError(f"the {self._name} is closed")
            if abandoned():  # while this call waited for a process
                raise GraderError("the run that waits for the grader has ended")
            try:
                process = self._idle.pop()
            except IndexError:  # no check before `pop`: between the two, another thread could take the last process
                process = self._start_process()
            answer = None
            try:
                answer = question(process)
            finally:
                if answer is None:  # it is dead, or after an exception may still reply to this question
                    self.processes.discard(process)
                    process.close()
                else:
                    self._idle.append(process)
        return answer

    def _start_process(self) -> ProcessT:
        try:
            process = self._start(self._command)
        except OSError as error:
            raise GraderError(f"the {self._name} does not start: {error}") from error
        with contextlib.ExitStack() as unless_ready:
            unless_ready.callback(process.close)
            with contextlib.suppress(GraderTimeoutError):
                if process.is_ready():
                    self.processes.add(process)
                    if not self._closed:  # while the process started
                        unless_ready.pop_all()
                    return process
        raise GraderError(f"the {self._name} does not start: {' '.join(self._command)}")

    def close(self) -> None:
        """End all processes; no other is started. Calls that wait for a process fail."""
        self._closed = True
        for process in self.processes.copy():
            process.close()


PoolT = TypeVar("PoolT", bound=Pool[Any])


def once_per_process(make: Callable[[], PoolT]) -> Callable[[], PoolT]:
    """A function that makes a pool when it is first called, and returns the same one until the process ends, which
    closes it. A forked process gets a pool of its own."""

    @cache
    def pool_of(process: int) -> PoolT:
        pool = make()
        atexit.register(pool.close)
        return pool

    return lambda: pool_of(os.getpid())
