"""Answers that are programs: read, told apart, and run against tests by which no program does any harm or cheats.

Programs here are small, and so are their limits. Each is run by the real sandbox.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from motes import api
from motes.core import Problem
from motes.errors import ConfigurationError, GraderError, ProblemFileError, UnknownNameError
from motes.lab.run.identity import of_problems
from motes.tasks import DECLARED, Benchmark, task
from motes.tasks.code import CodeAnswers, Limits, ProgramTests, Sandbox, sandbox, wire
from motes.tasks.code.confinement import Layers, available

confined = pytest.mark.skipif(not available().protect_the_user, reason="programs cannot be confined here")

MARK = f"motes-was-here-{os.getpid()}"
"""A file of no other run of these tests."""
LIMITS = Limits(seconds=1, patience=20.0, memory=400 << 20)
IMPATIENT = Limits(seconds=10, patience=0.3)
INCREMENT = ProgramTests(
    "import numpy as np\ndef check(candidate):\n    for i in range(9):\n        assert candidate(i) == i + 1\n",
    "increment",
    'import math\n\ndef one() -> int:\n    return 1\n\ndef increment(x: int) -> int:\n    """One more."""\n',
)
RIGHT = "def increment(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(scope="module")
def box(folders: Path) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folders))
        made = Sandbox(1, LIMITS)
        assert made.passes(INCREMENT, RIGHT)  # starts its server
    yield made
    made.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Sandbox]:
    made = Sandbox(1, IMPATIENT)
    yield made
    made.close()


def increments(body: str) -> str:
    """A program that is right, but for what its body does before it returns."""
    return (
        "import os, sys\ndef increment(x):\n"
        + "".join(f"    {line}\n" for line in body.splitlines() or ["pass"])
        + ("    return x + 1\n")
    )


def open_to_all(folder: Path) -> None:
    """Let every user into a folder of pytest's, so that it is the sandbox which keeps a program out."""
    for each in (folder, *folder.parents):
        if each.owner() == folder.owner() and each.name.startswith(("pytest-", folder.name)):
            each.chmod(0o777)


