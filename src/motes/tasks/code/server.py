"""The sandbox's own process: forks, for each program, one process that has the tests and one that runs the program.

    motes ── tests ──▶ examiner ◀── calls, plain data ──▶ candidate ◀── program ── motes
      ▲                   │
      └───── verdict ─────┘

The examiner has the tests, and the pipe for the verdict. The candidate has the program, and a socket to the examiner:
it receives a function's name and arguments, and sends the function's result. Both are confined. This process passes
their files on without reading them: every candidate gets a copy of its memory, which must contain no tests.

`motes.tasks.code.sandbox` runs it as a file, and is connected to it by the socket whose number is its argument. It
imports nothing of motes, so that it starts alone and fast, with an empty environment.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import gc
import importlib
import json
import math
import os
import select
import shutil
import signal
import socket
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import time
import types
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

PRELOADED = (  # noqa: SIM905
    "abc array ast base64 binascii bisect calendar cmath codecs collections collections.abc contextlib copy csv "
    "dataclasses datetime decimal difflib encodings.idna encodings.latin_1 enum fractions functools gc graphlib "
    "hashlib heapq hmac html inspect io itertools json keyword locale logging math numbers numpy numpy.linalg "
    "numpy.random numpy.testing operator pathlib pickle pprint pwd queue random re resource secrets statistics string "
    "struct _strptime textwrap threading time timeit traceback types typing unicodedata unittest urllib.parse uuid "
    "warnings weakref zlib zoneinfo"
).split()
"""Modules that programs import, loaded in advance: if "nobody" may not read Python's own folders, these are all."""
WATCH_SECONDS = 0.05
"""Time between two checks of a program's folder."""
READABLE = ("/usr", "/lib", "/lib64", "/etc/localtime", "/etc/ld.so.cache")


def load_sibling(name: str) -> Any:
    loader = SourceFileLoader(f"motes_sandbox_{name}", str(Path(__file__).with_name(f"{name}.py")))
    module = sys.modules[loader.name] = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module


wire = load_sibling("wire")
confinement = load_sibling("confinement")


# The candidate: runs the program.


def run_program(connection: socket.socket, prelude: str, program: str) -> None:
    """Run a program, then call its functions at the examiner's requests."""
    failure: Exception | None = None
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        load_program(module.__dict__, prelude, program)
    except Exception as error:
        failure = error
    while True:
        try:
            request = wire.receive(connection)
        except EOFError:
            return
        try:
            if failure is not None:
                raise failure.with_traceback(None)
            function = getattr(module, request["call"])
            value = function(*wire.decode(request["args"]), **wire.decode(request["kwargs"]))
            reply = {"value": wire.encode(value)}
        except Exception as error:
            reply = {"error": [type(error).__name__, str(error)[:1000]]}
        wire.send(connection, reply)


def load_program(namespace: dict[str, Any], prelude: str, program: str) -> None:
    """Run the prelude and a program in `namespace`. The program may be the rest of the prelude's last function."""
    exec(compile(prelude, "<prelude>", "exec"), namespace)
    try:
        code = compile(program, "<program>", "exec")
    except SyntaxError:
        if not prelude.strip():
            raise
        code = compile(f"{prelude}\n{program}", "<program>", "exec")
    exec(code, namespace)


# The examiner: runs the tests.


class GoneError(BaseException):
    """The candidate is gone, or its message is no reply: no test can continue, and no test can catch this error."""


class ProgramError(Exception):
    """The program raised an exception that is not built into Python."""


class Function:
    """A function of the candidate."""

    calls = 0
    raised: BaseException | None = None

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._connection = connection
        self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        Function.calls += 1
        request = {"call": self.__name__, "args": wire.encode(args), "kwargs": wire.encode(kwargs)}
        try:
            wire.send(self._connection, request)
            reply = wire.receive(self._connection)
            ((kind, content),) = reply.items()
            if kind == "value":
                return wire.decode(content)
            name, message = content
        except (EOFError, OSError):
            raise GoneError("the program ended before the tests did") from None
        except Exception as error:
            raise GoneError(f"the program's message is no reply: {type(error).__name__}") from None
        Function.raised = exception(str(name), str(message))
        raise Function.raised


