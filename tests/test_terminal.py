"""What reaches a terminal: one door, text that acts on nothing, streams that end nothing."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

import motes
import worlds
from motes import api
from motes.cli import main, terminal
from motes.cli.terminal import Console, Stream, Text, exact_json
from motes.cli.views import Watch, partial_answers, section_table
from motes.core import Record, Step
from motes.errors import EngineError
from motes.lab.measure.formats import Section
from motes.tasks import Arithmetic
from motes.text import UNSEEN

HERE = Path(__file__).parent
WORLD = ("--model", "worlds:language_model", "--reward", "worlds:reward_model")
SOURCES = {"PYTHONPATH": str(Path(motes.__file__).parent.parent)}
QUESTION = Arithmetic().problems()[2].question
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eright\r\b\u200b\U000e0041[/red]"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202eright\r\x08\u200b\U000e0041[/red]"


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


class Sink(io.StringIO):
    """A file whose reader is gone, or whose disk is full, once it has taken some texts."""

    def __init__(self, takes: int, error: OSError) -> None:
        super().__init__()
        self.takes, self.error = takes, error

    def write(self, text: str) -> int:
        if not self.takes:
            raise self.error
        self.takes -= 1
        return super().write(text)


class TestStream:
    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [
            ("ascii", rb"##-- 'x' ... \u4f60\xe9\U0001f600"),
            ("cp1252", "##-- ‘x’ … \\u4f60é\\U0001f600".encode("cp1252")),
            ("utf-8", "━━── ‘x’ … 你é😀".encode()),
        ],
    )
    def test_what_an_encoding_lacks_is_spelled_out(self, encoding: str, expected: bytes):
        held = io.BytesIO()
        file = io.TextIOWrapper(held, encoding=encoding)
        Stream(file).write("━━── ‘x’ … 你é😀")
        assert held.getvalue() == expected

    def test_a_reader_that_goes_away_is_not_followed(self):
        gone, instead = Sink(1, BrokenPipeError(errno.EPIPE, "Broken pipe")), io.StringIO()
        stream = Stream(gone, Stream(instead))
        for text in "abc":
            assert stream.write(text) == 1
        assert (gone.getvalue(), instead.getvalue()) == ("a", "")
        assert isinstance(stream.error, BrokenPipeError)

    def test_what_a_full_disk_does_not_take_goes_elsewhere(self):
        full, instead = Sink(1, OSError(errno.ENOSPC, "No space left on device")), io.StringIO()
        stream = Stream(full, Stream(instead))
        for text in ("a\n", "b\n", "c\n"):
            stream.write(text)
        assert full.getvalue() == "a\n"
        why = "motes: stdout cannot be written (No space left on device): the rest stands here"
        assert instead.getvalue() == f"{why}\nb\nc\n"

    def test_what_is_closed_from_the_start_goes_elsewhere(self):
        instead = io.StringIO()
        stream = Stream(None, Stream(instead))
        stream.write("a")
        assert (instead.getvalue(), stream.error, stream.isatty()) == ("a", None, False)
        Stream(None).write("to nobody")


class TestConsole:
    def printed(self, show: Callable[[Console], None]) -> str:
        file = io.StringIO()
        show(Console(file))
        return file.getvalue()

    def test_text_of_anyone_acts_on_nothing(self):
        assert self.printed(lambda console: console.print(HOSTILE, soft_wrap=True)) == f"{SHOWN}\n"
        assert self.printed(lambda console: console.print(Text(HOSTILE), soft_wrap=True)) == f"{SHOWN}\n"
        joined = Text("a ").append(HOSTILE)
        assert self.printed(lambda console: console.print(joined, soft_wrap=True)) == f"a {SHOWN}\n"

    def test_lines_and_ordinary_text_stay(self):
        text = "[bold]:smile: 5\n\nשלום 👩‍💻"
        assert self.printed(lambda console: console.print(text)) == f"{text}\n"

    @pytest.mark.parametrize(("columns", "width"), [("0", 80), ("abc", 80), ("1", 20), ("33", 33)])
    def test_the_width_is_usable_whatever_is_said(self, monkeypatch, columns: str, width: int):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
        screen = io.StringIO()
        monkeypatch.setattr(screen, "isatty", lambda: True)
        assert Console(screen).width == width
        assert Console(io.StringIO()).width == terminal.FILE_WIDTH


def test_json_is_exact_and_acts_on_nothing(monkeypatch):
    value = {"text": HOSTILE + "你\n", "half": "\ud83d"}
    text = exact_json(value)
    assert json.loads(text) == value
    assert not UNSEEN.search(text)
    assert "你" in text
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert exact_json({"text": "…é"}) == '{"text": "…é"}'
    assert json.loads(exact_json(value)) == value
    assert exact_json(value).isascii()


def test_commands_have_no_other_door():
    """`print` and streams, rich's console and text are for the door alone."""
    for file in Path(terminal.__file__).parent.glob("*.py"):
        if file.stem == "terminal":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                forbidden = {("rich.console", "Console"), ("rich.text", "Text"), ("rich", "print")}
                assert not forbidden & {(node.module, alias.name) for alias in node.names}, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "print", f"{file}, line {node.lineno}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("sys.stdout", "sys.stderr", "sys.stdin"), f"{file}, line {node.lineno}"


