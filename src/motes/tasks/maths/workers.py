"""Math-Verify in processes of its own, which can be killed.

An answer may take it forever (10^{10^{10}}), and its own time limits are signals, which only work in a main thread and
do not interrupt a computation in C. So it runs in a few long-lived processes. They are started by their command, not
forked, so that they share nothing with torch or threads; Ctrl-C does not reach them, and they end when their standard
input does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError, MissingExtraError
from motes.tasks.processes import Pool, once_per_process

TIMEOUT_SECONDS = 10.0
"""Time within which a comparison must end."""
START_SECONDS = 120.0
"""Time within which a worker must start: it loads sympy, perhaps from a cold disk."""
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))


class Worker:
    """One process, which serves one request at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
        )

    def is_ready(self) -> bool:
        return self._read(START_SECONDS) is not None

    def ask(self, request: Sequence[str], timeout: float) -> dict[str, Any] | None:
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


class Grader(Pool[Worker]):
    """A pool of workers, for requests from any thread. Outcomes are remembered, and equal requests are sent once.

    Args:
        num_workers: maximum number of processes. They are started when they are needed.
        timeout: seconds that one request may take.
        command: that starts a worker; the timeout is its last argument.
    """

    def __init__(self, num_workers: int = 2, timeout: float = TIMEOUT_SECONDS, command: Sequence[str] = WORKER) -> None:
        super().__init__(Worker, (*command, f"{timeout}"), num_workers, "grader")
        if not timeout > 0:
            raise ConfigurationError(f"a grader needs some time, not {timeout}")
        self.timeout = timeout
        self.num_requests = 0
        self._outcome = lru_cache(maxsize=65536)(self._send)
        self._locks: WeakValueDictionary[tuple[str, ...], Any] = WeakValueDictionary()  # by request
        self._locks_guard = threading.Lock()

    def verify(self, gold: str, prediction: str) -> bool:
        """Whether Math-Verify finds `prediction` equal to `gold`. Not symmetric.

        Raises:
            GraderError: it fails, or does not decide in time (`GraderTimeoutError`).
        """
        return bool(self._request("verify", gold, prediction))

    def canonical(self, answer: str) -> str | None:
        """A name that answers of the same value share; None for one that is not mathematics. Raises: see `verify`."""
        name: str | None = self._request("canonical", answer)
        return name

    def _request(self, *request: str) -> Any:
        with self._locks_guard:
            lock = self._locks.setdefault(request, threading.Lock())
        with lock:  # equal requests of other threads wait for the outcome
            outcome = self._outcome(request)
        if isinstance(outcome, GraderError):
            raise type(outcome)(str(outcome))
        return outcome

    def _send(self, request: tuple[str, ...]) -> Any:
        """The reply's value, or the error, which is remembered, too: a second attempt would take as long to fail."""
        self.num_requests += 1
        try:
            reply = self.ask(lambda worker: worker.ask(request, self.timeout))
        except GraderTimeoutError as error:
            return error
        if reply is None:
            return GraderError("the grader died of it, twice")
        return GraderError(f"Math-Verify failed: {reply['error']}") if "error" in reply else reply["value"]


def shared() -> Grader:
    """The grader of this process, which is closed when the process ends.

    Raises:
        MissingExtraError: Math-Verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise MissingExtraError("grading mathematics", "math")
    return _shared()


_shared = once_per_process(Grader)
