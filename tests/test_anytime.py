"""Limits on a whole run: at a deadline, or when a budget of tokens is spent, every method returns what it has.

Time is virtual (see virtual_time.py): the clock of the event loop jumps from one timer to the next.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import motes
from exact import UNEVEN, path_of
from motes import (
    BeamSearch,
    BestOfN,
    Greedy,
    Majority,
    ParticleFilter,
    Result,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
    WeightedBestOfN,
)
from motes.core import STOPS
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.methods import METHODS, Run, method
from motes.methods import run as run_module
from motes.methods.limits import Limits
from mutations import mutate
from virtual_time import timed

DEPTH = 9
LONG = TabularLanguageModel(  # one step in eight ends an answer; the ninth does for certain
    {
        ("a",) * k: {"a": 0.875, f"\\boxed{{{k % 2}}}": 0.125} if k < DEPTH - 1 else {"\\boxed{2}": 1.0}
        for k in range(DEPTH)
    }
)
REWARD = TabularReward({}, default=0.6)
NEVER = {"potential": "increment", "beta": 1.0, "ess_threshold": 0.0}
"""Never resampled: particles stay where they are, and weights say what they went through."""


class Slow(TabularLanguageModel):
    """Takes a second for a step; where calls are merged, the step's number among its round's seconds."""

    def __init__(self, table: Any, *, merges_calls: bool, seconds: Sequence[float] = (1.0,)) -> None:
        super().__init__(table)
        self.merges_calls = merges_calls
        self.seconds = seconds
        self.calls = 0
        self.cancelled = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        number, self.calls = self.calls, self.calls + 1
        try:
            await asyncio.sleep(self.seconds[number % len(self.seconds)])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().extend(trajectories, sampling, seeds)


class SlowReward(TabularReward):
    """Takes some seconds for a call."""

    def __init__(self, seconds: float) -> None:
        super().__init__({}, default=0.6)
        self.seconds = seconds

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        await asyncio.sleep(self.seconds)
        return await super().score(trajectories)


def solve(made: Any, lm: Any = LONG, reward: Any = REWARD, **options: Any) -> tuple[Result, float]:
    """The result, and the virtual seconds it took."""
    return timed(lambda: motes.asolve("?", **{"lm": lm, "reward": reward, "method": made, "seed": 1, **options}))


def same_round(first: motes.Record, second: motes.Record) -> bool:
    return (
        list(map(path_of, first.trajectories)) == list(map(path_of, second.trajectories))
        and first.log_weights.tolist() == second.log_weights.tolist()
        and (first.ancestors.tolist(), first.log_evidence) == (second.ancestors.tolist(), second.log_evidence)
    )


# ------------------------------------------------------------------------------------------------- a budget of tokens


@pytest.mark.parametrize("token_budget", [1, 16, 17, 50, 90])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_stops_within_a_round_of_its_token_budget(name: str, token_budget: int):
    full, _ = solve(made := method(name, 16))
    assert full.stopped is None
    result, _ = solve(made, token_budget=token_budget)
    spent = result.usage.generated_tokens  # one token a step
    if result.stopped is None:  # the last round was begun before the budget was spent
        assert (spent, result.answer) == (full.usage.generated_tokens, full.answer)
        assert spent < token_budget + made.budget
        return
    assert result.stopped == "token_budget"
    assert token_budget <= spent < token_budget + made.budget
    assert all(t.finished in ("eos", "answer", "token_budget") for t in result.trajectories)
    answered = [t for t in result.trajectories if t.finished not in STOPS]
    assert (result.answer is not None) == bool(answered)
    assert sum(result.posterior.values()) <= 1 + 1e-9


@pytest.mark.parametrize("made", [ParticleFilter(8, ess_threshold=1.0), ParticleFilter.paper(8), BeamSearch(8, 2)])
def test_what_was_computed_before_stays_as_it_is(made: Any):
    full, _ = solve(made)
    for token_budget in range(1, full.usage.generated_tokens):
        result, _ = solve(made, token_budget=token_budget)
        rounds = len(result.records)
        assert all(map(same_round, result.records, full.records[:rounds]))
        assert full.records[rounds - 1].usage == result.records[-1].usage
        assert sum(r.usage.generated_tokens for r in full.records[: rounds - 1]) < token_budget, "no round too many"
        if result.log_evidence is not None:
            assert result.log_evidence == full.records[rounds - 1].log_evidence
            assert result.log_weights.tolist() == full.records[rounds - 1].log_weights.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_that_was_enough_stops_nothing(name: str):
    full, _ = solve(method(name, 16))
    result, _ = solve(method(name, 16), token_budget=full.usage.generated_tokens)
    assert (result.stopped, result.answer) == (None, full.answer)
    assert result.usage == dataclasses.replace(full.usage, failed_generated_tokens=0)  # of those that were cancelled


def test_a_budget_spent_on_the_last_step_stops_nothing():
    method = ParticleFilter(8, **NEVER)
    full, _ = solve(method)
    tokens = full.usage.generated_tokens
    assert solve(method, token_budget=tokens)[0].stopped is None
    assert solve(method, token_budget=tokens - 1)[0].stopped is None, "the last round was begun"
    last = full.records[-1].usage.generated_tokens
    assert solve(method, token_budget=tokens - last)[0].stopped == "token_budget"


@pytest.mark.parametrize("made", [Majority(6), BestOfN(6), WeightedBestOfN(6), Greedy()])
def test_independent_samples_are_cut_off_alike_whoever_is_ahead(made: Any):
    ahead = Slow(LONG.table, merges_calls=True, seconds=(5.0, 1.0, 1.0, 3.0))
    first, _ = solve(made, token_budget=20)
    second, _ = solve(made, token_budget=20, lm=ahead)
    assert list(map(path_of, first.trajectories)) == list(map(path_of, second.trajectories))
    assert (first.answer, first.usage, first.stopped) == (second.answer, second.usage, second.stopped)


def test_cut_off_answers_are_not_scored():
    result, _ = solve(BestOfN(8), token_budget=20)
    finished = [t for t in result.trajectories if t.finished == "eos"]
    assert 0 < len(finished) == result.usage.reward_calls < 8
    assert np.isnan(result.scores).sum() == 8 - len(finished)


class Twice:
    """Two rounds that both begin at the beginning, as those of methods with several sweeps."""

    budget = 8
    needs_reward = False

    async def run(self, run: Run) -> Result:
        first = await run.extend(run.start(4), score=False)
        second = await run.extend(run.start(4), score=False)
        return run.result(trajectories=(*first.trajectories, *second.trajectories))


def test_nothing_is_begun_once_the_budget_is_spent():
    result, _ = solve(Twice(), token_budget=3, seed=0)
    assert [t.depth for t in result.trajectories] == [1] * 4 + [0] * 4
    assert {t.finished for t in result.trajectories[4:]} == {"token_budget"}
    assert (result.usage.lm_calls, result.stopped) == (4, "token_budget")


# ----------------------------------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("merges_calls", [True, False])
def test_a_deadline_cancels_what_is_in_flight(merges_calls: bool):
    full, seconds = solve(ParticleFilter(6, **NEVER), lm=Slow(LONG.table, merges_calls=merges_calls))
    assert (seconds, full.stopped) == (DEPTH, None)
    lm = Slow(LONG.table, merges_calls=merges_calls)
    result, seconds = solve(ParticleFilter(6, **NEVER), lm=lm, deadline=3.5)
    assert seconds == pytest.approx(3.5)
    assert result.stopped == "deadline"
    unfinished = sum(t.finished is None for t in full.records[2].trajectories)
    assert lm.cancelled == (unfinished if merges_calls else 1) > 0
    assert [len(t.path) for t in result.trajectories if t.finished == "deadline"] == [3] * unfinished
    assert result.log_weights.tolist() == full.records[2].log_weights.tolist(), "weights are those of three rounds"
    assert result.log_evidence == full.records[2].log_evidence
    assert result.usage.lm_calls == sum(r.usage.lm_calls for r in full.records[:3])


@pytest.mark.parametrize("made", [ParticleFilter(4, **NEVER), ParticleFilter(4, **{**NEVER, "potential": "absolute"})])
def test_who_is_ready_at_the_deadline_is_kept_and_others_keep_their_weight(made: ParticleFilter):
    endless = {("a",) * k: {"a": 1.0} for k in range(9)}
    lm = Slow(endless, merges_calls=True, seconds=(1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0, 9.0))
    reward = TabularReward({("a", "a"): 0.8}, default=0.6)
    result, seconds = solve(made, lm=lm, reward=reward, deadline=4.0)
    assert seconds == pytest.approx(4.0)
    assert [t.depth for t in result.trajectories] == [2, 1, 2, 1]
    assert [t.finished for t in result.trajectories] == ["deadline"] * 4
    first, second = 0.6 / 0.4, 0.8 / 0.2
    ready = first * second if made.potential == "absolute" else second
    assert np.exp(result.log_weights) == pytest.approx([ready, first, ready, first])
    assert (result.usage.lm_calls, result.usage.reward_calls) == (6, 6)


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_deadline_brought_forward_is_like_one_known_from_the_start(name: str, merges_calls: bool):
    def lm() -> Slow:
        return Slow(LONG.table, merges_calls=merges_calls)

    async def brought_forward() -> Result:
        limits = Limits(deadline=100.0)
        loop = asyncio.get_running_loop()
        loop.call_at(2.1, limits.bring_forward, 3.36)  # both are within a step
        loop.call_at(2.2, limits.bring_forward, 50.0)  # not forward
        reward = SlowReward(0.25)
        return await motes.asolve("?", lm=lm(), reward=reward, method=method(name, 16), seed=1, limits=limits)

    known, seconds = solve(method(name, 16), lm=lm(), reward=SlowReward(0.25), deadline=3.36)
    result, later = timed(brought_forward)
    assert later == seconds
    assert (result.stopped, result.answer, result.usage) == (known.stopped, known.answer, known.usage)
    assert list(map(path_of, result.trajectories)) == list(map(path_of, known.trajectories))
    assert known.stopped == "deadline" or name == "greedy"


def test_a_deadline_that_is_brought_to_the_past_ends_a_run_at_once():
    async def test() -> tuple[Result, float]:
        limits = Limits(token_budget=1000)  # and no deadline yet
        loop = asyncio.get_running_loop()
        loop.call_at(2.5, limits.bring_forward, 1.0)
        result = await motes.asolve("?", lm=Slow(LONG.table, merges_calls=True), reward=REWARD, limits=limits)
        return result, loop.time()

    result, seconds = timed(test)[0]
    assert (result.stopped, seconds) == ("deadline", 2.5)
    assert [t.depth for t in result.trajectories if t.finished == "deadline"]


def test_a_rule_keeps_its_grace_when_the_deadline_is_brought_forward():
    async def test() -> float:
        limits = Limits(deadline=100.0)
        loop = asyncio.get_running_loop()
        loop.call_at(1.0, limits.bring_forward, 1.0)
        with pytest.raises(TimeoutError):
            async with limits.timeout(grace=3.0):
                await asyncio.sleep(50.0)
        return loop.time()

    assert timed(test)[0] == 3.0


def test_a_step_that_was_not_scored_in_time_is_not_kept():
    lm = Slow(LONG.table, merges_calls=True)
    result, seconds = solve(ParticleFilter(4), lm=lm, reward=SlowReward(1.0), deadline=3.5)  # rounds of 2 seconds
    assert seconds == pytest.approx(3.5)
    assert [t.depth for t in result.trajectories] == [1] * 4
    assert (result.usage.lm_calls, result.usage.reward_calls) == (8, 4), "what it cost is counted"


def test_answers_that_could_not_be_scored_count_the_same():
    lm = TabularLanguageModel({(): {"\\boxed{1}": 0.4, "\\boxed{2}": 0.6}})
    for made in (BestOfN(9), WeightedBestOfN(9)):
        result, seconds = solve(made, lm=lm, reward=SlowReward(10.0), deadline=2.0)
        assert (seconds, result.stopped) == (pytest.approx(2.0), "deadline")
        assert sum(result.posterior.values()) == pytest.approx(1.0)
        assert result.answer in ("1", "2")
    counts = Counter(path_of(t)[0][-2] for t in result.trajectories)
    assert result.answer == counts.most_common(1)[0][0], "a vote by head"


def test_scored_answers_win_over_those_that_could_not_be_scored():
    lm = Slow({(): {"\\boxed{1}": 0.5, "\\boxed{2}": 0.5}}, merges_calls=True, seconds=(1.0, 1.0, 4.0, 4.0, 4.0))
    for made in (BestOfN(5), WeightedBestOfN(5)):
        result, _ = solve(made, lm=lm, reward=SlowReward(2.0), deadline=5.0)
        scored = [path_of(t)[0][-2] for t, s in zip(result.trajectories, result.scores, strict=True) if not np.isnan(s)]
        assert len(scored) == 2
        assert result.answer in scored
        lm.calls = 0


@pytest.mark.parametrize("deadline", [0.5, 1.5, 4.0, 7.25])
@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_returns_at_its_deadline(name: str, merges_calls: bool, deadline: float):
    lm = Slow(LONG.table, merges_calls=merges_calls, seconds=(1.0, 0.7, 1.3))
    result, seconds = solve(method(name, 16), lm=lm, reward=SlowReward(0.25), deadline=deadline)
    if result.stopped is None:
        assert seconds <= deadline
        return
    assert (result.stopped, seconds) == ("deadline", pytest.approx(deadline))
    assert (result.answer is None) == all(t.finished in STOPS for t in result.trajectories)
    assert sum(result.posterior.values()) <= 1 + 1e-9
    assert result.log_weights.shape == (len(result.trajectories),)
    assert not np.isneginf(result.log_weights).all()
    assert result.log_evidence is None or np.isfinite(result.log_evidence)


def test_a_deadline_that_is_kept_changes_nothing():
    for made in (ParticleFilter(6), Majority(6), BeamSearch(6, 2)):
        first, _ = solve(made, lm=Slow(LONG.table, merges_calls=True))
        second, _ = solve(made, lm=Slow(LONG.table, merges_calls=True), deadline=100.0, token_budget=10**6)
        assert list(map(path_of, first.trajectories)) == list(map(path_of, second.trajectories))
        assert (first.answer, first.usage, second.stopped) == (second.answer, second.usage, None)


def test_a_timeout_of_the_models_own_is_its_failure():
    class TimesOut(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            raise TimeoutError("the server did not answer")

    for limits in ({}, {"deadline": 60.0}):
        with pytest.raises(TimeoutError, match="did not answer"):
            solve(ParticleFilter(3), lm=TimesOut(LONG.table), **limits)


def test_zero_weights_are_an_error_all_the_same():
    nothing = TabularReward({}, default=0.0)
    with pytest.raises(DegenerateWeightsError):
        solve(ParticleFilter(4, link="probability"), reward=nothing, token_budget=2)
    with pytest.raises(DegenerateWeightsError):
        solve(WeightedBestOfN(8), reward=nothing, token_budget=30)


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"deadline": 0.0}, "deadline must be finite and more than 0"),
        ({"deadline": float("nan")}, "deadline must be finite"),
        ({"deadline": float("inf")}, "deadline must be finite"),
        ({"token_budget": 0}, "token_budget must be at least 1"),
        ({"limits": Limits(1.0), "deadline": 1.0}, "leave out the other two"),
        ({"limits": 1.0}, r"limits must be motes\.methods\.limits\.Limits"),
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, Any], complaint: str):
    with pytest.raises(ConfigurationError, match=complaint):
        motes.solve("?", lm=UNEVEN.lm, reward=UNEVEN.reward, **limits)


# ----------------------------------------------------------------------------------------------------------- mutations

MUTATIONS = {
    "steps are begun after the budget is spent": ("if live and not self.exhausted():", "if live:"),
    "what is finished is cut off as well": ("[t if t.finished else t.finish(", "[t.finish("),
    "children are kept before they are scored": (
        "grown = [i for i in batch if children[i].depth > trajectories[i].depth]",
        "grown = [i for i in batch if children[i].depth > trajectories[i].depth]\n"
        "                trajectories[:] = [children.get(i, t) for i, t in enumerate(trajectories)]",
    ),
    "parts of a run each have the whole budget": ("self._root.usage.generated_tokens", "self.usage.generated_tokens"),
    "a model's own timeout counts as the deadline": ("if not timeout.expired():", "if False:"),
    "a deadline does not interrupt": ("self.limits.timeout()", "Limits().timeout()"),
    "who is ahead spends the budget": (" or self.limits.token_budget is not None", ""),
    "the cut off are scored": ("if t.depth and not t.error and t.finished not in STOPS]", "if t.depth]"),
    "the result does not say so": ("stopped=self.limits.stopped,", "stopped=None,"),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    mutate(monkeypatch, run_module, "Run", *MUTATIONS[mistake])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        every_check()


def every_check() -> None:
    for name in ("pf", "islands"):
        for tokens in (1, 17, 50):
            test_every_method_stops_within_a_round_of_its_token_budget(name, tokens)
    test_nothing_is_begun_once_the_budget_is_spent()
    test_a_deadline_cancels_what_is_in_flight(True)
    test_a_step_that_was_not_scored_in_time_is_not_kept()
    test_independent_samples_are_cut_off_alike_whoever_is_ahead(Majority(6))
    test_cut_off_answers_are_not_scored()
    test_a_timeout_of_the_models_own_is_its_failure()


def test_without_the_mistake_nothing_is_found():
    every_check()
