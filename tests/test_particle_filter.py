"""The particle filter against exact numbers: worlds whose every path is enumerated (see exact.py).

The z-tests here are one family on fixed seeds, Bonferroni over all its statistics: by the normal approximation, a
correct filter fails one of them with probability below 1e-6 over the choice of seeds. That they can fail is shown in
test_mutations.py.

What the potential "absolute" targets depends on how long answers wait for each other, since a finished answer's last
φ counts again every round. Its Z is therefore stated where all answers have the same length, for one particle, and,
for answers of any length, by enumeration of all that two particles can do together.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

import motes
from exact import (
    EVEN,
    FUNCTIONS,
    UNEVEN,
    World,
    check_history,
    path_of,
    prefixes,
    results,
    two_particle_moments,
    two_particle_statistics,
    unbiased_estimates,
    z_limit,
    z_scores,
)
from motes import ParticleFilter, Result, Sampling, Step, TabularLanguageModel, TabularReward, Trajectory
from motes.errors import ConfigurationError, DegenerateWeightsError, UnknownNameError
from motes.methods.particle_filter import shared_among
from motes.smc import RESAMPLING

POTENTIALS = ("absolute", "increment", 0.4)
LINKS = ("odds", "probability", "exponential")
THRESHOLDS = (0.0, 0.9, 1.0)  # never, sometimes (in these worlds), always
NUM_STATISTICS = {
    "targets": 3 * len(LINKS) * 4 * 3 * 2 * len(FUNCTIONS),
    "copies": 3 * 4 * 2 * len(FUNCTIONS),
    "two particles": 3 * len(LINKS) * 4 * 2 * 5,
    "zero weights": 3 * len(LINKS) * len(FUNCTIONS),
    "constant potential": 3 * len(LINKS) * sum(len(list(world.lm.paths())) for world in (EVEN, UNEVEN)),
}
LIMIT = z_limit(sum(NUM_STATISTICS.values()))


def run(world: World, method: ParticleFilter, **options: object) -> Result:
    return motes.solve("?", **{"lm": world.lm, "reward": world.reward, "method": method, **options})


# ------------------------------------------------------------------------------------------------ unbiased estimates


@pytest.mark.parametrize("beta", [1.0, 1.5])
@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize(
    ("potential", "world"), [("absolute", EVEN), ("increment", UNEVEN), (0.4, UNEVEN)], ids=map(str, POTENTIALS)
)
def test_evidence_and_weighted_means_are_unbiased(potential: str, world: World, link: str, scheme: str, beta: float):
    for threshold in THRESHOLDS:
        method = ParticleFilter(
            3, potential=potential, link=link, beta=beta, ess_threshold=threshold, resampling=scheme
        )
        estimates = unbiased_estimates(world, method, runs=120)
        z = z_scores(estimates, world.target(method, FUNCTIONS))
        assert np.abs(z).max() < LIMIT, (threshold, z)


@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize(
    ("potential", "world"), [("absolute", EVEN), ("increment", UNEVEN), (0.4, UNEVEN)], ids=map(str, POTENTIALS)
)
def test_copies_that_share_their_chance_leave_the_target_as_it_is(potential: str, world: World, scheme: str):
    for threshold in (0.7, 1.0):
        method = ParticleFilter(5, potential=potential, ess_threshold=threshold, resampling=scheme, copies="share")
        z = z_scores(unbiased_estimates(world, method, runs=120), world.target(method, FUNCTIONS))
        assert np.abs(z).max() < LIMIT, (threshold, z)


@pytest.mark.parametrize(
    ("groups", "chances", "expected"),
    [
        ([0, 1, 2], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([0, 0, 1], [0.25, 0.25, 0.5], [1 / 6, 1 / 6, 2 / 3]),
        ([1, 0, 1], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]),  # what has no chance is no copy
    ],
)
def test_copies_share_the_chance_of_one(groups: list[int], chances: list[float], expected: list[float]):
    assert shared_among(np.array(groups), np.array(chances)) == pytest.approx(expected)


def test_copies_are_alike_in_text_whoever_they_come_from():
    """All begin with "a" or "b"; scores are even, so that chances tell how often each text is there."""
    lm = TabularLanguageModel({(): {"a": 0.9, "b": 0.1}, ("a",): {"x": 1.0}, ("b",): {"x": 1.0}})
    reward = TabularReward(dict.fromkeys([("a",), ("b",), ("a", "x"), ("b", "x")], 0.5))
    method = ParticleFilter(20, ess_threshold=1.0, copies="share")
    for seed in range(10):
        first, second = motes.solve("?", lm=lm, reward=reward, method=method, seed=seed).records
        texts = [trajectory.text for trajectory in first.trajectories]
        chosen = [texts[ancestor] for ancestor in second.ancestors]
        held = dict(zip(chosen, np.exp(second.log_weights), strict=True))
        if len(set(texts)) == 2:
            assert chosen.count("a") == pytest.approx(10, abs=3)
            assert held["a"] / held["b"] == pytest.approx(texts.count("a") / texts.count("b"))


@pytest.mark.parametrize("threshold", [0.9, 1.0])
@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_two_particles_do_exactly_what_the_algorithm_says(potential: str, link: str, scheme: str, threshold: float):
    method = ParticleFilter(2, potential=potential, link=link, beta=1.0, ess_threshold=threshold, resampling=scheme)
    z = z_scores(two_particle_statistics(UNEVEN, method, runs=200), two_particle_moments(UNEVEN, method))
    assert np.abs(z).max() < LIMIT, z


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("link", LINKS)
def test_one_particle_weighs_its_path(potential: str, link: str):
    method = ParticleFilter(1, potential=potential, link=link, ess_threshold=1.0)
    for result in results(UNEVEN, method, 30):
        (trajectory,) = result.trajectories
        assert np.exp(result.log_evidence) == pytest.approx(UNEVEN.weight(path_of(trajectory), method))
        assert len(result.records) == trajectory.depth


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_without_resampling_weights_are_the_potentials_of_the_paths(potential: str, link: str):
    """And "absolute" counts a finished answer's last φ again every round it waits."""
    method = ParticleFilter(4, potential=potential, link=link, beta=0.7, ess_threshold=0.0)
    for result in results(UNEVEN, method, 20):
        for trajectory, log_weight in zip(result.trajectories, result.log_weights, strict=True):
            path, waited = path_of(trajectory), len(result.records) - trajectory.depth
            expected = UNEVEN.weight(path, method)
            if potential == "absolute":
                expected *= UNEVEN.phi(path, link, 0.7) ** waited
            assert np.exp(log_weight) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("potential", "world"),
    [("absolute", EVEN), ("absolute", UNEVEN), ("increment", EVEN), ("increment", UNEVEN), (0.4, EVEN)],
)
@pytest.mark.parametrize("link", LINKS)
def test_constant_potential_gives_the_prior_back(potential: str | float, link: str, world: World):
    """Where evidence is kept, answers of more steps have more of it: of even ones the prior is left."""
    constant = World(world.lm, TabularReward({}, default=0.6))
    method = ParticleFilter(4, potential=potential, link=link, beta=1.0, resampling="multinomial")
    paths = dict(world.lm.paths())
    counts = []
    for result in results(constant, method, 300):
        kept = {"absolute": 1.0, "increment": 0.0}.get(potential, potential)
        counted = 1 + kept * (len(result.records) - 1)
        assert result.log_evidence == pytest.approx(counted * np.log(constant.phi((), link, 1.0)))
        assert np.ptp(result.log_weights) == pytest.approx(0.0, abs=1e-12)
        assert all(record.resampled for record in result.records[1:]), "a threshold of 1 is always, even weights too"
        counts.append([sum(path_of(t) == path for t in result.trajectories) / 4 for path in paths])
    z = z_scores(np.array(counts), np.array(list(paths.values())))
    assert np.abs(z).max() < LIMIT, z