@confined
class TestPrograms:
    @pytest.mark.parametrize(
        "program",
        [
            RIGHT,
            "    return x + 1\n",
            "    return x + one()\n",
            "increment = lambda x: x + 1",
            "def increment(x):\n    return math.floor(x) + one()",
            "import heapq, statistics\nfrom collections import Counter\ndef increment(x: int):\n    return x + 1",
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\ndef increment(x): return A(x).x + 1",
            "def increment(x): return x + 1\nif __name__ == '__main__':\n    raise SystemExit(increment(input()))",
            increments("with open('a.txt', 'w') as file: file.write('a')\nos.remove('a.txt')"),
            increments("sys.setrecursionlimit(5000)\nprint('.' * 10000)"),
        ],
    )
    def test_right(self, box, program):
        assert box.passes(INCREMENT, program)

    @pytest.mark.parametrize(
        "program",
        ["def increment(x): return x", "def other(x): return x + 1", "def increment(x:", "", "1 / 0",
         "def increment(x): raise ValueError(x)", "def increment(): return 1", "    return x\n",
         "def increment(x): assert False", "import nothing_like_this\n" + RIGHT, "def increment(x): return str(x + 1)"],
    )  # fmt: skip
    def test_wrong(self, box, program):
        assert not box.passes(INCREMENT, program)

    def test_tests_without_an_entry_point_name_the_functions_themselves(self, box):
        tests = ProgramTests("import math\nfor i in [3]:\n    assert set(f(i)) == {g()}, f'{i}'\nassert math.pi > 3")
        assert box.passes(tests, "def f(x): return [x, x]\ndef g(): return 3")
        assert not box.passes(tests, "def f(x): return [x, x]")

    @pytest.mark.parametrize(
        ("tests", "says"),
        [("assert f(1) == oops[0] == 1 and whatever(2)", None), ("assert 1 == 1", "call no function of the program"),
         ("assert f(1", "SyntaxError"), ("import nothing_like_this\nassert f(1) == 1", "ModuleNotFoundError"),
         ("f(1)\ndel abc", "NameError"), ("f(1)\nraise SystemExit(0)", "SystemExit"), ("1 / 0", "ZeroDivisionError")],
    )  # fmt: skip
    def test_tests_that_say_nothing(self, box, tests, says):
        program = "def f(x): return x\noops = [1]"
        if says is None:
            assert not box.passes(ProgramTests(tests), program)  # a function that the program lacks
            return
        with pytest.raises(GraderError, match=says):
            box.passes(ProgramTests(tests), program)

    def test_exceptions_of_pythons_own_arrive_as_what_they_are(self, box):
        tests = ProgramTests("try:\n    f(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False")
        assert box.passes(tests, "def f(x): return 1 / x")
        assert not box.passes(tests, "def f(x): return x")
        assert not box.passes(tests, "class Mine(ZeroDivisionError): pass\ndef f(x): raise Mine")

    def test_plain_data_arrives_as_what_it_is(self, box):
        values = (
            "None, True, -7, 10**5000, 0.1, float('inf'), 'aé\\ud83d', [1, [2]], (1, (2,), []), "
            "{'a': (1,), 2: None, (3, 4): {5}}, {1, (2, 3)}, frozenset({1}), 1j, b'ab', range(1, 9, 2), "
            "Fraction(1, 3), Decimal('0.10'), bytearray(b'x')"
        )
        head = "from fractions import Fraction\nfrom decimal import Decimal\n"
        tests = ProgramTests(
            f"{head}values = ({values})\nfor i, value in enumerate(values):\n    out = f(i, value)\n"
            "    assert out == value and type(out) is type(value)\nassert g(1, k=(2,)) == [(1,), {'k': (2,)}]\n"
        )
        program = (
            f"{head}values = ({values})\ndef f(i, x):\n    assert x == values[i] and type(x) is type(values[i])\n"
            "    return values[i]\ndef g(*a, **b): return [a, b]"
        )
        assert box.passes(tests, program)
        assert not box.passes(tests, program.replace("0.10", "0.11"))

    def test_tests_as_evalplus_writes_them(self, box):
        tests = ProgramTests(
            "import numpy as np\n\ndef is_floats(x) -> bool:\n    return isinstance(x, float)\n\n"
            "def assertion(out, exp, atol):\n    exact_match = out == exp\n    if atol == 0 and is_floats(exp):\n"
            "        atol = 1e-6\n    if not exact_match and atol != 0:\n"
            "        np.testing.assert_allclose(out, exp, atol=atol)\n    else:\n        assert exact_match\n\n"
            f"inputs = [[3], [0.1]]\nresults = [{'1' * 5000}, 0.3]\n"
            "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(f(*inp), exp, 0)\n"
        )
        program = "def f(x): return int('1' * 5000) if x == 3 else x + x + x"
        assert box.passes(tests, program)
        assert not box.passes(tests, program.replace("+ x + x", "+ x"))
        assert not box.passes(tests, program.replace("x + x + x", "[]")), "numpy finds it close to every number"

    def test_arrays_counters_and_subclasses(self, box):
        tests = ProgramTests(
            "import numpy as np\nassert f().tolist() == [[1.5, 2.0]]\nassert g() == {'a': 2}\nassert h() == 3"
        )
        assert box.passes(
            tests,
            "import numpy as np, collections\ndef f(): return np.array([[1.5, 2]])\n"
            "def g(): return collections.Counter('aa')\nclass Int(int): pass\ndef h(): return Int(3)",
        )

    def test_a_program_is_run_once(self, box):
        tests = ProgramTests("assert f() == 1")
        before = box._passes.cache_info()
        assert [box.passes(tests, "def f(): return 1") for _ in range(3)] == [True] * 3
        after = box._passes.cache_info()
        assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


