"""Math-Verify in processes of its own, which can be killed.

An answer may take it forever (10^{10^{10}}), and its own time limits are signals, which only work in a main thread and
do not interrupt a computation in C. So it runs in a few long-lived processes. They are started by their command, not
forked, so that they share nothing with torch or threads; Ctrl-C does not reach them, and they end when their standard
input does.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError, MissingExtraError
from motes.tasks.processes import JsonProcess, Pool, once_per_process

TIMEOUT_SECONDS = 10.0
"""Time within which a comparison must end."""
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("worker.py")))


class Worker(JsonProcess):
    """A process that runs Math-Verify."""

    start_seconds = 120.0  # it loads sympy, perhaps from a cold disk


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
