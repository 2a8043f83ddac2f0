"""Particles that the language model cannot extend are dropped: weight zero, no answer, a reason; the others go on.

Where every step fails with the same probability f, whatever it is, an answer of three steps is reached with (1 − f)³ of
its probability: Ẑ·ΣWf estimates (1 − f)³·Z·E[f], exactly, and the normalised posterior is that of a run without
failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import motes
from exact import EVEN, FUNCTIONS, World, path_of, unbiased_estimates, z_limit, z_scores
from motes import (
    BeamSearch,
    BestOfN,
    Greedy,
    Islands,
    Majority,
    ParticleFilter,
    ParticleGibbs,
    PowerFilter,
    Result,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
    WeightedBestOfN,
)
from motes.core import Failure
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    DegenerateWeightsError,
    EngineError,
    NoParticlesError,
    ServerError,
)
from motes.methods import METHODS, Population, Run, conclude, method, particle_filter, requirements, run
from motes.smc import Weights
from motes.tasks import BoxedAnswers
from mutations import mutant, mutate


class Failing(TabularLanguageModel):
    """Fails a step with probability `rate`, drawn from its seed; or always, for trajectories that `when` picks."""

    def __init__(self, table: Any, rate: float = 0.0, *, when: Any = None, merges_calls: bool = False) -> None:
        super().__init__(table)
        self.rate = rate
        self.when = when or (lambda trajectory: False)
        self.merges_calls = merges_calls

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> Any:
        steps = await super().extend(trajectories, sampling, seeds)
        fails = [np.random.default_rng([seed, 1]).random() < self.rate for seed in seeds]
        return [
            Failure(ServerError("the server is ill: call a doctor")) if failed or self.when(trajectory) else step
            for step, failed, trajectory in zip(steps, fails, trajectories, strict=True)
        ]


RATE = 0.15
FRAIL = World(Failing(EVEN.lm.table, RATE), EVEN.reward)
FILTERS = [
    ParticleFilter(3, ess_threshold=1.0, resampling="multinomial"),
    ParticleFilter(4, potential="absolute", link="probability"),
    Islands(2, 2),
]


@pytest.mark.parametrize("made", FILTERS, ids=lambda made: type(made).__name__)
def test_dropping_scales_the_evidence_by_the_chance_to_survive(made: ParticleFilter):
    estimates = unbiased_estimates(FRAIL, made, runs=1000)
    expected = (1 - RATE) ** 3 * EVEN.target(made, FUNCTIONS)
    assert np.abs(z_scores(estimates, expected)).max() < z_limit(100)


def test_a_filter_without_rewards_drops_as_well():
    filter_without_rewards(runs=1000)


def filter_without_rewards(runs: int) -> None:
    made = PowerFilter(3, alpha=2.0, ess_threshold=1.0, resampling="multinomial")
    estimates = unbiased_estimates(FRAIL, made, runs=runs)  # type: ignore[arg-type]
    sums = [sum(p**2 * f(path) for path, p in EVEN.lm.paths()) for f in FUNCTIONS]
    assert np.abs(z_scores(estimates, (1 - RATE) ** 3 * np.array(sums))).max() < z_limit(100)


def solve(made: Any, lm: Any = FRAIL.lm, **options: Any) -> Result:
    return motes.solve("?", lm=lm, reward=EVEN.reward, method=made, **options)


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_with_the_others(name: str, merges_calls: bool):
    lm = Failing(EVEN.lm.table, 0.1, merges_calls=merges_calls)
    dropped = 0
    for seed in range(8):
        try:
            result = solve(method(name, 16), lm, seed=seed)
        except NoParticlesError:
            if name not in ("greedy", "pt"):  # one particle, and chains of two
                raise
            continue
        for record in result.records:
            assert set(record.failures) == {i for i, t in enumerate(record.trajectories) if t.finished == "failed"}
            assert np.isneginf(record.log_weights[list(record.failures)]).all()
            assert np.isnan(record.scores[list(record.failures)]).all()
            dropped += len(record.failures)
        lost = [i for i, t in enumerate(result.trajectories) if t.finished == "failed"]
        assert {id(result.trajectories[i]) for i in lost} <= set(map(id, result.dropped))
        assert all("call a doctor" in str(trajectory.error) for trajectory in result.dropped)
        assert np.isneginf(result.log_weights[lost]).all()
        assert all("call a doctor" in str(result.trajectories[i].error) for i in lost)
        assert all(t.error is None for i, t in enumerate(result.trajectories) if i not in lost)
    assert dropped or name == "greedy"


def test_the_reason_is_in_the_record_and_what_was_asked_for_is_counted():
    lm = Failing(EVEN.lm.table, when=lambda trajectory: path_of(trajectory)[:1] == ("a",))
    result = solve(ParticleFilter(6, ess_threshold=0.0), lm, seed=2)
    first, second = result.records[:2]
    began_with_a = [i for i, t in enumerate(first.trajectories) if path_of(t) == ("a",)]
    assert 0 < len(began_with_a) < 6
    assert list(second.failures) == began_with_a
    assert {type(error) for error in second.failures.values()} == {ServerError}
    assert (second.usage.lm_calls, second.usage.generated_tokens) == (6, 6 - len(began_with_a))
    assert second.usage.reward_calls == 6 - len(began_with_a)
    assert all(
        path_of(t)[0] == "b" for t, w in zip(result.trajectories, result.log_weights, strict=True) if w > -np.inf
    )


def test_a_dropped_particle_has_no_say():
    table = {(): {"I write ": 1.0}, ("I write ",): {"\\boxed{1}": 0.5, "\\boxed{2}": 0.5}}
    for made in (Majority(12), BestOfN(12), WeightedBestOfN(12), ParticleFilter(12), BeamSearch(12, 2)):
        result = motes.solve("?", lm=Failing(table, 0.4), reward=TabularReward({}), method=made, seed=3)
        assert any(t.finished == "failed" for t in result.trajectories)
        assert set(result.posterior) <= {"1", "2"}
        assert sum(result.posterior.values()) == pytest.approx(1.0)


def test_what_a_dropped_particle_had_written_is_no_answer():
    root = Trajectory(motes.Problem("?"))
    lost = root.extend(Step("\\boxed{3} or", "step")).fail(ServerError("gone"))
    kept = root.extend(Step("\\boxed{1}", "eos"))
    both = Population((lost, kept), ((), (0.5,)), np.array([False, True]))
    run = Run(motes.Problem("?"), EVEN.lm, None, BoxedAnswers(), Sampling(), np.random.default_rng(0))
    result = asyncio.run(conclude(run, both, Weights.uniform(2), "vote"))
    assert (result.answers, dict(result.posterior)) == ((None, "1"), {"1": 1.0})


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_with_none_left_is_an_error(name: str, merges_calls: bool):
    for depth in (0, 1, 2):
        lm = Failing(EVEN.lm.table, when=lambda t, depth=depth: t.depth == depth, merges_calls=merges_calls)
        with pytest.raises(NoParticlesError, match=r"no particle is left .* call a doctor") as caught:
            solve(method(name, 16), lm)
        assert isinstance(caught.value, EngineError)
        assert isinstance(caught.value, DegenerateWeightsError)
        assert caught.value.result is not None
        assert caught.value.result.answer is None
        assert caught.value.result.records[-1].failures


def test_a_gibbs_sweep_whose_free_slots_all_fail_keeps_its_reference():
    calls = 0

    class LaterFails(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 3:
                return [Failure(ServerError("gone: bring it back"))] * len(trajectories)
            return await super().extend(trajectories, sampling, seeds)

    result = solve(ParticleGibbs(3, 2), LaterFails(EVEN.lm.table))
    kept = [t for t, w in zip(result.trajectories, result.log_weights, strict=True) if w > -np.inf]
    assert kept
    assert all(t.finished == "eos" for t in kept)


def test_any_other_error_of_the_engine_fails_the_run():
    class Broken(TabularLanguageModel):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            raise EngineError("out of memory")

    with pytest.raises(EngineError, match="out of memory") as caught:
        solve(ParticleFilter(4), Broken(EVEN.lm.table))
    assert not isinstance(caught.value, NoParticlesError)


# ------------------------------------------------------------------------------- models that write whole answers only


class Closed(TabularLanguageModel):
    continues_prefixes = False
    asked: Sampling

    async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
        self.asked = sampling
        return await super().extend(trajectories, sampling, seeds)


WHOLE = {"greedy": 1, "majority": 5, "bon": 5, "wbon": 5, "refine": 16, "pdr": 10, "asc": 5, "deepconf": 5}
"""Methods that draw whole answers, each with a budget."""


def test_whole_answers_come_as_one_step():
    lm = Closed({(): {"well\n\n\\boxed{1}": 0.7, "well\n\n\\boxed{2}": 0.3}})
    for name, budget in WHOLE.items():
        made, sampling = method(name, budget), Sampling(max_step_tokens=100)
        result = motes.solve("?", lm=lm, reward=TabularReward({}), method=made, sampling=sampling)
        assert result.answer in ("1", "2")
        assert (lm.asked.delimiters, lm.asked.max_steps, lm.asked.max_step_tokens) == ((), 1, 4000)
    motes.solve("?", lm=lm, reward=None, method=Greedy(), sampling=Sampling(max_tokens=300))
    assert lm.asked.max_step_tokens == 300


@pytest.mark.parametrize("name", sorted(METHODS.keys() - WHOLE.keys()))
def test_methods_that_work_step_by_step_refuse_before_anything_is_asked(name: str):
    lm = Closed({(): {"\\boxed{1}": 1.0}})
    with pytest.raises(ConfigurationError, match="writes whole answers only"):
        solve(method(name, 16), lm)
    assert not hasattr(lm, "asked")


# ----------------------------------------------------------------------------------------------------------- mutations

MUTATIONS = {
    "a filter keeps the weight": (particle_filter, "weights = population.without_dropped(weights)\n", "pass\n"),
    "records keep the weight": (run, "weights = population.without_dropped(weights)\n", "pass\n"),
    "scores are kept": (run, '() if trajectory.finished == "failed" else scores', "scores"),
    "the reason is lost": (run, "return parent.fail(step.error)", "return parent.finish('max_tokens')"),
    "none left is no error": (run, "if not weights.degenerate:\n            return", "return"),
    "step by step is never refused": (requirements, "if sampling.max_steps > 1 and not", "if False and not"),
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    module, *change = MUTATIONS[mistake]
    if module is requirements:
        for user in (particle_filter, run):
            monkeypatch.setattr(user, "require_steps", mutant(module, *change).require_steps)
    else:
        mutate(monkeypatch, module, "ParticleFilter" if module is particle_filter else "Run", *change)
    with pytest.raises((AssertionError, pytest.fail.Exception, LookupError, ValueError)):
        every_check()


def every_check() -> None:
    filter_without_rewards(300)
    for name in ("pf", "majority", "beam"):
        test_every_method_goes_on_with_the_others(name, True)
        test_a_run_with_none_left_is_an_error(name, False)
    test_methods_that_work_step_by_step_refuse_before_anything_is_asked("pf")


def test_without_the_mistake_nothing_is_found():
    every_check()


class Unreadable(TabularReward):
    """Cannot read whatever holds the step "b"."""

    async def score(self, trajectories: Sequence[Trajectory]) -> Any:
        scores = await super().score(trajectories)
        return [
            Failure(ContextLengthError("too long")) if "b" in path_of(trajectory) else values
            for trajectory, values in zip(trajectories, scores, strict=True)
        ]


@pytest.mark.parametrize("merges_calls", [True, False])
@pytest.mark.parametrize(
    "make", [ParticleFilter, BestOfN, WeightedBestOfN, Islands, BeamSearch], ids=lambda c: c.__name__
)
def test_what_the_reward_model_cannot_read_is_dropped(make: Any, merges_calls: bool):
    lm = Failing(EVEN.lm.table, merges_calls=merges_calls)
    method = make(8)
    kept = 0
    for seed in range(10):
        try:
            result = motes.solve("?", lm=lm, reward=Unreadable(EVEN.reward.table), method=method, seed=seed)
        except NoParticlesError:
            continue
        dropped = np.array(["b" in path_of(trajectory) for trajectory in result.trajectories])
        assert [trajectory.finished == "failed" for trajectory in result.trajectories] == dropped.tolist()
        assert np.isneginf(result.log_weights[dropped]).all()
        assert np.isnan(result.scores[dropped]).all()
        assert all(isinstance(t.error, ContextLengthError) for t in np.array(result.trajectories)[dropped])
        kept += (~dropped).sum()
    assert kept > 0
