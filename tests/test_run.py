"""The one place that extends, scores and counts: why trajectories finish, what is counted, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import motes
from exact import path_of
from motes import (
    FunctionReward,
    Majority,
    ParticleFilter,
    Problem,
    Result,
    Sampling,
    Scores,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
    Usage,
)
from motes.errors import ConfigurationError, ContractError, EngineError, MotesError, RewardError

ENDLESS = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(9)})


class Scripted:
    """A language model whose step is a function of the depth."""

    def __init__(self, script: Callable[[int], Step]) -> None:
        self.script = script

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return [self.script(trajectory.depth) for trajectory in trajectories]


def solve(lm: Any, reward: Any = None, **sampling: Any) -> Result:
    return motes.solve(
        "?", lm=lm, reward=reward or TabularReward({}), method=ParticleFilter(3), sampling=Sampling(**sampling)
    )


@pytest.mark.parametrize(
    ("lm", "sampling", "finished", "depth"),
    [
        (ENDLESS, {"max_steps": 4}, "max_steps", 4),
        (ENDLESS, {"max_tokens": 2}, "max_tokens", 2),
        (TabularLanguageModel({(): {"a": 1.0}, ("a",): {"b": 1.0}}), {}, "eos", 2),
        (Scripted(lambda depth: Step("so \\boxed{1} or" if depth == 2 else "a", "step")), {}, "answer", 3),
        (Scripted(lambda depth: Step("\\boxed{1}", "eos")), {"max_steps": 1}, "eos", 1),
        (Scripted(lambda depth: Step("a", "length", (1,))), {"max_steps": 3}, "max_steps", 3),
        (Scripted(lambda depth: Step("a", "step", (1,)) if depth < 2 else Step("", "length")), {}, "max_tokens", 2),
    ],
)
def test_the_reason_for_finishing_is_kept(lm: Any, sampling: dict[str, int], finished: str, depth: int):
    result = solve(lm, **sampling)
    assert [(t.finished, t.depth) for t in result.trajectories] == [(finished, depth)] * 3


def test_a_step_that_found_no_room_is_no_step():
    """It is not scored, its particle keeps its weight, and what it cost is counted."""
    lm = Scripted(lambda depth: Step("a", "step", (1,)) if depth < 2 else Step("", "length"))
    result = solve(lm, TabularReward({("a",): 0.6, ("a", "a"): 0.7}))
    assert (result.usage.lm_calls, result.usage.reward_calls, result.usage.generated_tokens) == (9, 6, 6)
    assert result.records[2].log_weights.tolist() == result.records[1].log_weights.tolist()
    assert result.records[2].scores == pytest.approx([0.7] * 3)


def test_costs_that_models_know_are_counted_and_others_estimated():
    class Costly(TabularReward):
        async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
            usage = Usage(reward_tokens=5, reward_tokens_cached=2)
            return [Scores(scores, usage) for scores in await super().score(trajectories)]

    knowing = Scripted(lambda depth: Step("a", "eos", (1, 2), usage=Usage(generated_tokens=2, prefill_tokens=9)))
    calls = Usage(lm_calls=3, reward_calls=3)
    tokens = Usage(
        generated_tokens=6, prefill_tokens=27, reward_tokens=21, computed_prefill_tokens=27, computed_reward_tokens=15
    )
    assert solve(knowing, Costly({})).usage == tokens + calls
    silent = Scripted(lambda depth: Step("a", "eos", (1, 2)))
    assert solve(silent).usage == Usage(generated_tokens=6) + calls


def test_every_particle_has_a_seed_of_its_own():
    seen: list[int] = []

    class Listening(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Sequence[int]) -> list[Step]:
            seen.extend(seeds)
            return await super().extend(trajectories, sampling, seeds)

    lm = Listening(ENDLESS.table)
    for method in (ParticleFilter(8), Majority(8)):
        motes.solve("?", lm=lm, reward=TabularReward({}), method=method, sampling=Sampling(max_steps=5))
    assert len(set(seen)) == len(seen) == 2 * 8 * 5
    assert all(0 <= seed < 2**63 for seed in seen)


class Wrong(TabularReward):
    """Answers whatever it is made to."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        super().__init__({})
        self.answer = answer

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return self.answer(len(trajectories))


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (lambda n: [[np.nan]] * n, RewardError, "must be a number in"),
        (lambda n: [[1.5]] * n, RewardError, r"TabularReward.*\[1\.5\]"),
        (lambda n: [[-0.1]] * n, RewardError, "must be a number in"),
        (lambda n: [[0.5]] * (n - 1), ContractError, "scored 2 of 3"),
        (lambda n: [[0.5, 0.5]] * n, ContractError, "2 scores for 1 steps"),
        (lambda n: [[]] * n, ContractError, "0 scores for 1 steps"),
        (lambda n: None, ContractError, "`score` returned None: it must return a list"),
        (lambda n: [None] * n, ContractError, "gave None: the scores of a trajectory are a list of numbers"),
        (lambda n: [0.5] * n, ContractError, "gave 0.5: the scores of a trajectory are a list of numbers"),
        (lambda n: [["0.5"]] * n, ContractError, "a list of numbers"),
        (lambda n: [[None]] * n, ContractError, "a list of numbers"),
    ],
)
def test_scores_that_cannot_be_used_are_an_error(answer: Any, error: type[MotesError], complaint: str):
    with pytest.raises(error, match=complaint) as caught:
        solve(ENDLESS, Wrong(answer))
    assert caught.value.result is not None
    assert caught.value.result.usage.lm_calls == 3, "what was paid for is reported"