# ------------------------------------------------------------------------------------------------------ zero weights

SOME_ZERO = World(EVEN.lm, TabularReward({**EVEN.reward.table, ("a",): 0.0, ("b", "a", "a"): 0.0}))
ALL_ZERO = World(EVEN.lm, TabularReward({path: 0.7 if len(path) < 2 else 0.0 for path in prefixes(EVEN.lm)}))


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_zero_scores_are_zero_weights_and_do_not_bias(potential: str, threshold: float):
    method = ParticleFilter(4, potential=potential, link="probability", ess_threshold=threshold)
    z = z_scores(unbiased_estimates(SOME_ZERO, method, runs=300), SOME_ZERO.target(method, FUNCTIONS))
    assert np.abs(z).max() < LIMIT, z


@pytest.mark.parametrize("potential", POTENTIALS)
def test_a_particle_of_weight_zero_has_no_offspring(potential: str):
    method = ParticleFilter(8, potential=potential, link="probability", ess_threshold=1.0)
    dead = 0
    for result in filter(None, results(SOME_ZERO, method, 50)):
        dead += int(np.isneginf([record.log_weights for record in result.records]).sum())
        for before, after in itertools.pairwise(result.records):
            assert np.isfinite(before.log_weights[after.ancestors]).all()
    assert dead > 50


