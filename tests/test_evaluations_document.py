"""The examples of docs/evaluations-in-python.md, as they stand there."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import worlds
from motes import api
from motes.lab import Evaluation, evaluate, read_records
from motes.lab.run.provenance import read_calls

DOCUMENT = (Path(__file__).parent.parent / "docs" / "evaluations-in-python.md").read_text()


def example(name: str) -> str:
    found = re.search(rf"<!-- example: {name}\.py -->\n```python\n(.*?)\n```\n", DOCUMENT, re.DOTALL)
    assert found
    return found[1]


def run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example(name), f"{name}.py", "exec"), names)
    return names


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "language_model", lambda spec: worlds.language_model())  # in no time
    monkeypatch.setattr(api, "reward_model", lambda spec: worlds.reward_model())
    first = run("evaluation")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(re.search(r"# (20 of 20 runs \()", DOCUMENT)[1])  # type: ignore[index]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["pf", "1"], ["pf", "4"], ["majority", "1"], ["majority", "4"], ["greedy", "1"],
    ]  # fmt: skip
    assert (first["directory"] / "report.html").exists()
    run("records")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 + 20 + 1
    assert "'name': 'tiny'" in lines[-1]
    own = run("own_reward")
    assert own["progress"].done == 3
    (call,) = read_calls(tmp_path / "runs" / "short")
    assert call.models["reward"]["code"] == "example:shorter_is_better"
    for record in read_records(tmp_path / "runs" / "short" / "records.jsonl"):
        assert record.outcome in ("correct", "wrong", "no_answer")


def test_every_field_and_argument_is_told():
    told = set(re.findall(r"`(\w+)=?[^`]*`", DOCUMENT))
    assert {field.name for field in dataclasses.fields(Evaluation)} <= told
    assert set(inspect.signature(evaluate).parameters) - {"evaluation", "directory"} <= told