class Hostile(worlds.StoryLanguageModel):
    def _step(self, trajectory: Any, sampling: Any, seed: int) -> Step:
        if "fail" in trajectory.problem.question:
            raise EngineError(f"the model {HOSTILE} failed")
        return Step(f"{HOSTILE} so \\boxed{{{HOSTILE}}}", "eos", token_ids=(1,))


class TestHostileText:
    @pytest.fixture(autouse=True)
    def _models(self, monkeypatch):
        monkeypatch.setattr(worlds, "language_model", Hostile)

    def seen(self, capsys: Any, *words: object) -> str:
        code, out, err = run(capsys, *words)
        assert not UNSEEN.search(out + err)
        assert "Traceback" not in err
        return f"{code} {out}{err}"

    def test_of_a_model(self, capsys):
        told = self.seen(capsys, "solve", f"q {HOSTILE}", *WORLD, "-n", 2)
        assert told.startswith("0 ")
        assert f"{SHOWN} so" in told
        assert json.loads(self.seen(capsys, "solve", "q", *WORLD, "-n", 2, "--json")[2:])["text"].startswith(HOSTILE)
        assert f"1 motes: the model {SHOWN} failed" in self.seen(capsys, "solve", "fail", *WORLD, "-n", 2)

    def test_of_problems_and_their_names(self, capsys, tmp_path):
        file = tmp_path / "mine.jsonl"
        rows = [{"id": f"{HOSTILE}{q}", "question": f"{HOSTILE} {q}", "answer": "5"} for q in ("a", "fail")]
        file.write_text("\n".join(map(json.dumps, rows)))
        ask = ("eval", "--task", f"exact-match:{file}", *WORLD, "--methods", "majority", "--budgets", "2")
        self.seen(capsys, *ask, "--out", tmp_path / "run")
        self.seen(capsys, "report", tmp_path / "run", "--no-plots")
        rows = [{**row, "answer": HOSTILE} for row in rows]
        file.write_text("\n".join(map(json.dumps, rows)))
        assert SHOWN in self.seen(capsys, "grade", tmp_path / "run", "--task", f"exact-match:{file}")

    @pytest.mark.parametrize(
        "words",
        [
            (HOSTILE,),
            ("help", HOSTILE),
            ("solve", "q", f"--{HOSTILE}"),
            ("solve", "q", "-n", HOSTILE),
            ("solve", "q", "--model", HOSTILE),
            ("solve", "q", "--prompt", HOSTILE),
            ("solve", "q", *WORLD, "--method", HOSTILE),
            ("solve", "q", *WORLD, "--set", f"{HOSTILE}=1"),
            ("report", HOSTILE),
            ("eval", "--out", "x", *WORLD, "--task", HOSTILE),
            ("calibrate", HOSTILE, "--out", "x"),
            ("doctor", HOSTILE),
        ],
    )
    def test_of_arguments_in_errors(self, capsys, tmp_path, monkeypatch, words):
        monkeypatch.chdir(tmp_path)
        told = self.seen(capsys, *words)
        assert told.startswith("2 motes: ")
        assert told.count("\n") == 1

    def test_of_warnings(self, capsys, monkeypatch):
        def warn(spec: str) -> None:
            terminal.warnings.warn_explicit(f"model {HOSTILE}", UserWarning, "x", 1)
            raise EngineError("and on")

        monkeypatch.setattr(api, "language_model", warn)
        with terminal.warnings.catch_warnings():
            terminal.warnings.simplefilter("always")
            told = self.seen(capsys, "solve", "q", "--reward", "none")
        assert told == f"1 motes: warning: model {SHOWN}\nmotes: and on\n"

    def test_of_what_nobody_expected(self, capsys, monkeypatch):
        def fail(spec: str) -> None:
            raise LookupError(HOSTILE)

        monkeypatch.setattr(api, "language_model", fail)
        code, out, err = run(capsys, "solve", "q")
        assert (code, out) == (1, "")
        assert err.splitlines()[-1] == f"motes: unexpected LookupError: {SHOWN}"
        assert not UNSEEN.search(err)


