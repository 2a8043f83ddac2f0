"""Math-Verify in processes of its own, which can be killed.

What it is asked may take for ever (10^{10^{10}}), and its own time limits are signals, which work in a main thread
only and do not interrupt a computation in C. So it runs in a few long-lived processes. They are started by their
command, not forked, so that they share nothing with torch or threads; they are out of reach of Ctrl-C, and end when
their standard input does.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError, MissingExtraError
from motes.tasks.processes import Pool

TIMEOUT = 10.0
"""Seconds that one comparison may take."""
STARTING = 120.0
"""Seconds that a worker may take to start: it loads sympy, from a cold disk perhaps."""
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))


class Worker:
    """One process, asked one thing at a time.

    Raises:
        GraderError: it does not start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
        )
        ready = None
        try:
            with contextlib.suppress(GraderTimeoutError):
                ready = self._read(STARTING)
        finally:
            if ready is None:
                self.close()
        if ready is None:
            raise GraderError(f"the grader does not start: {' '.join(command)}")

    def ask(self, request: Sequence[str], timeout: float) -> dict[str, Any] | None:
        """Its reply; None where it died instead.

        Raises:
            GraderTimeoutError: there is none in time. The process is killed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return self._read(timeout)
        except (BrokenPipeError, ValueError):  # it died before, or was closed by another thread
            return None

    def _read(self, timeout: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line.endswith("\n"):
            reply: dict[str, Any] = json.loads(line)
            return reply
        if expired.is_set():
            raise GraderTimeoutError(f"not graded within {timeout:g} seconds")
        return None

    def close(self) -> None:
        """Kill it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):  # what could not be written any more
                pipe.close()


class Grader:
    """A pool of workers. Any thread may ask; what was asked before is known, what is being asked is asked once.

    Args:
        num_workers: processes at most. They are started when they are needed.
        timeout: seconds that one request may take.
        command: what starts a worker; the timeout is its last argument.
    """

    def __init__(self, num_workers: int = 2, timeout: float = TIMEOUT, command: Sequence[str] = WORKER) -> None:
        if num_workers < 1 or not timeout > 0:
            raise ConfigurationError(f"a grader needs a worker and some time, not {num_workers} and {timeout}")
        self.timeout = timeout
        self.num_requests = 0
        self._command = (*command, f"{timeout}")
        self._pool = Pool(lambda: Worker(self._command), num_workers, "grader")
        self._answered = lru_cache(maxsize=65536)(self._answer)
        self._turns: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()  # a lock for each request
        self._guard = threading.Lock()

    def verify(self, gold: str, prediction: str) -> bool:
        """Whether Math-Verify finds that `prediction` is `gold`. Not symmetric.

        Raises:
            GraderTimeoutError: it finds nothing in time.
            GraderError: it fails.
        """
        return bool(self._ask("verify", gold, prediction))

    def canonical(self, answer: str) -> str | None:
        """A name that answers of the same value share, None for what is no mathematics.

        Raises:
            GraderError: as `verify`.
        """
        name: str | None = self._ask("canonical", answer)
        return name

    def _ask(self, *request: str) -> Any:
        with self._guard:
            turn = self._turns.setdefault(request, threading.Lock())
        with turn:  # whoever asks the same meanwhile waits for the reply
            outcome = self._answered(request)
        if isinstance(outcome, GraderError):
            raise type(outcome)(str(outcome))
        return outcome

    def _answer(self, request: tuple[str, ...]) -> Any:
        """The reply's value, or the error: failing again takes as long as failing."""
        self.num_requests += 1
        try:
            # Asked twice, since a worker may have been killed for reasons of others: for memory, by an operator.
            reply = self._try(request) or self._try(request)
        except GraderTimeoutError as error:
            return error
        if reply is None:
            return GraderError("the grader died of it, twice")
        return GraderError(f"Math-Verify failed: {reply['error']}") if "error" in reply else reply["value"]

    def _try(self, request: Sequence[str]) -> dict[str, Any] | None:
        return self._pool.ask(lambda worker: worker.ask(request, self.timeout))

    def close(self) -> None:
        """End all workers; no other is started. Who waits for one is told so."""
        self._pool.close()


def shared() -> Grader:
    """This process's grader, closed when the process ends.

    Raises:
        MissingExtraError: Math-Verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError("grading mathematics", "math")
    return _shared(os.getpid())  # a forked process has workers of its own


@cache
def _shared(process: int) -> Grader:
    grader = Grader()
    atexit.register(grader.close)
    return grader