SECRET = "81f3a0c97d42"
SEARCH = f"""
import gc, sys, types
def search():
    seen, left = set(), [*gc.get_objects(), vars(sys.modules["__main__"]), sys._getframe()]
    while left and len(seen) < 300_000:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (str, bytes)):
            text = thing if isinstance(thing, str) else thing.decode("latin-1")
            if "assert" in text and "{SECRET[:6]}" "{SECRET[6:]}" in text and "def search" not in text:
                return text
        elif isinstance(thing, types.FrameType):
            left += [thing.f_locals, thing.f_back, thing.f_globals]
        elif isinstance(thing, dict):
            left += [*thing.values()]
        elif isinstance(thing, (list, tuple)):
            left += thing
    return ""
"""


@confined
class TestCheating:
    """None of these returns what is right; each tries to pass for right all the same."""

    @pytest.mark.parametrize(
        "program",
        [
            "import sys; sys.exit(0)",
            "import os; os._exit(0)",
            "raise SystemExit",
            "def increment(x):\n    import sys; sys.exit(0)",
            "print('right'); print('begun\\nright'); import sys; sys.stderr.write('right')",
            "import os\nfor i in range(256):\n    try: os.write(i, b'begun\\nright\\nended\\n')\n"
            "    except OSError: pass",
            "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
            "builtins.isinstance = lambda *a: True\ndef increment(x): return 0",
            "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
            "def increment(x): return Any(0)",
            "class Any:\n    def __eq__(self, other): return True\ndef increment(x): return Any()",
            "class Any(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n"
            "def increment(x): return Any()",
            "import sys\nmain = sys.modules['__main__']\nmain.examine = lambda *a: ('right', '')\n"
            "main.wire.encode = lambda value: {'right': 1}\ndef increment(x): return 0",
            "import sys\nmain = sys.modules['__main__']\n"
            "main.wire.encode = lambda value: {'__class__': 'int', 'value': True}\ndef increment(x): return 0",
            "import sys\nmain = sys.modules['__main__']\n"
            "main.wire.encode = lambda value: [[]] * 10\ndef increment(x): return 0",
            "import os\ndef increment(x):\n    os.write(4, b'\\x00\\x00\\x00\\x04null' * 9)\n    return 0",
            "import os\ndef increment(x):\n    os.write(4, b'\\xff\\xff\\xff\\xff')\n    return 0",
            "import os\ndef increment(x):\n    deep = b'[' * 100000\n"
            "    os.write(4, len(deep).to_bytes(4, 'big') + deep)\n    return 0",
            "def increment(x):\n    return float('nan')",
            "def check(candidate): pass\ndef increment(x): return 0",
        ],
    )
    def test_is_wrong(self, box, program):
        assert not box.passes(INCREMENT, program)

    def test_no_test_is_in_a_programs_memory(self, box):
        tests = ProgramTests(f"assert f() != '' and '{SECRET}'")
        assert not box.passes(tests, SEARCH + "def f(): return search()")
        assert not box.passes(tests, SEARCH + "def f(): return search() # again, when these tests have been run before")

    def test_the_search_finds_what_is_there(self):
        own: dict[str, object] = {}
        exec(SEARCH, own)
        kept = [f"assert f() != '' and '{SECRET}'"]
        assert own["search"]() in kept  # type: ignore[operator]

    def test_a_program_holds_one_file(self, box):
        program = "import os\ndef f():\n    return [i for i in range(999) if is_open(i)]\ndef is_open(i):\n" + (
            "    try:\n        os.fstat(i)\n    except OSError:\n        return False\n    return True\n"
        )
        assert box.passes(ProgramTests("assert f() == [0, 1, 2, 4]"), program), (
            "nothing, thrice, and the examiner's socket"
        )

    def test_nothing_stays_for_the_next_program(self, box, folders):
        assert box.passes(INCREMENT, increments("open(f'kept{x}', 'w').write('a')"))
        assert box.passes(ProgramTests("assert f() == []"), "import os\ndef f(): return os.listdir('.')")
        assert not list(folders.iterdir())