@pytest.mark.parametrize("potential", POTENTIALS)
def test_all_weights_zero_is_an_error_that_names_step_and_reward_model(potential: str):
    with pytest.raises(DegenerateWeightsError, match=r"step 2.*TabularReward\(14 prefixes\)") as caught:
        run(ALL_ZERO, ParticleFilter(4, potential=potential, link="probability"))
    partial = caught.value.result
    assert partial is not None
    assert partial.error is caught.value
    assert (partial.answer, partial.confidence) == (None, 0.0)
    assert [record.ess for record in partial.records] == [pytest.approx(4.0), 0.0]
    assert partial.usage.lm_calls == 8


def test_odds_are_clipped_so_that_zero_and_one_are_large_but_finite():
    result = run(World(EVEN.lm, TabularReward({("a",): 0.0, ("b",): 1.0})), ParticleFilter(8, beta=1.0))
    assert set(np.round(result.records[0].log_weights, 3)) == {-16.118, 16.118}  # logit(1e-7)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("world", [EVEN, SOME_ZERO, ALL_ZERO], ids=["even", "some zero", "all zero"])
def test_beta_zero_ignores_the_reward_model(potential: str, link: str, world: World):
    method = ParticleFilter(4, potential=potential, link=link, beta=0.0, ess_threshold=1.0)
    result, indifferent = run(world, method), run(World(world.lm, TabularReward({})), method)
    assert result.log_evidence == 0.0
    assert not np.any([record.log_weights for record in result.records])
    assert list(map(path_of, result.trajectories)) == list(map(path_of, indifferent.trajectories))


# --------------------------------------------------------------------------------------------------- the loop's rules


@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize(("threshold", "happens"), [(0.0, {False}), (0.5, {True, False}), (1.0, {True})])
@pytest.mark.parametrize("potential", POTENTIALS)
def test_records_tell_one_consistent_story(potential: str, threshold: float, happens: set[bool], scheme: str):
    method = ParticleFilter(5, potential=potential, beta=3.0, ess_threshold=threshold, resampling=scheme)
    histories = results(UNEVEN, method, 20)
    for result in histories:
        check_history(result, method)
    assert {record.resampled for result in histories for record in result.records[1:]} == happens


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4])
def test_max_steps_is_exact(max_steps: int):
    lm = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(9)})
    result = run(World(lm, TabularReward({})), ParticleFilter(3), sampling=Sampling(max_steps=max_steps))
    assert [t.depth for t in result.trajectories] == [max_steps] * 3
    assert [t.finished for t in result.trajectories] == ["max_steps"] * 3
    assert len(result.records) == max_steps