class TestErrorsOfTheSystem:
    @pytest.mark.parametrize(
        ("error", "code", "says"),
        [
            (
                PermissionError(errno.EACCES, "Permission denied", "/x"),
                1,
                "/x: Permission denied: choose another place",
            ),
            (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), 1, "d: Is a directory: name a file"),
            (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device: make room"),
            (OSError("odd"), 1, "odd"),
            (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "convert the text to UTF-8"),
            (KeyboardInterrupt(), 130, "interrupted"),
        ],
    )
    def test_are_one_line(self, capsys, monkeypatch, error: BaseException, code: int, says: str):
        def fail(spec: str) -> None:
            raise error

        monkeypatch.setattr(api, "language_model", fail)
        got, out, err = run(capsys, "solve", "q")
        assert (got, out) == (code, "")
        assert err.startswith(f"motes: {says}" if code == 1 else "motes: ")
        assert says in err
        assert err.count("\n") == 1
        monkeypatch.setenv("MOTES_DEBUG", "1")
        assert ("Traceback" in run(capsys, "solve", "q")[2]) == isinstance(error, Exception)


def process(script: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """A shell's line, in which "$MOTES" is the command."""
    command = f"{sys.executable} -m motes"
    environment = {**os.environ, **SOURCES, "MOTES": command, **options}
    return subprocess.run(["sh", "-c", script], cwd=HERE, env=environment, capture_output=True)


SOLVE = f"$MOTES solve '{QUESTION}' {' '.join(WORLD)} -n 4"


class TestProcess:
    def test_a_full_disk_loses_no_answer(self):
        done = process(f"{SOLVE} >/dev/full", PYTHONIOENCODING="ascii")
        assert done.returncode == 1
        told = done.stderr.decode("ascii")
        assert "motes: stdout cannot be written (No space left on device): the rest stands here\n" in told
        assert "\nanswer " in told
        assert " #####" in told
        assert "Exception ignored" not in told

    def test_closed_streams_lose_no_answer(self):
        done = process(f"{SOLVE} <&- >&-")
        assert (done.returncode, done.stdout) == (0, b"")
        assert b"\nanswer " in done.stderr
        done = process(f"{SOLVE} 2>&-")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\nanswer " in done.stdout
        done = process("$MOTES solve - <&-")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
        assert done.stderr.startswith(b"motes: stdin is closed")

    def test_an_evaluation_whose_viewer_goes_away_goes_on(self, tmp_path):
        ask = f"$MOTES eval {' '.join(WORLD)} --methods majority --budgets 1,2 --limit 5 --out {tmp_path}"
        done = process(f"({ask}; echo $? >{tmp_path}/code) 2>&1 | true")
        assert done.stderr == b""
        assert (tmp_path / "code").read_text() == "0\n"
        assert (tmp_path / "records.jsonl").read_bytes().count(b"\n") == 10

    def test_a_disk_that_fills_up_while_recording(self, tmp_path):
        ask = f"$MOTES eval {' '.join(WORLD)} --methods majority --budgets 1 --limit 50 --no-traces"
        done = process(f"ulimit -f 4; {ask} --out {tmp_path}/run")
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.decode().splitlines() if line.startswith("motes: ")]
        assert "records.jsonl cannot be written" in line
        assert "make room, then run the same command to resume" in line
        recorded = (tmp_path / "run" / "records.jsonl").read_bytes()
        assert 0 < recorded.count(b"\n") < 50
        assert recorded.endswith(b"}\n")