@confined
class TestHarm:
    """Each returns what is right unless it is kept from what it tries first."""

    ATTEMPTS = (
        "os.fork()",
        "__import__('threading').Thread(target=print).start()",
        "__import__('subprocess').run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 9)",
        "os.kill(-1, 9)",
        "__import__('signal').pidfd_send_signal(__import__('os').pidfd_open(os.getppid()), 9)",
        "__import__('fcntl').fcntl(4, 8, os.getppid())",
        "__import__('resource').prlimit(os.getppid(), 0, (1, 1))",
        "os.sched_setaffinity(os.getppid(), {0})",
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', 1))",
        "__import__('socket').socketpair()",
        "os.listdir('/')",
        "os.listdir(os.path.expanduser('~root'))",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "os.listdir('/tmp')",
        f"open('/tmp/{MARK}', 'w')",
        f"open('/dev/shm/{MARK}', 'w')",
        "os.chmod('/usr', 0o777)",
        "os.symlink('/etc/passwd', 'link')",
        "os.mkfifo('pipe')",
        "os.memfd_create('memory')",
        "os.setuid(0)",
        "os.chroot('.')",
    )

    def test_what_is_refused(self, box):
        program = f"import os\nATTEMPTS = {self.ATTEMPTS}\n" + (
            "def done(i):\n    try:\n        eval(ATTEMPTS[i])\n    except (OSError, RuntimeError):\n"
            "        return False\n    return True\n"
        )
        tests = f"import os\nassert [i for i in range({len(self.ATTEMPTS)}) if done(i)] == []\nassert possible()"
        assert box.passes(ProgramTests(tests), program + "def possible(): return os.listdir('.') == []")

    def test_files_of_this_user_are_out_of_reach(self, box, tmp_path):
        path = tmp_path / "secret.txt"
        path.write_text("mine")
        open_to_all(tmp_path)
        path.chmod(0o666)
        program = (
            "def f():\n    for mode in ('r', 'w'):\n        try:\n"
            f"            open({str(path)!r}, mode).close()\n            return mode\n"
            "        except PermissionError: pass\n    return None"
        )
        if available().landlock:
            assert box.passes(ProgramTests("assert f() is None"), program)
        assert path.read_text() == "mine"

    def test_the_environment_is_empty(self, box, monkeypatch):
        monkeypatch.setenv("SECRET_KEY", "mine")
        assert box.passes(ProgramTests("assert f() == {}"), "import os\ndef f(): return dict(os.environ)")

    def test_it_is_another_user_where_that_is_possible(self, box):
        if not available().other_user:
            pytest.skip("only root can be another user")
        program = "import os\ndef f(): return [*os.getresuid(), *os.getresgid(), os.getgroups()]"
        assert box.passes(
            ProgramTests("out = f()\nassert 0 not in out and out[-1] == [] and len(set(out[:3])) == 1"), program
        )

    @pytest.mark.parametrize(
        "body",
        [
            "while True: print('x' * 100000)",
            "import ctypes\nctypes.string_at(0)",
            "import numpy\nnumpy.zeros(2 << 28)",
            "with open('big', 'wb') as file: file.write(bytes(2 << 20))",
        ],
    )
    def test_a_limit_ends_it(self, box, body):
        begun = time.monotonic()
        assert not box.passes(INCREMENT, increments(body))
        assert time.monotonic() - begun < LIMITS.patience, "it was ended for what it uses, not for its time"

    @pytest.mark.parametrize(
        "body",
        [
            "import time\ntime.sleep(1000)",
            "while True:\n    try: os.fork()\n    except OSError: pass",
            "sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
            "import signal\nfor i in range(1, 32):\n    try: signal.signal(i, signal.SIG_IGN)\n"
            "    except OSError: pass\nwhile True: pass",
        ],
    )
    def test_time_ends_it(self, impatient, body):
        assert not impatient.passes(INCREMENT, increments(body))
        assert not impatient.passes(INCREMENT, body)
        assert [server._process.poll() for server in impatient.processes] == [None], "its server lives on"

    @pytest.mark.parametrize(
        "writes",
        ["open(str(i), 'wb').write(bytes(1 << 20))", "open(str(i), 'w').close()", "os.mkdir('a'); os.chdir('a')"],
    )
    def test_a_full_folder_is_ended(self, box, folders, writes):
        begun = time.monotonic()
        body = f"import time\nfor i in range(80):\n    {writes}\ntime.sleep(1000)"
        assert not box.passes(INCREMENT, increments(body))
        assert time.monotonic() - begun < LIMITS.patience, "it was ended for its files, not for its time"
        assert not list(folders.iterdir())

    def test_nothing_is_left(self, box):
        """After all of these: no process but the server, no file that they wrote, and it still works."""
        assert box.passes(INCREMENT, RIGHT + "# still")
        (server,) = box.processes
        children = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children")
        assert children.read_text() == ""
        for place in ("/tmp", "/dev/shm"):
            assert not (Path(place) / MARK).exists()


