"""Programs against their tests, in processes that are confined and killed.

See `motes.tasks.code.server` for who holds what, and `motes.tasks.code.confinement` for what a program cannot do.

What remains: a program that answers all the tests' calls as the reference does is right, however it does so. It runs
with the interpreter and the packages of this environment and can read their files. It can use its limits to the full:
a core for `Limits.seconds`, its memory, its files for a moment. A hole in the kernel is a hole in the sandbox: who runs
programs of strangers on a machine that matters puts a container or a virtual machine around it all.
"""

from __future__ import annotations

import atexit
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
from functools import cache, lru_cache
from pathlib import Path
from typing import IO

from motes.errors import ConfigurationError, GraderError, GraderTimeoutError
from motes.tasks.code.confinement import Limits, available
from motes.tasks.processes import Pool

STARTING = 60.0
"""Seconds that a server may take to start: it loads numpy, from a cold disk perhaps."""
SERVER = (sys.executable, "-s", "-P", str(Path(__file__).with_name("server.py")))
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0",
}  # fmt: skip
"""Of a server, which needs one thread to fork, and of nothing else that is in ours; programs have none at all."""
BEGUN = "begun\n"
"""What an examiner says before its first test, so that one that died of its own tests is told from one that did not."""
_NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
"""What an interpreter may not start without, and where it keeps the folders of programs."""


@dataclass(frozen=True)
class ProgramTests:
    """What a program is held against.

    Attributes:
        tests: Python, which calls the program's functions and raises where they return something wrong. Where it
            defines `check`, that is called with the entry point.
        entry_point: the function that the program has to define. Whatever else the tests use and do not define is a
            function of the program, too.
        prelude: Python that stands before the program and before the tests, or a beginning that the program completes.
    """

    tests: str
    entry_point: str | None = None
    prelude: str = ""


class Server:
    """A process that runs one program at a time.

    Raises:
        GraderError: it does not start.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair()
        environment = _ENVIRONMENT | {name: os.environ[name] for name in _NEEDED if name in os.environ}
        try:
            self._process = subprocess.Popen(
                (*command, str(theirs.fileno())), pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, env=environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._control.close()
            raise GraderError(f"the sandbox does not start: {error}") from error
        finally:
            theirs.close()
        ready = None
        try:
            with contextlib.suppress(GraderTimeoutError):
                ready = self._read(STARTING)
        finally:
            if ready is None:
                self.close()
        if ready is None:
            raise GraderError(f"the sandbox does not start: {' '.join(command)}")

    def run(self, tests: ProgramTests, program: str, limits: Limits) -> tuple[str, str] | None:
        """Why the examiner ended, and what it said; None where the server died instead."""
        prelude = {"prelude": tests.prelude}
        examined = prelude | {"tests": tests.tests, "entry_point": tests.entry_point}
        inside, outside = os.pipe()
        try:
            with _file(examined) as first, _file(prelude | {"program": program}) as second:
                request = json.dumps(dataclasses.asdict(limits)).encode()
                socket.send_fds(self._control, [request], [first.fileno(), second.fileno(), outside])
            os.close(outside)
            outside = -1
            reason = self._read(limits.patience + STARTING)
            return None if reason is None else (reason, _everything(inside) if reason == "ended" else "")
        except (BrokenPipeError, ConnectionResetError):
            return None
        finally:
            os.close(inside)
            if outside >= 0:
                os.close(outside)

    def _read(self, timeout: float) -> str | None:
        """The server's next line; None where it is gone.

        Raises:
            GraderTimeoutError: there is none in time.
        """
        self._control.settimeout(timeout)
        try:
            line = self._control.recv(100)
        except TimeoutError:
            raise GraderTimeoutError(f"the sandbox says nothing within {timeout:g} seconds") from None
        except OSError:
            return None
        finally:
            with contextlib.suppress(OSError):
                self._control.settimeout(None)
        return line.decode().strip() or None

    def close(self) -> None:
        """End it, and what it runs; wait until it is gone. It kills a program that runs when we hang up."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # which closing does not do while another thread reads
        self._control.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _file(content: object) -> Iterator[IO[bytes]]:
    """A file without a name that holds this, for whoever it is passed to."""
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(content).encode())
        file.seek(0)
        yield file


def _everything(descriptor: int) -> str:
    """What was written to a pipe that nobody writes to any more."""
    parts = []
    while part := os.read(descriptor, 1 << 16):
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


class Sandbox:
    """A pool of servers. Any thread may ask; what was run before is known.

    Args:
        num_workers: programs at once, at most. Servers are started when they are needed.
        limits: of each program. The tests may use four times the memory.
        command: what starts a server.
    """

    def __init__(self, num_workers: int = 2, limits: Limits | None = None, command: Sequence[str] = SERVER) -> None:
        if num_workers < 1:
            raise ConfigurationError(f"a sandbox needs a worker, not {num_workers}")
        self.limits = limits or Limits()
        self._pool = Pool(lambda: Server(command), num_workers, "sandbox")
        self._judged = lru_cache(maxsize=65536)(self._judge)

    def passes(self, tests: ProgramTests, program: str) -> bool:
        """Whether a program passes its tests. One that reaches a limit, or ends before they do, does not.

        Raises:
            GraderError: the tests say nothing, since they are broken or cannot be run.
        """
        return self._judged(tests, program)

    def _judge(self, tests: ProgramTests, program: str) -> bool:
        # Run twice at most, since a server may have been killed for reasons of others: for memory, by an operator.
        outcome = self._try(tests, program) or self._try(tests, program)
        if outcome is None:
            raise GraderError("the sandbox died of the program, twice")
        reason, said = outcome
        has_begun = said.startswith(BEGUN)
        verdict, _, why = said.removeprefix(BEGUN).partition("\n")
        if verdict == "broken" or (reason == "ended" and not has_begun):
            raise GraderError(f"the tests are broken: {why or 'they cannot be begun'}")
        return verdict == "right"

    def _try(self, tests: ProgramTests, program: str) -> tuple[str, str] | None:
        return self._pool.ask(lambda server: server.run(tests, program, self.limits))

    def close(self) -> None:
        """End all servers and what they run; no other is started."""
        self._pool.close()


def require_confinement() -> None:
    """Refuse to run programs where they could change the files of this user.

    Raises:
        ConfigurationError: they could.
    """
    if not available().protect_the_user:
        raise ConfigurationError(
            "programs cannot be confined here: use Linux 5.13 or later with Landlock, on x86-64 or ARM64, or run this "
            "as root in a container; or let them run as you, within limits only: NAME?sandbox=limits"
        )


def shared() -> Sandbox:
    """This process's sandbox, closed when the process ends."""
    return _shared(os.getpid())  # a forked process has servers of its own


@cache
def _shared(process: int) -> Sandbox:
    sandbox = Sandbox(num_workers=min(8, max(2, (os.cpu_count() or 2) // 2)))
    atexit.register(sandbox.close)
    return sandbox
