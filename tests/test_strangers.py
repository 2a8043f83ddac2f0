"""Directories of evaluations come from strangers: opening one runs nothing that it names, and writes to nothing but the
directory itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from motes import api, files
from motes.cli import main
from motes.errors import ConfigurationError, RunDirectoryError
from motes.lab import RecordStore, Report, export, merge, regrade, write_report
from motes.lab.run.execution import run_log
from motes.lab.run.flops import Sizes
from motes.paper import read_rows
from motes.rewards.calibration import Calibration
from strangers import record, small_evaluation, write


def motes(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the working directory, which leaves a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    source = "from motes.tasks import Arithmetic as Task\nfrom motes.methods import Greedy\nopen('ran', 'w').close()\n"
    (tmp_path / "stranger.py").write_text(source)
    return tmp_path


class TestCode:
    def test_a_task_that_only_the_directory_names_is_not_run(self, mine, capsys):
        spec = f"subprocess:Popen?args=touch+{mine}/ran&shell=1"
        directory = write(mine / "run", task=spec)
        code, out, err = motes(capsys, "grade", directory)
        assert (code, out) == (2, "")
        assert f"the task {spec!r} is code, and only the directory names it" in err
        assert "--run-code" in err
        assert motes(capsys, "merge", mine / "all", directory)[0] == 0
        assert motes(capsys, "grade", mine / "all")[0] == 2
        assert motes(capsys, "report", mine / "all", "--no-plots")[0] == 0
        assert motes(capsys, "export", mine / "all", mine / "runs.jsonl")[0] == 0
        assert not (mine / "ran").exists()

    @pytest.mark.parametrize("spec", ["stranger:Task", "stranger:Task?x=1", "stranger:made.up", "os:system?command=x"])
    def test_nothing_is_imported(self, spec, mine, capsys):
        directory = write(mine / "run", task=spec, lm=spec, reward=spec, methods={spec: {}, "pf": {}})
        assert motes(capsys, "grade", directory)[0] == 2
        assert motes(capsys, "report", directory, "--no-plots")[0] == 0
        assert motes(capsys, "export", directory, mine / "runs.jsonl")[0] == 0
        assert motes(capsys, "merge", mine / "all", directory)[0] == 0
        assert not (mine / "ran").exists()
        with pytest.raises(ConfigurationError):
            asyncio.run(regrade(directory))
        assert not (mine / "ran").exists()

    @pytest.mark.parametrize("words", [["--run-code"], ["--task", "stranger:Task"]])
    def test_a_person_may_say_so(self, words, mine, capsys):
        code, out, _ = motes(capsys, "grade", write(mine / "run", task="stranger:Task"), *words)
        assert code == 0
        assert out.startswith("3 answers graded, ")
        assert (mine / "ran").exists()

    def test_data_needs_nobody_to_say_so(self, mine, capsys):
        rows = [{"id": record(i).problem_id, "question": "?", "answer": record(i).answer} for i in range(3)]
        (mine / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert motes(capsys, "grade", write(mine / "run", task="exact-match:p.jsonl"))[0] == 0
        assert motes(capsys, "grade", write(mine / "run"))[0] == 0

    @pytest.mark.parametrize("path", ["pipe", "/dev/zero", "folder", "missing"])
    def test_data_is_a_file(self, path, mine):
        os.mkfifo(mine / "pipe")
        (mine / "folder").mkdir()
        with pytest.raises(ConfigurationError, match=f"{path} is not a file"):
            api.task(f"exact-match:{path}", run_code=False)

    def test_a_revision_that_anybody_may_have_written(self, mine):
        with pytest.raises(ConfigurationError, match="a revision that anybody may have written"):
            api.task("math-500?revision=refs/pr/7", run_code=False)

    @pytest.mark.parametrize("method", ["stranger:Greedy", "subprocess:Popen", "os:system"])
    def test_rows_of_a_reproduction(self, method, mine, capsys):
        (mine / "rows").mkdir()
        row = f'model = "m"\n[table1]\nbudgets = [1]\n[table1.methods]\npf = "{method}"\n'
        (mine / "rows" / "row.toml").write_text(row)
        ask = ("reproduce", "table1", "--models", "row=tiny", "--out", mine / "out", "--configs", mine / "rows")
        code, _, err = motes(capsys, *ask, "--tasks", "math-500=exact-match:p.jsonl", "--dry-run")
        assert code == 2
        assert f"the method {method!r} is code, and only this file names it" in err
        assert not (mine / "ran").exists()
        if method.startswith("stranger"):
            assert "row" in read_rows(mine / "rows", run_code=True)

    def test_how_a_row_reads_adds_no_option(self, mine):
        (mine / "rows").mkdir()
        (mine / "rows" / "row.toml").write_text('model = "m"\n[reward]\nmodel = "r"\nprefix = "whole&device=cuda"\n')
        row = read_rows(mine / "rows")["row"]
        assert row.reading("tiny") == "tiny?prefix=whole%26device%3Dcuda"

    def test_the_working_directory_is_no_place_for_modules_that_nobody_names(self, mine, capsys):
        """A folder may hold a `pyarrow.py`, for whoever has none installed."""
        assert motes(capsys, "report", write(mine / "run"), "--no-plots")[0] == 0
        assert str(mine) not in sys.path
        assert api.attribute("stranger:Greedy")
        assert str(mine) in sys.path


WRITTEN = ("report.md", "report.csv", "report.html", "accuracy.png", "accuracy.svg", "reliability.svg")


class TestLinks:
    def test_reports_replace_links(self, tmp_path):
        directory, outside = write(tmp_path / "run"), tmp_path / "outside"
        outside.write_text("mine")
        for name in WRITTEN:
            (directory / name).symlink_to(outside)
        os.link(outside, directory / "predictions.csv")
        written = write_report(directory, Report.load(directory))
        assert outside.read_text() == "mine"
        assert {path.name for path in written} >= {*WRITTEN, "predictions.csv"}
        assert not any(path.is_symlink() for path in written)
        assert not [path for path in directory.iterdir() if "partial" in path.name]

    @pytest.mark.parametrize("make", [os.symlink, os.link])
    @pytest.mark.parametrize("name", ["records.jsonl", "traces.jsonl.gz", "provenance.jsonl", "log.txt"])
    def test_nothing_is_appended_to_a_link(self, name, make, tmp_path, capsys):
        ask = small_evaluation(1)
        directory, outside = tmp_path / "run", tmp_path / "outside"
        directory.mkdir()
        outside.write_bytes(b"")
        make(outside, directory / name)
        code, _, err = motes(capsys, *ask, directory)
        assert code == 2
        assert f"{directory}/{name} cannot be written: it is " in err
        assert "put a copy in its place" in err
        assert outside.read_bytes() == b""

    def test_nothing_is_made_where_a_link_leads_to(self, tmp_path, capsys):
        part, out = write(tmp_path / "part"), tmp_path / "out"
        out.mkdir()
        (out / "records.jsonl").symlink_to(tmp_path / "outside")
        code, _, err = motes(capsys, "merge", out, part)
        assert code == 2
        assert "it is a link to another file" in err
        assert not (tmp_path / "outside").exists()

    @pytest.mark.parametrize("name", ["config.json", "models.json"])
    def test_what_is_written_anew_replaces_a_link(self, name, tmp_path):
        part, out, outside = write(tmp_path / "part"), tmp_path / "out", tmp_path / "outside"
        (part / "models.json").write_text('{"lm": {"num_parameters": 7}, "reward": {"num_parameters": 8}}')
        out.mkdir()
        outside.write_text('{"lm": {"num_parameters": null}, "reward": {"num_parameters": null}}')
        (out / name).symlink_to(outside)
        merge(out, [part])
        assert "null" in outside.read_text()
        assert Sizes.read(out) == Sizes(7, 8)
        assert not (out / name).is_symlink()

    def test_exports_and_calibrations_replace_links(self, tmp_path):
        outside = tmp_path / "outside"
        outside.write_text("mine")
        (tmp_path / "runs.jsonl").symlink_to(outside)
        export(write(tmp_path / "run"), tmp_path / "runs.jsonl")
        assert outside.read_text() == "mine"
        assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 3
        Calibration((0.5,), (0.5,)).save(str(tmp_path / "c.json"))
        outside.write_bytes((tmp_path / "c.json").read_bytes())
        (tmp_path / "d.json").symlink_to(outside)
        Calibration((0.25,), (0.5,)).save(str(tmp_path / "d.json"))
        assert outside.read_bytes() == (tmp_path / "c.json").read_bytes()

    def test_what_is_read_may_be_a_link(self, tmp_path):
        """As in the hub's cache, whose folders hold nothing but links."""
        directory, linked = write(tmp_path / "run"), tmp_path / "linked"
        linked.mkdir()
        for path in directory.iterdir():
            (linked / path.name).symlink_to(path)
        assert Report.load(linked).cells == Report.load(directory).cells


class TestFiles:
    def test_what_fails_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")

        def fail() -> None:
            with files.replacing(path) as partial:
                partial.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]

    def test_permissions_stay(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")
        path.chmod(0o600)
        files.write_text(path, "after")
        assert (path.read_text(), path.stat().st_mode & 0o777) == ("after", 0o600)

    @pytest.mark.parametrize("name", ["records.jsonl", "log.txt"])
    def test_a_pipe_is_not_waited_for(self, name, tmp_path):
        os.mkfifo(tmp_path / name)
        opened = run_log(tmp_path) if name == "log.txt" else nullcontext()
        with pytest.raises(RunDirectoryError, match="it is not a regular file"), opened:
            RecordStore(tmp_path / "records.jsonl")


def test_another_process_runs_nothing_either(tmp_path):
    """As a person would do it: in the stranger's folder, whose name for the task is a module in it."""
    write(tmp_path, task="evil:Task")
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "motes", "grade", "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is code, and only the directory names it" in done.stderr
    assert not (tmp_path / "ran").exists()