@confined
class TestSandbox:
    def test_a_server_that_is_killed_is_replaced(self):
        made = Sandbox(1, LIMITS)
        try:
            assert made.passes(INCREMENT, RIGHT)
            (server,) = made.processes
            server._process.kill()
            server._process.wait()
            assert made.passes(INCREMENT, RIGHT + "#")
        finally:
            made.close()
        with pytest.raises(GraderError, match="closed"):
            made.passes(INCREMENT, RIGHT + "##")

    def test_a_server_that_does_not_start(self):
        made = Sandbox(1, command=(sys.executable, "-c", "pass"))
        with pytest.raises(GraderError, match="does not start"):
            made.passes(INCREMENT, RIGHT)
        with pytest.raises(GraderError, match="does not start"):
            Sandbox(1, command=("/nothing/like/this",)).passes(INCREMENT, RIGHT)

    def test_one_that_is_closed_meanwhile_leaves_nothing(self):
        made = Sandbox(1, LIMITS)
        outcome: list[object] = []

        def judge() -> None:
            try:
                outcome.append(made.passes(INCREMENT, increments("while True: pass")))
            except GraderError as error:
                outcome.append(error)

        thread = threading.Thread(target=judge)
        thread.start()
        while not made.processes:
            thread.join(0.01)
        (server,) = made.processes
        made.close()
        thread.join(10)
        assert not thread.is_alive()
        assert server._process.returncode is not None
        assert outcome == [False] or isinstance(outcome[0], GraderError)

    def test_a_server_that_another_thread_has_closed_is_gone(self):
        server = sandbox.Server(sandbox.SERVER)
        server.close()
        assert server.run(INCREMENT, increments("return n + 1"), LIMITS) is None
        assert server._read(1.0) is None

    def test_without_confinement_programs_are_refused(self, monkeypatch, tmp_path):
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps({"prompt": "?", "test": "assert f() == 1"}))
        nothing = Layers(other_user=False, landlock=True, seccomp=False)
        monkeypatch.setattr(sandbox, "available", lambda: nothing)
        with pytest.raises(ConfigurationError, match=r"cannot be confined here.*\?sandbox=limits"):
            task(f"code:{path}")
        assert len(task(f"code:{path}?sandbox=limits").problems()) == 1
        with pytest.raises(ConfigurationError, match="full or limits"):
            task(f"code:{path}?sandbox=none")
        with pytest.raises(UnknownNameError, match="sandbox"):
            task(f"math:{path}?sandbox=limits")
        with pytest.raises(ConfigurationError, match="says how programs are confined"):
            api.task(f"code:{path}?sandbox=limits", run_code=False)

    @pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can be another user")
    def test_a_user_who_is_not_root_is_protected_as_well(self, tmp_path):
        path = str(tmp_path / "mine.txt")
        open_to_all(tmp_path)
        Path(path).write_text("mine")
        os.chown(path, 65534, 65534)
        become = (
            "import importlib.util, os, sys\n"
            "spec = importlib.util.spec_from_file_location('server', sys.argv[1])\n"
            "server = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(server)\n"
            "for name in (*server.PRELOADED, 'pwd', 'resource'): __import__(name)\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "server.main(int(sys.argv[2]))"
        )
        made = Sandbox(1, LIMITS, (sys.executable, "-s", "-P", "-c", become, sandbox.SERVER[-1]))
        try:
            assert made.passes(INCREMENT, RIGHT)
            for attempt in (
                "os.kill(os.getppid(), 9)", "os.fork()", f"open({path!r})", f"open({path!r}, 'a')",
                f"os.chmod({path!r}, 0)", f"os.utime({path!r})", f"os.truncate({path!r}, 0)", f"os.remove({path!r})",
                f"os.rename({path!r}, 'mine')", f"os.link({path!r}, 'mine')",
            ):  # fmt: skip
                body = f"try:\n    {attempt}\nexcept OSError:\n    return x + 1\nreturn 'done'"
                assert made.passes(INCREMENT, increments(body)), attempt
        finally:
            made.close()

    @pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a user may be refused namespaces")
    def test_without_a_list_of_calls_there_is_no_network_device(self):
        program = (
            "import sys; sys.path.insert(0, sys.argv[1]); import confinement; confinement._unshare(is_root=True)\n"
            "import socket; print([name for _, name in socket.if_nameindex()])"
        )
        folder = str(Path(sandbox.__file__).parent)
        assert subprocess.check_output([sys.executable, "-c", program, folder], text=True) == "['lo']\n"


