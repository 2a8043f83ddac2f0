"""Directories that are damaged, or that say what no evaluation can have come to: told by file and line, never a
traceback, and the rest is reported."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import resource
import zlib
from typing import Any

import pytest

from motes import files
from motes.cli import main
from motes.errors import RunDirectoryError
from motes.lab import RecordStore, Report, export, merge, read_records, read_traces, regrade
from motes.lab.run.damage import Damages, parse_json
from motes.lab.run.traces import TraceStore
from strangers import PROBLEMS, configuration, line, record, small_evaluation, write
from test_traces import traced

GOOD = line(0)
DEEP = b"[" * 100_000


def motes(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


DAMAGED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"nonsense\n", "it is not JSON"),
    "no object": (b"[1, 2]\n", "it is not an object"),
    "nested deeply": (DEEP + b"\n", "it is nested too deeply"),
    "nested deeply inside": (b'{"posterior": ' + DEEP + b"\n", "it is nested too deeply"),
    "no UTF-8": (b'{"problem_id": "\xff"}\n', "it is not UTF-8"),
    "zeros": (b"\0" * 40 + b"\n", "it is not JSON"),
    "a huge number": (b'{"budget": ' + b"9" * 5000 + b"}\n", "it has a number of 5,000 digits"),
    "a number too large for a column": (line(1, budget=2**70), "`budget` must be a whole number from 1"),
    "a budget below 1": (line(1, budget=-3), "`budget` must be a whole number from 1, not -3"),
    "a budget that is none": (line(1, budget=True), "`budget` must be a whole number from 1, not True"),
    "a seed below 0": (line(1, seed=-1), "`seed` must be a whole number from 0, not -1"),
    "a score of 5": (line(1, scores=[0.5, 5]), "`scores` must be a list of numbers in [0, 1]"),
    "a score that is NaN": (line(1, scores=[float("nan"), 0.5]), "NaN is not a number"),
    "a score beyond floats": (line(1).replace(b"0.75", b"1e999", 1), "`scores` must be"),
    "another number of scores": (line(1, scores=[0.5]), "`scores` are 1, of 2 answers"),
    "tokens below 0": (line(1, usage={"generated_tokens": -5}), "`usage` must be whole numbers from 0"),
    "tokens that are none": (line(1, usage=[]), "`usage` must be"),
    "an unknown outcome": (line(1, outcome="won"), "`outcome` must be one of correct"),
    "an outcome that is a list": (line(1, outcome=[]), "`outcome` must be one of correct"),
    "a confidence above 1": (line(1, confidence=1.5), "`confidence` must be a number in [0, 1]"),
    "no seconds": (line(1, seconds=-1), "`seconds` must be"),
    "an answer that is a number": (line(1, answer=5), "`answer` must be a text or null"),
    "answers that are a text": (line(1, answers="57"), "`answers` must be a list"),
    "groups without what is right": (line(1, right=[]), "`groups` go together with `right`"),
    "a group that there is not": (line(1, groups=[0, 7]), "`groups` name answers"),
    "a mass below 0": (line(1, posterior={"5": -0.5}), "`posterior` must be numbers in [0, 1]"),
    "a level that is a text": (line(1, level="high"), "`level` must be"),
    "a text that is none": (line(1, text=None), "`text` must be a text"),
    "an evidence that is infinite": (line(1, log_evidence=float("-inf")), "-Infinity is not a number"),
    "a field twice": (GOOD.replace(b'"seed": 0', b'"seed": 0, "seed": 1'), "it says the same field twice"),
    "no name": (b"{}\n", "it does not name its run"),
    "another problem": (line(1, problem_id="arithmetic/test/no"), "the evaluation has no problem 'arithmetic/test/no'"),
    "another method": (line(1, method="bon"), "the evaluation has no method 'bon'"),
    "another budget": (line(1, budget=4, answers=[], groups=[], right=[], scores=[]), "no run of 'pf' at budget 4"),
    "another seed": (line(1, seed=8), "the evaluation has no seed 8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_told_by_its_line_and_the_rest_is_reported(name, tmp_path):
    damaged, reason = DAMAGED[name]
    directory = write(tmp_path / "run", GOOD + damaged + line(2))
    report = Report.load(directory)
    (told,) = [text for text in report.warnings() if "could not be read" in text]
    assert told.startswith(f"1 record could not be read: {directory}/records.jsonl line 2: ")
    assert reason in told
    (cell,) = report.cells
    assert (cell.runs, cell.outcomes["correct"], cell.missing) == (2, 2, 1)
    assert "line 2" in report.markdown()


def test_many_damaged_records_are_one_line(tmp_path, capsys):
    directory = write(tmp_path / "run", b"".join([*(text for text, _ in DAMAGED.values()), GOOD]))
    code, out, err = motes(capsys, "report", directory, "--no-plots", "--viewer", 0)
    assert (code, err) == (0, "")
    (told,) = [text for text in out.splitlines() if "could not be read" in text]
    assert told.startswith(f"{len(DAMAGED)} records could not be read; the first: {directory}/records.jsonl line 1: ")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_an_error_for_programs_that_do_not_ask(name, tmp_path):
    directory = write(tmp_path / "run", GOOD + DAMAGED[name][0] + line(2))
    if name.startswith("another ") and "scores" not in name:  # only a configuration tells
        assert len(read_records(directory / "records.jsonl")) == 3
    else:
        with pytest.raises(RunDirectoryError, match=r"records\.jsonl is damaged line 2: .*; delete it there"):
            read_records(directory / "records.jsonl")


@pytest.mark.parametrize(
    ("tail", "whole", "kept"),
    [
        (GOOD[:-9], False, False),
        (b'{"problem_id": "a', False, False),
        (b"\0" * 10, False, False),
        (b"nonsense\n", False, False),
        (line(1)[:-1], True, True),  # somebody's editor
        (line(1, budget=-3), False, True),  # of a run that is named: nobody cuts that off
        (b"   \n\n", None, True),
    ],
)
def test_a_damaged_last_line_is_told_and_cut_off_only_if_it_is_torn(tail, whole, kept, tmp_path, capsys):
    directory = write(tmp_path / "run", GOOD + tail)
    path = directory / "records.jsonl"
    code, out, _ = motes(capsys, "report", directory, "--no-plots", "--viewer", 0)
    assert code == 0
    assert ("records.jsonl line 2" in out) == (whole is False)
    damages = Damages()
    with RecordStore(path, damages.of("records")) as store:
        assert len(store.records) == 1 + bool(whole)
        store.append(record(2))
    assert bool(damages.counts) == (whole is False)
    content = path.read_bytes()
    assert content.startswith(GOOD + tail if kept else GOOD + b'{"problem_id": "' + PROBLEMS[2].id.encode())
    assert content.endswith(b"\n" + record(2).to_json().encode() + b"\n")


def test_resuming_tells_what_it_does_again(tmp_path, capsys):
    ask = small_evaluation(2)
    assert motes(capsys, *ask, tmp_path / "run")[0] == 0
    path = tmp_path / "run" / "records.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first.replace(b'"budget": 1', b'"budget": -1') + second[:-20])
    code, _, err = motes(capsys, *ask, tmp_path / "run")
    assert code == 0
    assert f"motes: 2 records could not be read; the first: {path} line 1: `budget`" in err
    assert {one.problem_id for one in read_records(path, lambda damage: None)} == {one.id for one in PROBLEMS[:2]}
    assert "2 records could not be read" in (tmp_path / "run" / "log.txt").read_text()


CONFIGURATIONS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is not JSON"),
    "cut": (json.dumps(configuration()).encode()[:-5], "line 1 column"),
    "a list": (b"[]", "it is not an object"),
    "nested deeply": (b'{"task": ' + DEEP, "nested too deeply"),
    "no UTF-8": (b'{"task": "\xff"}', "not UTF-8"),
    "budgets of a text": (json.dumps(configuration(budgets="4")).encode(), "`budgets` must be"),
    "a budget below 1": (json.dumps(configuration(budgets=[-3])).encode(), "`budgets` must be"),
    "methods of numbers": (json.dumps(configuration(methods=[1])).encode(), "`methods` must be"),
    "seeds of nothing": (json.dumps(configuration(seeds=None)).encode(), "`seeds` must be"),
    "a number of problems that is none": (json.dumps(configuration(num_problems="3")).encode(), "`num_problems` must"),
    "a task that is a list": (json.dumps(configuration(task=["x"])).encode(), "`task` must be a text"),
    "a model that is a number": (json.dumps(configuration(lm=3)).encode(), "`lm` must be a text"),
    "NaN": (b'{"num_runs": NaN}', "NaN is not a number"),
    "a field twice": (b'{"task": "a", "task": "b"}', "the same field twice"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_records_of_a_damaged_configuration_are_reported(name, tmp_path):
    content, reason = CONFIGURATIONS[name]
    directory = write(tmp_path / "run")
    (directory / "config.json").write_bytes(content)
    report = Report.load(directory)
    told = next(text for text in report.warnings() if "could not be read" in text)
    assert "config.json: " in told
    assert reason in told
    assert report.cells[0].runs == 3
    with pytest.raises(RunDirectoryError, match=r"config\.json cannot be read: .*; use another directory"):
        merge(tmp_path / "all", [directory])  # which evaluation it is must be known
    with pytest.raises(RunDirectoryError, match=r"config\.json cannot be read: .*; use another directory"):
        asyncio.run(regrade(directory))


@pytest.mark.parametrize(
    "content", ["3", "{}", '{"lm": {"num_parameters": "x"}}', '{"lm": {"num_parameters": -1}}', "["]
)
def test_sizes_that_are_damaged_are_not_known(content, tmp_path, capsys):
    directory = write(tmp_path / "run")
    (directory / "models.json").write_text(content)
    code, out, _ = motes(capsys, "report", directory, "--no-plots", "--viewer", 0)
    assert code == 0
    assert f"1 models' size could not be read: {directory}/models.json: " in out


@pytest.mark.parametrize(
    "name", ["config.json", "records.jsonl", "models.json", "problems.json", "provenance.jsonl", "traces.jsonl.gz"]
)
@pytest.mark.parametrize("kind", ["directory", "pipe", "device"])
def test_what_is_no_file_is_not_read(name, kind, tmp_path, capsys):
    directory = write(tmp_path / "run")
    path = directory / name
    path.unlink(missing_ok=True)
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    code, out, err = motes(capsys, "report", directory, "--no-plots", "--viewer", 1)
    assert code == (2 if name == "records.jsonl" else 0)
    assert name in out + err
    assert "it is a directory" in out + err if kind == "directory" else "it is not a regular file" in out + err


def test_a_directory_of_nothing_but_damage_says_so(tmp_path, capsys):
    code, out, err = motes(capsys, "report", write(tmp_path / "run", b"nonsense\n{}\n"))
    assert (code, out) == (2, "")
    assert "holds no finished run yet (2 records could not be read; the first: " in err


class TestBounds:
    def test_long_lines_are_passed_over(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "LINE", len(GOOD) + 50)
        path = tmp_path / "records.jsonl"
        path.write_bytes(line(1, text="x" * 100_000) + GOOD)
        damages = Damages()
        assert read_records(path, damages.of("records")) == [record(0)]
        assert damages.lines()[0].endswith(f"line 1: it is longer than {len(GOOD) + 50} bytes")

    def test_lines_are_those_of_the_file(self, tmp_path):
        path = tmp_path / "lines"
        path.write_bytes(b"\xef\xbb\xbfone\n" + b"x" * 100_000 + b"\n\nlast")
        found = list(files.read_lines(path, limit=1000))
        assert [(one.number, one.content, one.whole) for one in found] == [
            (1, b"one", True), (2, None, True), (3, b"", True), (4, b"last", False)
        ]  # fmt: skip
        assert [one.ends for one in found] == [7, 100_008, 100_009, 100_013]

    def test_a_bomb_is_not_inflated(self, tmp_path, capsys):
        """One member of 200 megabytes of blanks, in one."""
        directory = write(tmp_path / "run")
        packer = zlib.compressobj(1, wbits=31)
        with (directory / "traces.jsonl.gz").open("wb") as file:
            file.writelines(packer.compress(b" " * 2**20) for _ in range(200))
            file.write(packer.flush())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code, _, _ = motes(capsys, "report", directory, "--no-plots", "--viewer", 1)
        assert code == 0
        assert "it is larger than" in (directory / "report.html").read_text()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "kilobytes"

    def test_small_bombs_follow_each_other(self, tmp_path):
        path = tmp_path / "t.gz"
        path.write_bytes(gzip.compress(b"{" + b" " * 20_000_000))
        with pytest.raises(RunDirectoryError, match="it is larger than"):
            list(read_traces(path))


def population(**fields: Any) -> dict[str, Any]:
    return {"final": {"nodes": [None], "finished": [None], "log_weights": [0], "scores": [1], **fields}}


def node(**fields: Any) -> dict[str, Any]:
    return {"nodes": [{"parent": None, "text": "x", "tokens": 1, **fields}]}


TRACES: dict[str, tuple[Any, str]] = {
    "no trace": ({}, "it is not a trace"),
    "a parent that is the node itself": (node(parent=0), "does not stand before it"),
    "a parent that is none": (node(parent="x"), "does not stand before it"),
    "tokens below 0": (node(tokens=-1), "`tokens` must be"),
    "a node that there is not": (population(nodes=[999]), "at a node that does not exist"),
    "a population of two sizes": (population(scores=[]), "not of one size"),
    "an infinite weight": (population(log_weights=[1e999]), "Infinity is not a number"),
    "messages of numbers": ({"messages": [1]}, "it is not a trace"),
    "no messages": ({"messages": []}, "`messages` must be a conversation"),
    "rounds of a text": ({"rounds": "x"}, "it is not a trace"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_damaged_trace_is_told_and_the_others_are_read(name, tmp_path):
    changed, reason = TRACES[name]
    good = traced("pf")
    fields = {**json.loads(good.to_json()), **changed} if changed else {}
    path = tmp_path / "t.gz"
    damaged = gzip.compress(json.dumps(fields).encode() + b"\n")
    with TraceStore(path) as store:
        store.append(good)
        store.write(damaged)
        store.append(good)
    damages = Damages()
    assert list(read_traces(path, damages.of("traces"))) == [good, good]
    (told,) = damages.lines()
    assert "t.gz before byte " in told
    assert reason in told
    with pytest.raises(RunDirectoryError, match="is damaged before byte"):
        list(read_traces(path))


class TestMerging:
    def test_records_that_are_not_asked_for_are_left_out(self, tmp_path, capsys):
        part = write(tmp_path / "part", b"".join(map(line, range(3))) + line(1, problem_id="x") + line(1, seed=3))
        code, out, err = motes(capsys, "merge", tmp_path / "all", part)
        assert code == 0
        assert out.startswith(f"3 runs in {tmp_path}/all, 3 of them new\n")
        assert f"motes: 2 records could not be read; the first: {part}/records.jsonl line 4: " in err
        assert len(read_records(tmp_path / "all" / "records.jsonl")) == 3

    def test_more_problems_than_there_are(self, tmp_path, capsys):
        """The task is somebody's own: which problems it has is not known, but how many."""
        own = {"task": "somebody:Task"}
        parts = [
            write(tmp_path / f"part-{i}", b"".join(line(0, problem_id=f"{i}/{j}") for j in range(2)), **own)
            for i in range(2)
        ]
        code, out, err = motes(capsys, "merge", tmp_path / "all", *parts)
        assert (code, out) == (2, "")
        assert "the parts hold 4 problems, and the evaluation has 3" in err
        assert (tmp_path / "all" / "records.jsonl").read_bytes() == b""
        report = Report.load(write(tmp_path / "run", b"".join(line(0, problem_id=f"{j}") for j in range(4)), **own))
        told = "records of 4 problems where the evaluation has 3: not all are its own, and more may be missing than"
        assert any(warning.startswith(told) for warning in report.warnings())

    @pytest.mark.parametrize("change", [{"answer": "7"}, {"text": "else"}, {"run_seed": 9}, {"answers": ["7", "7"]}])
    def test_two_results_of_one_run(self, tmp_path, capsys, change):
        parts = [write(tmp_path / "a"), write(tmp_path / "b", line(1, **change))]
        code, out, err = motes(capsys, "merge", tmp_path / "all", *parts)
        assert (code, out) == (2, "")
        assert f"{parts[0]} and {parts[1]} hold different results of the run '{PROBLEMS[1].id}', pf at 2, seed 0" in err
        assert (tmp_path / "all" / "records.jsonl").read_bytes() == b""

    @pytest.mark.parametrize("change", [{"seconds": 7}, {"outcome": "wrong"}, {"usage": {"prefill_tokens": 7}}])
    def test_the_same_result_otherwise_graded_or_timed(self, tmp_path, change):
        parts = [write(tmp_path / "a"), write(tmp_path / "b", line(1, **change))]
        assert merge(tmp_path / "all", parts).repeated == 1


def test_exports_leave_out_what_is_damaged(tmp_path, capsys):
    directory = write(tmp_path / "run", GOOD + line(1, budget=-3) + line(2))
    code, out, err = motes(capsys, "export", directory, tmp_path / "runs.jsonl")
    assert (code, out) == (0, f"2 rows in {tmp_path}/runs.jsonl\n")
    assert f"motes: 1 record could not be read: {directory}/records.jsonl line 2: `budget`" in err
    with pytest.raises(RunDirectoryError, match="line 2"):
        export(directory, tmp_path / "runs.jsonl")


def test_halves_of_surrogate_pairs_are_replaced():
    assert parse_json(r'{"a\ud83d": ["\ud83d\ude00", "\ude00"]}') == {"a�": ["😀", "�"]}
