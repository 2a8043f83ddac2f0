"""A method of one's own: the example of docs/adding-a-method.md as it stands there, and what cannot be one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import motes
import worlds
from motes.cli import main
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab import Evaluation, method_from_spec, read_records
from motes.methods import METHODS
from motes.tasks import Arithmetic

DOCUMENT = Path(__file__).parent.parent / "docs" / "adding-a-method.md"
FAKE = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
QUESTION = Arithmetic().problems()[2].question


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example in a file of the working directory."""
    found = re.search(r"<!-- example: (\w+)\.py -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    name, source = found.groups()
    assert len(source.splitlines()) <= 30, "at most thirty lines"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:Halving"


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_example_solves(example: str, capsys: Any):
    code, out, err = run(
        capsys, "solve", QUESTION, *FAKE, "--method", example, "-n", 8, "--set", "patience=2", "--json"
    )
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["method"] == f"{example}:patience=2"
    assert answer["settings"] == {"type": "Halving", "n": 8, "patience": 2}
    assert [one["resampled"] for one in answer["rounds"]] == [False, False, True, True]
    assert answer["answer"] in answer["posterior"]


def test_the_example_does_what_it_says(example: str):
    sys.path.append(".")
    models = {"lm": worlds.language_model(), "reward": worlds.reward_model()}
    result = motes.solve(QUESTION, **models, method=method_from_spec(example, 8))
    assert result.method == "Halving"
    for before, after in zip(result.records, result.records[1:], strict=False):
        live = [i for i, t in enumerate(before.trajectories) if t.finished is None]
        assert len(set(after.ancestors[live])) == (len(live) + 1) // 2
        kept = {before.scores[i] for i in after.ancestors[live]}
        assert min(kept) >= np.median(before.scores[live])
    stopped = motes.solve(QUESTION, **models, method=method_from_spec(example, 8), token_budget=1)
    assert (stopped.stopped, len(stopped.records)) == ("token_budget", 1)


def test_an_evaluation_records_the_example_under_its_name(example: str, capsys: Any, tmp_path: Path):
    ask = ("eval", "--methods", f"{example}:patience=2,bon", "--budgets", "4,8", "--limit", 3, *FAKE, "--out", "run")
    code, _, err = run(capsys, *ask)
    assert (code, "motes: " in err) == (0, False)
    records = read_records(tmp_path / "run" / "records.jsonl")
    assert {record.method for record in records} == {f"{example}:patience=2", "bon"}
    assert len(records) == 2 * 2 * 3
    configuration = json.loads((tmp_path / "run" / "config.json").read_text())
    assert configuration["methods"][f"{example}:patience=2"] == {"type": "Halving", "patience": 2}
    code, out, err = run(capsys, "report", "run")
    assert (code, err) == (0, "")
    assert f"{example}:patience=2" in out


def test_what_is_no_method_is_refused(example: str):
    sys.path.append(".")
    module = example.partition(":")[0]
    for spec, complaint in (
        ("nowhere:Class", "no module 'nowhere'"),
        (f"{module}:Missing", "has no 'Missing'"),
        (f"{module}:Run", "makes no method of a budget"),
        (f"{module}:np", "makes no method of a budget"),
        ("worlds:StoryLanguageModel", "it needs `budget` and `run`"),
        (f"{module}:conclude:weight=1", "has no settings"),
        (f"{example}:n=3", "set the number of trajectories as the budget"),
        (f"{example}:3", "is not a setting"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(complaint)):
            method_from_spec(spec, 4)
    with pytest.raises(UnknownNameError, match="did you mean 'patience'"):
        method_from_spec(f"{example}:patients=3", 4)
    for spec in ("halving", "halving:patience=2"):
        with pytest.raises(UnknownNameError, match="unknown method 'halving'"):
            Evaluation(methods=(spec,))


def test_limits_on_the_command_line(capsys: Any):
    code, out, err = run(capsys, "solve", QUESTION, *FAKE, "--token-budget", 100, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["stopped"], len(answer["rounds"])) == ("token_budget", 1)
    assert {one["finished"] for one in answer["trajectories"]} == {"token_budget"}
    code, out, err = run(capsys, "solve", QUESTION, *FAKE, "--token-budget", 100)
    assert (code, "motes: " in err) == (0, False)
    assert re.search(r"^stopped +when the tokens were spent: the answer is the best so far$", out, re.MULTILINE)
    code, out, _ = run(capsys, "solve", QUESTION, *FAKE, "--deadline", 1e6, "--json")
    assert json.loads(out)["stopped"] is None
    for words, complaint in ((("--deadline", 0), "deadline must be"), (("--token-budget", 0), "token_budget must be")):
        code, out, err = run(capsys, "solve", QUESTION, *FAKE, *words)
        assert (code, out) == (2, "")
        assert complaint in err


def test_every_method_has_its_section():
    text = (DOCUMENT.parent / "methods.md").read_text()
    assert [name for name in METHODS if f": `{name}`\n" not in text or f"| `{name}` |" not in text] == []