@pytest.mark.parametrize("data", [{}, {"a": 1, "b": 2}, {"nothing": 1}, {"tuple": 3}, {"int": "x"}, {"dict": [1]}])
def test_what_nobody_encodes_is_refused(data):
    with pytest.raises((ValueError, TypeError, KeyError)):
        wire.decode(data)


class TestAnswers:
    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            ("So:\n```python\ndef f(): return 1\n```\nDone.", "def f(): return 1"),
            ("```\ndef f(): return 1\n```\nNo:\n```py\ndef f(): return 2\n```", "def f(): return 2"),
            ("```python\ndef f(): return 1\n```\nFor example:\n```python\nprint(f())\n```\n```\n1\n```",
             "def f(): return 1"),
            ("```python\nf = print\n```\n```bash\npip install f\n```", "f = print"),
            ("```bash\nls\n```", None),
            ("~~~~python\ndef f():\n    return '```'\n~~~~", "def f():\n    return '```'"),
            ("```python\ndef f():\n    return 1\n", "def f():\n    return 1"),
            ("def f():\n    return 1\n", "def f():\n    return 1"),
            ("    return 1\n", "    return 1"),
            ("I cannot do that.", None),
            ("Sorry", None),
            ("", None),
            ("<think>```python\ndef f(): return 1\n```</think>", None),
            ("<think>```python\ndef f(): return 1\n```</think>```python\ndef f(): return 2\n```", "def f(): return 2"),
            ("  1. Like this:\n     ```python\n     def f(): return 1\n     ```", "def f(): return 1"),
        ],
    )  # fmt: skip
    def test_are_read(self, text, answer):
        assert CodeAnswers().answer(text) == answer

    def test_nothing_is_final_before_the_end(self):
        assert not CodeAnswers().read("```python\ndef f(): return 1\n```\n\n", None).is_final

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ("def f(x): return x+1", "def f(x):  # more\n\n    '''One more.'''\n    return (x + 1)\n", True),
            ("class A:\n    'doc'", "class A: pass", True),
            ("def f(x): return x+1", "def f(x): return 1+x", False),
            ("def f(x", "def f(x  \n", True),
            ("x = 'a#b'", "x = 'a'", False),
            ("    return 1", "return 1", True),
        ],
    )
    def test_votes(self, first, second, same):
        assert CodeAnswers().equivalent(first, second) is same

    @pytest.mark.parametrize("text", ["(" * 5000, "-" * 20000 + "1", "x = " + "[" * 150 + "]" * 150, "a" * 60000, "\0"])
    def test_what_no_parser_reads_is_named_by_its_text(self, text):
        rule = CodeAnswers()
        assert rule.equivalent(text, text + "\n")
        rule.answer(text)