def test_a_language_model_that_drops_a_step_is_an_error():
    class Dropping(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            return (await super().extend(trajectories, sampling, seeds))[1:]

    with pytest.raises(ContractError, match="2 steps for 3"):
        solve(Dropping(ENDLESS.table))


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: ((0.5,),) * n,
        lambda n: np.full((n, 1), 0.5),
        lambda n: (iter([0.5]) for _ in range(n)),
        lambda n: [np.array([0.5], dtype=np.float32)] * n,
    ],
)
def test_scores_may_come_in_any_sequence(answer: Any):
    result = motes.solve("?", lm=ENDLESS, reward=Wrong(answer), method=Majority(3), sampling=Sampling(max_steps=1))
    assert result.usage.lm_calls == 3
    result = motes.solve(
        "?", lm=ENDLESS, reward=Wrong(answer), method=ParticleFilter(3), sampling=Sampling(max_steps=1)
    )
    assert result.scores.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (None, "`extend` returned None: it must return a list"),
        (["text"] * 3, "returned 'text', which is neither a Step nor a Failure"),
        ([None] * 3, "returned None, which is neither"),
    ],
)
def test_a_language_model_that_returns_no_steps_is_an_error(returned: Any, complaint: str):
    class Wrong(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            return returned

    with pytest.raises(ContractError, match=complaint):
        solve(Wrong(ENDLESS.table))

    class Plain(TabularLanguageModel):
        def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            return returned

    with pytest.raises(ContractError, match="must be declared `async def`"):
        solve(Plain(ENDLESS.table))


def test_one_failing_call_ends_the_others():
    cancelled: list[int] = []

    class Failing:
        merges_calls = True
        calls = 0

        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            self.calls += 1
            if (number := self.calls) == 2:
                raise EngineError("out of tokens")
            try:
                for _ in range(100):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                cancelled.append(number)
                raise
            return []

    with pytest.raises(EngineError, match="out of tokens"):
        solve(Failing())
    assert sorted(cancelled) == [1, 3]


# ------------------------------------------------------------------------------------------------------- the fakes


def test_the_tables_of_a_fake_must_be_tables():
    for table in ({}, {("a",): {"b": 1.0}}, {(): {"a": 0.5}}, {(): {"a": 1.5, "b": -0.5}}, {(): {}}):
        with pytest.raises(ConfigurationError, match=r"row"):
            TabularLanguageModel(table)
    for score in (-0.1, 1.1, np.nan):
        with pytest.raises(ConfigurationError, match="must lie in"):
            TabularReward({("a",): score})
        with pytest.raises(ConfigurationError, match="must lie in"):
            TabularReward({}, default=score)


def test_a_random_table_has_answers_of_every_length():
    lm = TabularLanguageModel.random(np.random.default_rng(0), steps=("a", "b"), depth=4)
    paths = dict(lm.paths())
    assert sum(paths.values()) == pytest.approx(1.0)
    assert set(map(len, paths)) == {1, 2, 3, 4}
    reward = TabularReward.random(np.random.default_rng(0), list(paths))
    assert all(0 < reward[path] < 1 for path in paths)
    assert reward[("never", "seen")] == 0.5


def test_a_function_is_a_reward_model_that_scores_each_prefix_once():
    asked: list[tuple[str, str]] = []

    def share_of_a(problem: Problem, text: str) -> float:
        asked.append((problem.question, text))
        return text.count("a") / len(text)

    async def later(problem: Problem, text: str) -> float:
        await asyncio.sleep(0)
        return text.count("a") / len(text)

    node = Trajectory(Problem("?")).extend(Step("a", "step"))
    left, right = node.extend(Step("b", "step")), node.extend(Step("a", "step"))
    for fn in (share_of_a, later):
        assert asyncio.run(FunctionReward(fn).score([left, right, left])) == [[1.0, 0.5], [1.0, 1.0], [1.0, 0.5]]
    assert asked == [("?", "a"), ("?", "ab"), ("?", "aa")]
    assert repr(FunctionReward(later)) == "FunctionReward(later)"


def test_temperature_zero_takes_the_likeliest_step():
    lm = TabularLanguageModel({(): {"a": 0.4, "b": 0.6}})
    result = motes.solve("?", lm=lm, reward=None, method=Majority(20), sampling=Sampling(temperature=0))
    assert {path_of(t) for t in result.trajectories} == {("b",)}
    assert result.trajectories[0].steps[0].logprob == pytest.approx(np.log(0.6))
