"""The examples of docs/judges-and-calibration.md, as they stand there."""

from __future__ import annotations

import asyncio
import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import motes
from examiner import Examiner
from motes import BestOfN, Judge, ParticleFilter, Problem, Step, TabularLanguageModel, TabularReward, Trajectory
from motes.cli import main
from motes.lab.measure.calibration import read_labelled
from motes.rewards.rubric import RUBRICS

DOCUMENT = (Path(__file__).parent.parent / "docs" / "judges-and-calibration.md").read_text()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example of the document from a file of its own."""

    def load(name: str) -> ModuleType:
        found = re.search(rf"<!-- example: {name}\.py -->\n```python\n(.*?)\n```\n", DOCUMENT, re.DOTALL)
        assert found
        (tmp_path / f"{name}.py").write_text(found[1] + "\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    return load


ANSWERS = {
    "```python\ndef double(x):\n    return 2 * x\n```": 1.0,
    "```python\ndef double(x):\n    return x * x\n```": 2 / 3,
    "First\n```python\ndef double(x): return 2 * x\n```\nno, better\n```python\ndef double(x): return 1 / x\n```": 0.0,
    "```python\ndef double(x) return\n```": 0.0,
    "```python\nimport os\nos._exit(0)\n```": 0.0,
    "I cannot write code.": 0.0,
}


def test_unit_tests_score_code(example: Any):
    module = example("unit_tests")
    reward, problem = module.reward, module.problem
    begun = Trajectory(problem)
    finished = [begun.extend(Step(text, "eos")) for text in ANSWERS]
    found = asyncio.run(reward.score(finished))
    assert [scores[0] for scores in found] == pytest.approx(list(ANSWERS.values()))
    assert asyncio.run(reward.score([begun.extend(Step("I think", "step"))])) == [[0.5]]


def test_code_that_never_ends_is_stopped(example: Any):
    module = example("unit_tests")
    module.SECONDS = 0.2  # whatever the time, it does not pass
    assert module.passes("while True: pass", "True") is False


def test_unit_tests_choose_the_code(example: Any):
    module = example("unit_tests")
    good, bad, *_ = ANSWERS
    lm = TabularLanguageModel({(): {good: 0.3, bad: 0.7}})
    result = motes.solve(module.problem, lm=lm, reward=module.reward, method=BestOfN(8), task=module.Code())
    assert result.answer == "def double(x):\n    return 2 * x\n"
    both = {"reward": TabularReward({(bad,): 0.9}), "outcome_reward": module.reward}
    result = motes.solve(module.problem, lm=lm, **both, method=ParticleFilter(8, selector="argmax"), task=module.Code())
    assert result.answer == "def double(x):\n    return 2 * x\n"


def test_a_rubric_of_ones_own(example: Any):
    module = example("grades")
    judge = motes.reward_model("judge:examiner:model?rubric=grades:GRADES")
    assert isinstance(judge, Judge)
    lm = Examiner(says=lambda asked: {" 3": 0.5, " 5": 0.5})
    node = Trajectory(Problem("2+2?")).extend(Step("4", "eos"))
    assert asyncio.run(Judge(lm, module.GRADES, num_verdicts=32).score([node])) == [(pytest.approx(0.75),)]


def test_every_rubric_and_option_is_told():
    for name in RUBRICS:
        assert f"| `{name}` |" in DOCUMENT
    for option in ("rubric", "num_verdicts", "max_retries", "seed"):
        assert f"| `{option}` |" in DOCUMENT
        assert option in Judge.__init__.__annotations__


def test_the_labelled_file_is_taken_by_the_command_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    (tmp_path / "labelled.jsonl").write_text(found[1])
    answers = read_labelled(tmp_path / "labelled.jsonl")
    assert [(len(a.steps), a.score, a.label) for a in answers[:3]] == [(2, None, 1), (1, None, 1), (2, None, 0)]
    assert (len(answers), answers[-1].score) == (12, 0.31)
    command = re.search(r"^motes (calibrate labelled.*)$", DOCUMENT, re.MULTILINE)
    assert command
    words = shlex.split(command[1])
    words[words.index("--reward") + 1] = "tiny"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOTES_HOME", str(tmp_path / "home"))
    assert main(words) == 0
    assert "12 labels, 6 of them right, 5 questions" in capsys.readouterr().out
    assert motes.Calibration.load("math")(0.5)