class Witness:
    """A language model and a reward model that remember what they were asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.extended: list[Trajectory] = []
        self.scored: list[Trajectory] = []

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.extended += trajectories
        return await self.world.lm.extend(trajectories, sampling, seeds)

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        self.scored += trajectories
        return await self.world.reward.score(trajectories)


@pytest.mark.parametrize(
    "method", [ParticleFilter(6, potential="increment", ess_threshold=1.0), ParticleFilter.paper(6)]
)
def test_nothing_finished_is_extended_and_nothing_is_scored_twice(method: ParticleFilter):
    some_waited = False
    for seed in range(20):
        witness = Witness(UNEVEN)
        result = run(UNEVEN, method, lm=witness, reward=witness, seed=seed)
        assert all(trajectory.finished is None for trajectory in witness.extended)
        assert len(set(map(id, witness.scored))) == len(witness.scored) == len(witness.extended)
        assert result.usage.lm_calls == result.usage.generated_tokens == len(witness.extended)
        assert result.usage.reward_calls == len(witness.scored)
        some_waited |= len(witness.extended) < 6 * len(result.records)
    assert some_waited


def test_usage_counts_pruned_particles():
    result = run(EVEN, ParticleFilter(8, beta=5.0, ess_threshold=1.0))
    survivors = {id(node) for trajectory in result.trajectories for node in trajectory.path}
    assert result.usage.generated_tokens == 8 * 3 > len(survivors)
    spent = result.records[0].usage
    for record in result.records[1:]:
        spent += record.usage
    assert spent == result.usage


# ---------------------------------------------------------------------------------------------------- reproducibility


def fingerprint(result: Result) -> object:
    """Everything a run computed, exactly."""
    return (
        (result.answer, result.text, dict(result.posterior), result.log_evidence, result.usage),
        [list(map(path_of, record.trajectories)) for record in result.records],
        [(r.ancestors.tolist(), r.log_weights.tolist(), r.scores.tolist(), r.usage) for r in result.records],
    )


class Merging(TabularLanguageModel):
    """An engine that merges concurrent calls, and whose steps end in an order of their own."""

    merges_calls = True

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        for _ in range(seeds[0] % 5):
            await asyncio.sleep(0)
        return await super().extend(trajectories, sampling, seeds)


METHODS = [
    ParticleFilter(4),
    ParticleFilter.paper(4),
    *(ParticleFilter(4, ess_threshold=1.0, resampling=scheme, selector="sample") for scheme in RESAMPLING),
]


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_result_whatever_the_order_of_completion(method: ParticleFilter):
    merging = World(Merging(UNEVEN.lm.table), UNEVEN.reward)
    for seed in range(5):
        first = run(UNEVEN, method, seed=seed)
        assert fingerprint(run(UNEVEN, method, seed=seed)) == fingerprint(first)
        assert fingerprint(run(merging, method, seed=seed)) == fingerprint(first)
    assert fingerprint(run(UNEVEN, method, seed=6)) != fingerprint(run(UNEVEN, method, seed=7))


def test_an_observer_sees_each_record_as_it_is_made():
    seen: list[object] = []
    result = run(UNEVEN, ParticleFilter(4), observe=lambda run, record: seen.append((len(run.records), record)))
    assert seen == list(enumerate(result.records, start=1))


# ------------------------------------------------------------------------------------------------------ configuration


def test_the_papers_preset():
    expected = ParticleFilter(
        7,
        potential="absolute",
        link="odds",
        beta=1.0,
        ess_threshold=1.0,
        resampling="multinomial",
        selector="argmax",
        aggregation="last",
    )
    assert ParticleFilter.paper(7) == expected
    assert expected.budget == 7
    assert Sampling() == Sampling(temperature=0.8, top_p=1.0, delimiter="\n\n", max_steps=40)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_particles", 0),
        ("num_particles", -3),
        ("ess_threshold", -0.1),
        ("ess_threshold", 1.1),
        ("ess_threshold", np.nan),
        ("beta", -1.0),
        ("beta", np.inf),
        ("beta", np.nan),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: float):
    with pytest.raises(ConfigurationError, match=field):
        ParticleFilter(**{"num_particles": 4, field: value})


@pytest.mark.parametrize("field", ["potential", "link", "resampling", "selector", "aggregation"])
def test_unknown_names_are_refused(field: str):
    with pytest.raises(UnknownNameError, match=r"unknown .* 'nonsense': known are"):
        ParticleFilter(4, **{field: "nonsense"})