def exception(name: str, message: str) -> Exception:
    """The built-in exception with that name; a `ProgramError` for any other name."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some need more than a message
            return kind(message)
    return ProgramError(f"{name}: {message}")


def examine(
    connection: socket.socket, prelude: str, tests: str, entry_point: str | None, begin: Callable[[], object]
) -> tuple[str, str]:
    """Run the tests on the candidate's functions; returns "right", "wrong" or "broken" (undecided), and the reason.

    The functions are the entry point, and all other names that the tests use and nobody defines. `begin` is called
    before the first test.
    """
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    try:
        distinguish_empty_arrays()
        exec(compile(prelude, "<prelude>", "exec"), namespace)
        names = {*undefined(tests, namespace), *filter(None, (entry_point,))}
        namespace |= {name: Function(connection, name) for name in names}
        code = compile(tests, "<tests>", "exec")
        begin()
        exec(code, namespace)
        if entry_point is not None and callable(check := namespace.get("check")):
            check(namespace[entry_point])
    except GoneError as error:
        return "wrong", str(error)
    except BaseException as error:
        errors_of_tests = (NameError, ImportError, SyntaxError, SystemExit) if Function.calls else BaseException
        is_broken = isinstance(error, errors_of_tests) and error is not Function.raised
        return "broken" if is_broken else "wrong", f"{type(error).__name__}: {error}"[:1000]
    return ("right", "") if Function.calls else ("broken", "they call no function of the program")


def distinguish_empty_arrays() -> None:
    """Make numpy's comparisons of floats fail between an empty list and anything that is not empty. By default they
    succeed, as no pair of numbers differs."""
    try:
        import numpy as np
    except ImportError:
        return

    def with_check(compare: Callable[..., Any]) -> Callable[..., Any]:
        def check_and_compare(actual: Any, desired: Any, *args: Any, **kwargs: Any) -> Any:
            if (np.size(actual) == 0) != (np.size(desired) == 0):
                raise AssertionError("one of them is empty")
            return compare(actual, desired, *args, **kwargs)

        return check_and_compare

    for module, name in ((np, "allclose"), (np.testing, "assert_allclose"), (np.testing, "assert_almost_equal")):
        setattr(module, name, with_check(getattr(module, name)))


def undefined(tests: str, namespace: dict[str, Any]) -> set[str]:
    """The names that the tests use, and that neither they, `namespace` nor Python define."""
    used: set[str] = set()
    defined = {*namespace, *dir(builtins)}
    tables = [symtable.symtable(tests, "<tests>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module" or symbol.is_global():
                names = defined if symbol.is_assigned() or symbol.is_imported() else used
                names.add(symbol.get_name())
    return used - defined


# This process.


def start(work: Callable[[], None], keep: list[int], folder: str | None, limits: Any) -> int:
    """Fork a confined process that calls `work`, and return its id. The files `keep` become its descriptors 3, 4, …"""
    if process := os.fork():
        return process
    try:
        # 1) no other open files
        copies = [os.dup(descriptor) for descriptor in keep]
        out_of_the_way = [os.dup2(copy, 200 + i) for i, copy in enumerate(copies)]
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        for i, descriptor in enumerate(out_of_the_way):
            os.dup2(descriptor, 3 + i)
        os.closerange(3 + len(keep), 4096)
        # 2) no environment, and all layers of confinement
        os.chdir(folder or "/")
        os.environ.clear()
        prefixes = {sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("platlib")}
        confinement.confine(limits, readable=[*READABLE, *prefixes], writable=folder and ".")
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def read_json(descriptor: int) -> Any:
    with os.fdopen(descriptor, "rb") as file:
        return json.loads(file.read())


def run_examiner() -> None:
    """Examine the candidate. Files: the tests, the candidate, the verdict."""
    job, candidate = read_json(3), socket.socket(fileno=4)
    verdict, why = examine(candidate, **job, begin=lambda: os.write(5, b"begun\n"))
    os.write(5, f"{verdict}\n{why}".encode())


def run_candidate() -> None:
    """Run the program. Files: the program, the examiner."""
    run_program(socket.socket(fileno=4), **read_json(3))


def supervise(control: socket.socket, files: list[int], limits: Any) -> str:
    """Let an examiner and a candidate work until the examiner ends, or a limit is reached; returns the reason. The
    files are those of the tests, the program, and the pipe for the verdict."""
    tests, program, verdict = files
    folder = tempfile.mkdtemp(prefix="motes-")
    here, there = socket.socketpair()
    alive, alive_end = os.pipe()  # readable as soon as the examiner, which keeps the other end, has ended
    processes = []
    try:
        # 1) start both, and close their files here
        if confinement.available().other_user:
            os.chown(folder, *confinement.nobody())
        wider = dataclasses.replace(limits, memory=4 * limits.memory, seconds=math.ceil(limits.patience))
        processes.append(start(run_examiner, [tests, here.fileno(), verdict, alive_end], None, wider))
        processes.append(start(run_candidate, [program, there.fileno()], folder, limits))
        for descriptor in (*files, alive_end):
            os.close(descriptor)
        here.close()
        there.close()
        # 2) wait
        deadline = time.monotonic() + limits.patience
        while True:
            ready, _, _ = select.select([alive, control.fileno()], [], [], WATCH_SECONDS)
            if control.fileno() in ready:
                return "nobody waits"
            if alive in ready:
                return "ended"
            if time.monotonic() > deadline:
                return "time"
            if exceeds(folder, limits):
                return "files"
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for process in processes:
            os.waitpid(process, 0)
        os.close(alive)
        remove(folder)


def exceeds(folder: str, limits: Any) -> bool:
    """Whether a folder contains more than a program may write."""
    count = size = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_size
            count += 1
            if count > limits.files or size > limits.total_bytes:
                return True
    return False


def remove(folder: str) -> None:
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):  # nested more deeply than Python can handle
        subprocess.run(["rm", "-rf", "--", folder], check=False, stdin=subprocess.DEVNULL)


def main(descriptor: int) -> None:
    sys.dont_write_bytecode = True
    sys.set_int_max_str_digits(0)  # tests have integers of a million digits
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # the collector skips these objects, so that forked processes need no copies of their memory
    control = socket.socket(fileno=descriptor)
    control.sendall(b"ready\n")
    while True:
        request, files, _, _ = socket.recv_fds(control, 4096, 3)
        if not request:
            return
        reason = supervise(control, files, confinement.Limits(**json.loads(request)))
        try:
            control.sendall(f"{reason}\n".encode())
        except OSError:  # the sandbox's process has ended
            return


if __name__ == "__main__":
    main(int(sys.argv[1]))