def test_on_a_terminal_something_is_shown_at_once():
    """The process writes to a pseudo-terminal of 80 columns; models are opened before a step is drawn."""
    leader, follower = pty.openpty()
    environment = {**os.environ, **SOURCES, "COLUMNS": "80", "TERM": "xterm"}
    words = [sys.executable, "-m", "motes", "solve", QUESTION, *WORLD, "-n", "4"]
    with subprocess.Popen(words, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=follower) as child:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
        assert child.stdout is not None
        assert b"\nanswer " in child.stdout.read()
    os.close(leader)
    first, second = shown.index(b"opening worlds:language_model"), shown.index(b"opening worlds:reward_model")
    assert first < second < shown.index(b"effective sample size")


def records(width: int) -> tuple[Record, list[str]]:
    seen: list[Record] = []
    lm, reward = worlds.language_model(), worlds.reward_model()
    motes.solve(QUESTION, lm=lm, reward=reward, observe=lambda run, record: seen.append(record))
    file = io.StringIO()
    console = Console(file)
    console.width = width
    console.print(partial_answers(seen[-2]))
    return seen[-2], [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 60, 40])
def test_on_a_narrow_terminal_the_text_shrinks(width: int):
    record, (header, *lines) = records(width)
    assert header.split()[:3] == ["particles", "weight", "score"]
    for line in lines:
        number, weight, *_ = line.split()
        score = line[header.index("score") :].split()[0]
        assert (len(weight), len(score)) == (4, 4)
        assert 1 <= int(number) <= len(record.trajectories)
        assert line.endswith("…")
        bar = line.count("━") + line.count("─")
        assert bar == 12 if width > 40 else 1 <= bar < 12  # and the bar, once the text is short


def test_wide_characters_keep_the_columns(monkeypatch):
    monkeypatch.setattr(worlds, "_spoil", lambda text, chance: text.replace("Emma", "你好😀"))
    _, (_, *lines) = records(80)
    assert any("你好😀" in line for line in lines)
    assert all(cell_len(line) <= 80 for line in lines)


def test_nothing_is_drawn_in_place_but_on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Watch(Console(file)) as watch:
        motes.solve(QUESTION, lm=worlds.language_model(), reward=worlds.reward_model(), observe=watch.observe)
    assert file.getvalue().startswith("round  1   ESS ")
    assert "\x1b[1A" not in file.getvalue()


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "offered"),
        [
            ("motes so", ["solve"]),
            ("motes solve --method p", ["pf", "pg", "pt", "power", "pdr"]),
            ("motes eval --methods pf,b", ["pf,bon", "pf,beam"]),
            ("motes eval --task ar", ["arithmetic"]),
            ("motes solve --prompt ll", ["llama-3"]),
            ("motes solve --reward t", ["tiny"]),
            ("motes solve --token", ["--token-budget"]),
            ("motes solve --task wh", ["whole-text"]),
            ("motes reproduce fi", ["figure2"]),
            ("motes reproduce --prompt no", ["none"]),
            ("motes calibrate --reward ju", ["judge:"]),
            ("motes export --rows pa", ["pairs"]),
        ],
    )
    def test_of_commands_options_and_names(self, capsys, monkeypatch, line: str, offered: list[str]):
        monkeypatch.setenv("_MOTES_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        with pytest.raises(SystemExit) as end:
            main([])
        assert end.value.code == 0
        assert capsys.readouterr().out.split() == offered


def test_help_of_a_command(capsys):
    assert run(capsys, "help") == run(capsys) == run(capsys, "--help")
    assert run(capsys, "help", "solve") == run(capsys, "solve", "--help")
    assert "did you mean 'solve'?" in run(capsys, "help", "sovle")[2]


@pytest.mark.parametrize("width", [200, 80, 40])
def test_no_number_of_a_report_is_cut(width: int):
    rows = (("pf:potential=absolute", "128", "100.0 % (56.6 % – 100.0 %)", "1,234,567"),) * 2
    file = io.StringIO()
    console = Console(file)
    console.width = width
    console.show(section_table(Section("t", ("method", "budget", "accuracy of the runs", "generated"), rows)))
    whole = " ".join(("methodbudgetaccuracyoftherunsgenerated", *rows[0], *rows[1][1:]))  # the method once
    assert Counter("".join(file.getvalue().split())) == Counter("".join(whole.split()))


def test_a_question_from_stdin_is_text_of_any_editor(monkeypatch):
    for content in ("\ufeff2 + 2?\r\n".encode(), "2 + 2?\r\n".encode("utf-16")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert terminal.read_stdin() == "2 + 2?\n"
