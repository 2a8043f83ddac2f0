"""Where no trajectory states an answer, the likeliest text is kept and shown, and it is said that none was found."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

import gateways
import motes
from motes import Majority, ParticleFilter, Step, TabularLanguageModel, TabularReward, Trajectory
from motes.cli import main
from motes.core import Finish
from motes.errors import EngineError
from motes.gateway.answering import visible
from motes.lab import Evaluation, evaluate, read_records
from motes.lab.run.evaluation import RECORDS
from motes.methods import METHODS, method
from motes.methods.selectors import likeliest_texts
from motes.smc import Weights
from motes.tasks import Arithmetic

LM = TabularLanguageModel({(): {"It is four.": 0.7, "It may be five.": 0.2, "Six": 0.1}})
REWARD = TabularReward({("It is four.",): 0.6, ("It may be five.",): 0.3}, default=0.2)
TALKS = ["--model", "test_no_answer:LM", "--reward", "none", "--method", "majority", "-n", "9"]


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def trajectory(text: str, finished: Finish = "eos") -> Trajectory:
    ended = Trajectory(motes.Problem("?")).extend(Step(text, "eos" if finished == "eos" else "step"))
    return ended if finished == "eos" else ended.finish(finished)


@pytest.mark.parametrize(
    ("texts", "weights", "scores", "order"),
    [
        (["a", "b", "c"], [1, 3, 2], [0.5, 0.5, 0.5], "bca"),
        (["a", "b", "a"], [2, 3, 2], [0.5, 0.9, 0.5], "ab"),  # together the heaviest
        (["a", "b", "c"], [1, 1, 1], [0.5, 0.7, 0.6], "bca"),  # equal weights: the best scored
        (["a", "b", "c"], [1, 1, 1], [np.nan, 0.0, np.nan], "bac"),  # any score before none, then the first
        (["a", "b", "a", "b"], [1, 1, 1, 1], [0.9, 0.5, 0.1, 0.5], "ab"),  # a text is as good as its best
        (["a", "", "b"], [1, 9, 2], [0.5, 0.9, 0.5], "ba"),  # who wrote nothing says nothing
    ],
)
def test_the_likeliest_text_comes_first(texts: list[str], weights: list[float], scores: list[float], order: str):
    log_weights = Weights(np.log(np.array(weights, dtype=float)))
    places = likeliest_texts([trajectory(text) for text in texts], log_weights, np.array(scores))
    assert "".join(texts[place] for place in places) == order


def test_what_the_model_ended_comes_before_what_was_cut_off():
    cut, ended, failed = (
        trajectory("cut", "max_tokens"),
        trajectory("ended"),
        trajectory("failed").fail(EngineError("no")),
    )
    scores = np.array([0.9, 0.9, 0.1])
    assert likeliest_texts([cut, failed, ended], Weights(np.log([1.0, 5.0, 1.0])), scores) == [2, 0]
    assert likeliest_texts([cut, failed, ended], Weights(np.log([2.0, 5.0, 1.0])), scores) == [0, 2], (
        "weight comes first"
    )
    both = [trajectory("same", "max_steps"), trajectory("same")]
    assert likeliest_texts(both, Weights.uniform(2), np.array([0.9, 0.1])) == [1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_text(name: str):
    result = motes.solve("?", lm=LM, reward=REWARD, method=method(name, 16), seed=3)
    assert (result.answer, dict(result.posterior), result.confidence) == (None, {}, 0.0)
    assert result.text == "It is four."
    assert result.answers == (None,) * len(result.trajectories)


def test_an_outcome_model_that_has_nothing_to_choose_from_changes_nothing():
    options: dict[str, Any] = {"lm": LM, "reward": REWARD, "method": ParticleFilter(8)}
    assert motes.solve("?", outcome_reward=REWARD, **options).text == motes.solve("?", **options).text == "It is four."


def test_a_run_that_wrote_nothing_has_no_text():
    nothing = TabularLanguageModel({(): {"": 1.0}})
    result = motes.solve("?", lm=nothing, reward=None, method=Majority(3))
    assert (result.answer, result.text) == (None, "")


def test_solve_shows_the_text_and_says_what_to_do(capsys: Any):
    code, out, _ = run(capsys, "solve", "2+2?", *TALKS)
    assert code == 0
    assert out.startswith("\nIt is four.\n\n")
    said = " ".join(out.split())
    assert "answer no answer was found: none of 9 texts states one" in said
    assert "--prompt boxed" in said
    assert "--task" in said
    assert "confidence" not in said
    prompted = " ".join(run(capsys, "solve", "2+2?", *TALKS, "--prompt", "boxed")[1].split())
    assert "--task" in prompted
    assert "--prompt boxed" not in prompted, "which was done"


def test_json_says_so_too(capsys: Any):
    reply = json.loads(run(capsys, "solve", "2+2?", *TALKS, "--json")[1])
    assert (reply["answer"], reply["text"], reply["posterior"]) == (None, "It is four.", {})
    assert reply["no_answer"].startswith("no answer was found: none of 9 texts states one")
    found = json.loads(run(capsys, "solve", "2+2?", *TALKS, "--task", "test_no_answer:LastWord", "--json")[1])
    assert (found["answer"], found["no_answer"], found["task"]) == ("four.", None, "test_no_answer:LastWord")


class LastWord:
    """A rule alone: no task."""

    def answer(self, text: str) -> str | None:
        return text.split()[-1] if text.endswith(".") else None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        (None, "The answer is B. \\boxed{1,000}", "1,000"),
        ("exact-match", "The answer is Wiesbaden", "Wiesbaden"),
        ("multiple-choice", "The answer is (B).", "B"),
        ("math", "So \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("arithmetic", "So \\boxed{7}", "7"),
    ],
)
def test_the_task_chooses_the_rule_and_needs_no_file(task: str | None, text: str, answer: str):
    rule = None if task is None else motes.api.answer_rule(task)
    result = motes.solve("?", lm=TabularLanguageModel({(): {text: 1.0}}), reward=None, method=Majority(2), task=rule)
    assert result.answer == answer


def test_a_rule_that_does_not_exist_is_refused(capsys: Any):
    code, out, err = run(capsys, "solve", "2+2?", *TALKS, "--task", "exact-mach")
    assert (code, out) == (2, "")
    assert "did you mean 'exact-match'" in err


@pytest.mark.parametrize("words", [["--method", "greedy"], ["--method", "majority", "-n", "1"]])
def test_a_single_trajectory_has_no_confidence(capsys: Any, words: list[str]):
    model = ["--model", "worlds:language_model", "--reward", "worlds:reward_model"]
    question = Arithmetic().problems()[2].question
    out = run(capsys, "solve", question, *model, *words)[1]
    assert "answer" in out
    assert "confidence" not in out
    assert "posterior" not in out
    assert json.loads(run(capsys, "solve", question, *model, *words, "--json")[1])["confidence"] is None


def test_records_keep_the_text(tmp_path):
    evaluation = Evaluation(task="arithmetic", limit=1, methods=("majority",), budgets=(9,), reward=None)
    asyncio.run(evaluate(evaluation, tmp_path, lm=LM))
    (record,) = read_records(tmp_path / RECORDS)
    assert (record.outcome, record.answer, record.text) == ("no_answer", None, "It is four.")


def test_the_gateway_answers_with_it():
    result = motes.solve("?", lm=LM, reward=None, method=Majority(9), seed=2)
    assert [each.text for each in visible(result, 2)] == ["It is four.", "It may be five."]
    body = {
        "model": "story",
        "messages": [{"role": "user", "content": "?"}],
        "motes": {"method": "majority"},
        "seed": 1,
    }
    likeliest = motes.solve("?", lm=LM, reward=None, method=Majority(8), seed=1).text
    with gateways.over(LM) as client:
        reply = client.post("/v1/chat/completions", json=body).json()
        assert reply["choices"][0]["message"]["content"] == likeliest
        assert (reply["motes"]["answer"], reply["motes"]["confidence"]) == (None, 0.0)
        stream = client.post("/v1/chat/completions", json={**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == likeliest
