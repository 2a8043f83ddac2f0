"""Runs programs against their tests, in processes that are confined and killed.

See `motes.tasks.code.server` for the processes, and `motes.tasks.code.confinement` for the rights that a program lacks.

Limits of the confinement: a program that answers all calls of the tests as the reference does is right, however it does
so. It runs with the interpreter and the packages of this environment and can read their files. It can use up its
limits: a core for `Limits.seconds`, its memory, its files for a moment. A hole in the kernel is a hole in the sandbox:
if you run programs of strangers on a machine that matters, do so in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError
from motes.tasks.code.confinement import Limits, available
from motes.tasks.processes import Pool, once_per_process

START_SECONDS = 60.0
"""Time within which a server must start: it loads numpy, perhaps from a cold disk."""
SERVER = (sys.executable, "-s", "-P", str(Path(__file__).with_name("server.py")))
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
}  # fmt: skip
"""The environment of a server, which must have one thread to fork. Programs have no environment at all."""
_COMMON_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""Variables of our environment that a server gets, too: an interpreter may need the first two to start, and keeps the
folders of programs in the last."""
BEGUN = "begun\n"
"""Sent by an examiner before its first test. If an examiner ends before it has sent this, its tests are broken."""


@dataclass(frozen=True)
class ProgramTests:
    """The tests that a program has to pass.

    Attributes:
        tests: Python code that calls the program's functions and raises if their results are wrong. If it defines
            `check`, that is called with the entry point.
        entry_point: the function that the program has to define. All other names that the tests use and do not define
            are functions of the program, too.
        prelude: Python code before the program and before the tests, or a beginning that the program completes.
    """

    tests: str
    entry_point: str | None = None
    prelude: str = ""


class Server:
    """A process that runs one program at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair()
        environment = _ENVIRONMENT | {name: os.environ[name] for name in _COMMON_VARIABLES if name in os.environ}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    (*command, str(theirs.fileno())), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError:
                self._control.close()
                raise

    def is_ready(self) -> bool:
        return self._read(START_SECONDS) is not None

    def run(self, tests: ProgramTests, program: str, limits: Limits) -> tuple[str, str] | None:
        """The reason why the examiner ended, and its report; None if the server died instead."""
        examiner_job = {"prelude": tests.prelude, "tests": tests.tests, "entry_point": tests.entry_point}
        candidate_job = {"prelude": tests.prelude, "program": program}
        reader, writer = os.pipe()
        with open(reader, "rb") as report:
            with open(writer, "wb"), _temporary_file(examiner_job) as first, _temporary_file(candidate_job) as second:
                request = json.dumps(dataclasses.asdict(limits)).encode()
                try:
                    socket.send_fds(self._control, [request], [first.fileno(), second.fileno(), writer])
                except OSError:  # the server is gone, or was closed by another thread
                    return None
            if (reason := self._read(limits.patience + START_SECONDS)) is None:
                return None
            return reason, report.read().decode(errors="replace") if reason == "ended" else ""

    def _read(self, timeout: float) -> str | None:
        """The server's next line; None if it is gone. Raises GraderTimeoutError if no line comes in time."""
        try:
            self._control.settimeout(timeout)
            line = self._control.recv(100)
        except TimeoutError:
            raise GraderTimeoutError(f"the sandbox does not reply within {timeout:g} seconds") from None
        except OSError:
            return None
        return line.decode().strip() or None

    def close(self) -> None:
        """End the server, and wait until it is gone. It kills the program that it runs when this side hangs up."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # closing does not hang up while another thread reads
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _temporary_file(content: object) -> Iterator[IO[bytes]]:
    """A file without a name that contains `content`, to be passed to another process."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(content).encode())
        file.seek(0)
        yield file


class Sandbox(Pool[Server]):
    """A pool of servers, for calls from any thread. Verdicts are remembered.

    Args:
        num_workers: maximum number of programs that run at once. Servers are started when they are needed.
        limits: of each program. The tests may use four times the memory.
        command: that starts a server.
    """

    def __init__(self, num_workers: int = 2, limits: Limits | None = None, command: Sequence[str] = SERVER) -> None:
        super().__init__(Server, command, num_workers, "sandbox")
        self.limits = limits or Limits()
        self._passes = lru_cache(maxsize=65536)(self._run_tests)

    def passes(self, tests: ProgramTests, program: str) -> bool:
        """Whether a program passes its tests. One that reaches a limit, or ends before the tests do, does not.

        Raises:
            GraderError: the tests cannot decide, since they are broken or cannot be run.
        """
        return self._passes(tests, program)

    def _run_tests(self, tests: ProgramTests, program: str) -> bool:
        outcome = self.ask(lambda server: server.run(tests, program, self.limits))
        if outcome is None:
            raise GraderError("the sandbox died of the program, twice")
        reason, report = outcome
        has_begun = report.startswith(BEGUN)
        verdict, _, why = report.removeprefix(BEGUN).partition("\n")
        if verdict == "broken" or (reason == "ended" and not has_begun):
            raise GraderError(f"the tests are broken: {why or 'they cannot be started'}")
        return verdict == "right"


def require_confinement() -> None:
    """Raise ConfigurationError if programs could change the files of this user."""
    if not available().protect_the_user:
        raise ConfigurationError(
            "programs cannot be confined here: use Linux 5.13 or later with Landlock, on x86-64 or ARM64, or run this "
            "as root in a container; or let them run as you, within limits only: NAME?sandbox=limits"
        )


shared = once_per_process(lambda: Sandbox(num_workers=min(8, max(2, (os.cpu_count() or 2) // 2))))
"""The sandbox of this process, which is closed when the process ends."""
