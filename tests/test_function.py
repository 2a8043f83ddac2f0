"""Functions as reward models: sync or async, one answer at a time or all at once, of every step or of the outcome."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import motes
from motes import FunctionReward, ParticleFilter, Problem, Step, TabularLanguageModel, Trajectory
from motes.core import NEUTRAL, Failure
from motes.errors import ContextLengthError, RewardError

PROBLEM = Problem("How much is 3+4?", answer="7")


def path(*texts: str, end: str = "step") -> Trajectory:
    node = Trajectory(PROBLEM)
    for i, text in enumerate(texts):
        node = node.extend(Step(text, end if i == len(texts) - 1 else "step"))  # type: ignore[arg-type]
    return node


def score(reward: FunctionReward, *trajectories: Trajectory) -> list[list[float]]:
    return [list(scores) for scores in asyncio.run(reward.score(trajectories))]


def length(problem: Problem, text: str) -> float:
    return (len(problem.question) + 7 * len(text)) % 101 / 101


async def length_later(problem: Problem, text: str) -> float:
    await asyncio.sleep(0)
    return length(problem, text)


def lengths(problems: Sequence[Problem], texts: Sequence[str]) -> np.ndarray:
    return np.array([length(problem, text) for problem, text in zip(problems, texts, strict=True)], dtype=np.float32)


async def lengths_later(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
    return list(map(length, problems, texts))


KINDS = [(length, False), (length_later, False), (lengths, True), (lengths_later, True)]


@pytest.mark.parametrize("outcome", [False, True])
@pytest.mark.parametrize(("fn", "batched"), KINDS, ids=lambda kind: getattr(kind, "__name__", ""))
def test_every_kind_keeps_the_contract(fn: Any, batched: bool, outcome: bool):
    motes.check_reward_model(FunctionReward(fn, batched=batched, outcome=outcome))


@pytest.mark.parametrize(("fn", "batched"), KINDS, ids=lambda kind: getattr(kind, "__name__", ""))
def test_every_kind_gives_the_same_scores(fn: Any, batched: bool):
    node = path("a", "bc")
    found = score(FunctionReward(fn, batched=batched), node, path("a"), node)
    expected = [length(PROBLEM, "a"), length(PROBLEM, "abc")]
    for scores, values in zip(found, (expected, expected[:1], expected), strict=True):
        assert scores == pytest.approx(values)
    assert score(FunctionReward(fn, batched=batched)) == []


def test_a_batched_function_is_asked_once_for_what_is_new():
    asked: list[list[str]] = []

    def halves(problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        asked.append(list(texts))
        return [0.5] * len(problems)

    reward = FunctionReward(halves, batched=True)
    node = path("a", "b")
    score(reward, node, node)
    score(reward, node.extend(Step("c", "step")), node)
    score(reward, node)
    assert asked == [["a", "ab"], ["abc"]]


def test_async_functions_are_asked_all_at_once():
    """Each waits until all five are there: one after another they would wait for ever."""

    async def run() -> list[Sequence[float]]:
        everyone = asyncio.Barrier(5)

        async def together(problem: Problem, text: str) -> float:
            await everyone.wait()
            return 0.25

        return await FunctionReward(together).score([path("a", "b"), path("c", "d"), path("e")])

    assert asyncio.run(run()) == [[0.25, 0.25], [0.25, 0.25], [0.25]]


@pytest.mark.parametrize("right", [True, np.True_, 1, np.float32(1.0)])
def test_an_exact_checker_may_say_true_or_false(right: Any):
    checker = FunctionReward(lambda problem, text: right if f"\\boxed{{{problem.answer}}}" in text else not right)
    assert score(checker, path("\\boxed{7}"), path("\\boxed{8}")) == [[1.0], [0.0]]


def test_an_outcome_is_scored_when_the_answer_is_finished():
    asked: list[str] = []

    def check(problem: Problem, text: str) -> bool:
        asked.append(text)
        return "7" in text

    reward = FunctionReward(check, outcome=True)
    begun = path("3+4=7, ", "so ")
    assert score(reward, begun) == [[NEUTRAL, NEUTRAL]]
    assert asked == []
    ended, cut = begun.extend(Step("7.", "eos")), begun.extend(Step("eight", "step")).finish("max_tokens")
    assert score(reward, ended, cut, begun.extend(Step("still", "step"))) == [
        [NEUTRAL, NEUTRAL, 1.0],
        [NEUTRAL, NEUTRAL, 1.0],  # how an answer ended is for the function to judge by its text
        [NEUTRAL, NEUTRAL, NEUTRAL],
    ]
    assert asked == ["3+4=7, so 7.", "3+4=7, so eight"]


@pytest.mark.parametrize("potential", ["increment", "absolute"])
def test_an_outcome_leaves_the_weights_of_the_unfinished_alone(potential: Any):
    lm = TabularLanguageModel({(): {"a": 0.5, "b": 0.5}, **{(x,): {"c \\boxed{7}": 0.5, "d": 0.5} for x in "ab"}})
    reward = FunctionReward(lambda problem, text: 0.9 if "\\boxed{7}" in text else 0.1, outcome=True)
    method = ParticleFilter(8, potential=potential, beta=1.0, ess_threshold=0.5)
    result = motes.solve(PROBLEM, lm=lm, reward=reward, method=method, seed=1)
    assert result.records[0].log_weights == pytest.approx(np.zeros(8))
    expected = [math.log(9) if "7" in trajectory.text else -math.log(9) for trajectory in result.trajectories]
    assert result.log_weights == pytest.approx(expected)
    assert result.answer == "7"


@pytest.mark.parametrize(
    "value", [1.5, -0.1, float("nan"), float("inf"), "0.5", None, [0.5, 0.5], np.array([0.1, 0.2])]
)
@pytest.mark.parametrize("batched", [False, True])
def test_what_is_no_score_is_an_error_that_shows_it(value: Any, batched: bool):
    def broken(problem: Any, text: Any) -> Any:
        return [value] if batched else value

    with pytest.raises(RewardError, match=r"FunctionReward\(broken\) gave .*'ends so'.* must be a number in \[0, 1\]"):
        score(FunctionReward(broken, batched=batched), path("ends so"))


@pytest.mark.parametrize("given", [[], [0.5], [0.5] * 3])
def test_a_batched_function_gives_one_score_for_each(given: list[float]):
    reward = FunctionReward(lambda problems, texts: given, batched=True)
    with pytest.raises(RewardError, match=f"gave {len(given)} scores for 2 texts"):
        score(reward, path("a", "b"))


def faulty(problem: Any, text: Any) -> float:
    return 1 / 0


async def faulty_later(problem: Any, text: Any) -> float:
    return 1 / 0


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("fn", [faulty, faulty_later])
def test_an_exception_of_the_function_fails_the_run_by_name(fn: Callable[..., Any], batched: bool):
    with pytest.raises(RewardError, match=rf"FunctionReward\({fn.__name__}\) raised ZeroDivisionError") as caught:
        score(FunctionReward(fn, batched=batched), path("a"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_answer_that_the_function_refuses_is_dropped_alone():
    def picky(problem: Problem, text: str) -> float:
        if "z" in text:
            raise ContextLengthError("no room for z")
        return 0.5

    found = asyncio.run(FunctionReward(picky).score([path("a", "z", "c"), path("a"), path("az")]))
    first, second, third = (scores.error if isinstance(scores, Failure) else scores for scores in found)
    assert (type(first), second, type(third)) == (ContextLengthError, [0.5], ContextLengthError)
    lm = TabularLanguageModel({(): {"a \\boxed{1}": 0.5, "z \\boxed{2}": 0.5}})
    result = motes.solve("?", lm=lm, reward=FunctionReward(picky), method=ParticleFilter(8), seed=0)
    assert (dict(result.posterior), {str(t.error) for t in result.dropped}) == ({"1": 1.0}, {"no room for z"})


def test_a_batched_function_that_refuses_refuses_all():
    def picky(problems: Any, texts: Any) -> Any:
        raise RewardError("not today")

    found = asyncio.run(FunctionReward(picky, batched=True).score([path("a"), path("b")]))
    assert [str(failure.error) for failure in found if isinstance(failure, Failure)] == ["not today"] * 2


def exits(problem: Any, text: Any) -> float:
    sys.exit("done")


def interrupts(problem: Any, text: Any) -> float:
    raise KeyboardInterrupt


def cancels(problem: Any, text: Any) -> float:
    raise asyncio.CancelledError


def stops(problem: Any, text: Any) -> float:
    raise StopIteration


async def exits_later(problem: Any, text: Any) -> float:
    sys.exit("done")


async def cancels_later(problem: Any, text: Any) -> float:
    raise asyncio.CancelledError


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("fn", [exits, interrupts, cancels, stops, exits_later, cancels_later])
def test_what_would_end_a_process_ends_the_run_alone(fn: Callable[..., Any], batched: bool):
    with pytest.raises(RewardError, match=rf"FunctionReward\({fn.__name__}\) raised"):
        score(FunctionReward(fn, batched=batched), path("a"))