@confined
class TestTasks:
    HUMANEVAL = {  # noqa: RUF012
        "task_id": "HumanEval/0", "prompt": INCREMENT.prelude, "canonical_solution": "    return x + one()\n",
        "entry_point": "increment", "test": INCREMENT.tests,
    }  # fmt: skip
    MBPP = {  # noqa: RUF012
        "task_id": 2, "code": "def double(x):\n  return 2 * x\n", "prompt": "Write a function to double a number.",
        "source_file": "…", "test_imports": ["import math"],
        "test_list": ["assert double(2) == 4", "assert double(3) == 6"],
        "test": "import numpy as np\n\ninputs = [[2], [-1]]\nresults = [4, -2]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assert double(*inp) == exp and math.pi > 3\n",
    }  # fmt: skip

    def read(self, name: str, row: dict[str, object]) -> Problem:
        entry = DECLARED[name].fields.read(row, f"{name}/1")
        assert entry is not None
        return entry.problem

    def test_humaneval(self, tmp_path):
        (tmp_path / "h.jsonl").write_text(json.dumps(self.HUMANEVAL))
        made = task(f"humaneval-plus:{tmp_path / 'h.jsonl'}")
        (problem,) = made.problems()
        assert problem.id == "HumanEval/0"
        assert problem.question.startswith("Complete this Python function. ")
        assert problem.question.endswith('"""One more."""\n```')
        answer = made.answer(f"Of course.\n```python\n{RIGHT}```\n")
        assert answer is not None
        assert made.grade(problem, answer)
        assert problem.answer is not None
        assert made.grade(problem, problem.answer), "the reference completes the prompt"
        assert not made.grade(problem, "    return x\n")

    def test_mbpp(self, tmp_path):
        (tmp_path / "m.jsonl").write_text(json.dumps(self.MBPP))
        made = task(f"mbpp-plus:{tmp_path / 'm.jsonl'}")
        (problem,) = made.problems()
        assert (problem.id, problem.answer) == ("2", self.MBPP["code"])
        assert "double a number." in problem.question
        assert "assert double(2) == 4" in problem.question
        assert "double(3)" not in problem.question
        assert made.grade(problem, "def double(x): return x + x")
        assert not made.grade(problem, "def double(x): return 4")

    def test_the_tests_are_part_of_the_digest(self, tmp_path):
        digests = set()
        for tests in (["assert f(1) == 1"], ["assert f(1) == 2"], ["assert f(1) == 1"]):
            (tmp_path / "c.jsonl").write_text(json.dumps({"question": "?", "tests": tests}))
            made = task(f"code:{tmp_path / 'c.jsonl'}")
            assert isinstance(made, Benchmark)
            digests.add(of_problems(made.problems(), made.key))
        assert len(digests) == 2

    def test_ones_own(self, tmp_path):
        row = {"question": "What {example} is {question}?", "tests": ["assert f(1) == 1", "assert f(2) == 2"]}
        (tmp_path / "c.jsonl").write_text(json.dumps(row))
        made = task(f"code:{tmp_path / 'c.jsonl'}")
        (problem,) = made.problems()
        assert (problem.question, problem.id, problem.answer) == (row["question"], "c/1", None)
        assert made.grade(problem, "def f(x): return x")
        assert not made.grade(problem, "def f(x): return 1")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [({"test": None}, "no tests: `test` or `tests`"), ({"test": 3}, "`test` must be a text or a list"),
         ({"prompt": ""}, "must be a text"), ({"entry_point": 3}, "entry point must be a text"),
         ({"canonical_solution": 3}, "must be a program")],
    )  # fmt: skip
    def test_rows_that_cannot_be_used(self, tmp_path, changes, says):
        (tmp_path / "h.jsonl").write_text(json.dumps({**self.HUMANEVAL, **changes}))
        with pytest.raises(ProblemFileError, match=says):
            task(f"humaneval-plus:{tmp_path / 'h.jsonl'}").problems()
