"""Particle Gibbs and parallel tempering against exact numbers (see exact_chains.py).

The statistical tests are one family on fixed seeds, Bonferroni over all its tests: correct methods fail one of them
with probability below 1e-6 over the choice of seeds, by the normal and the χ² approximation. That they can fail is
shown in test_chain_mutations.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import motes
from exact import EVEN, FUNCTIONS, UNEVEN, World, check_history, path_of, prefixes, results, z_limit, z_scores
from exact_chains import (
    MISLEADING,
    MISLEADING_UNEVEN,
    Target,
    answer,
    choices_of_reference,
    conditional_means,
    expected_means,
    moves,
    p_value,
    swapped_pairs,
    whole_run_z_scores,
)
from motes import (
    ParallelTempering,
    ParticleFilter,
    ParticleGibbs,
    Result,
    Sampling,
    TabularLanguageModel,
    TabularReward,
)
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.lab.run.method_spec import method_from_spec
from test_particle_filter import Merging, fingerprint

CASES = {  # where the target is defined: the horizon is how long, under "absolute", finished answers wait
    "increment": (UNEVEN, "increment", 1),
    "absolute, all of one length": (EVEN, "absolute", 3),
    "absolute, waiting beyond the longest": (UNEVEN, "absolute", 5),
    "absolute, waiting for some": (UNEVEN, "absolute", 2),
    "increment, misleading": (MISLEADING_UNEVEN, "increment", 1),
    "absolute, misleading": (MISLEADING, "absolute", 3),
    "some evidence kept": (UNEVEN, 0.5, 3),
}
PARTICLES = (2, 3, 4)
THRESHOLDS = (0.8, 1.0)  # sometimes (in these worlds), always
WHOLE = {
    "one sweep": ParticleGibbs(3, 1, potential="increment"),
    "adaptive": ParticleGibbs(2, 3, potential="increment", burn_in=2),
    "pooled": ParticleGibbs(3, 2, potential="increment", ess_threshold=1.0),
    "two chains": ParallelTempering(2, 2, potential="increment", ess_threshold=1.0, ladder=(1.0, 0.3), burn_in=1),
    "a chain without reward": ParallelTempering(
        2, 3, potential="increment", link="probability", ladder=(1.0, 0.5, 0.0)
    ),
}
NUM_TESTS = len(CASES) * len(PARTICLES) * len(THRESHOLDS) * 6 + 3 * len(WHOLE) + 4
LIMIT = z_limit(NUM_TESTS)
RATE = 1e-6 / NUM_TESTS


def run(world: World, method: ParticleFilter, **options: object) -> Result:
    return motes.solve("?", **{"lm": world.lm, "reward": world.reward, "method": method, **options})


# ------------------------------------------------------------------------------------------------- conditional sweeps


@pytest.mark.parametrize("n", PARTICLES)
@pytest.mark.parametrize("case", CASES)
def test_an_exact_draw_leads_to_an_exact_draw(case: str, n: int):
    """And E[1/Ẑ] = 1/Z, E[ΣWf] = E[f]: the law of a conditional sweep is that of a plain one, weighted by Ẑ/Z."""
    world, potential, horizon = CASES[case]
    beta = 0.6 if "misleading" in case else 1.2  # where 1/Ẑ is not too skew for a z-test
    for threshold in THRESHOLDS:
        method = ParticleGibbs(n, 2, potential=potential, beta=beta, ess_threshold=threshold)
        target = Target.of(world, method, horizon)
        found = moves(world, method, target, horizon, runs=160, seed=n)
        assert p_value([move.after for move in found], target.paths, target.probabilities) > RATE
        z = z_scores(conditional_means(found), expected_means(target))
        assert np.abs(z).max() < LIMIT, (threshold, z)
        z = z_scores(choices_of_reference(found), np.zeros(2))
        assert np.abs(z).max() < LIMIT, ("free slots choose the reference too often, or too seldom", z)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_keeps_its_path_and_its_own_prefixes_weights(case: str):
    world, potential, horizon = CASES[case]
    method = ParticleGibbs(3, 2, potential=potential, beta=1.0)
    resampled = chosen = 0
    for move in moves(world, method, Target.of(world, method, horizon), horizon, runs=30):
        for t, record in enumerate(move.run.records, start=1):
            path = move.before[:t]
            assert path_of(record.trajectories[-1]) == path
            assert (record.trajectories[-1].finished is None) == (len(path) < len(move.before))
            assert record.ancestors[-1] == 2
            phi, before = world.phi(path, "odds", 1.0), world.phi(path[:-1], "odds", 1.0) if path[1:] else 1.0
            if potential == "absolute":
                expected = phi if t <= max(horizon, len(move.before)) else 1.0
            else:
                kept = 0.0 if potential == "increment" else potential
                expected = phi / before ** (1 - kept) if t <= len(move.before) else 1.0
            assert np.exp(record.log_weights[-1]) == pytest.approx(expected)  # each round begins with weight 1
            resampled += record.resampled
            chosen += record.resampled and 2 in record.ancestors[:2]
        assert len(move.run.records) >= max(len(move.before), horizon if potential == "absolute" else 0)
    assert 0 < chosen < resampled


def test_one_particle_beside_nobody_is_its_reference():
    method = ParticleGibbs(1, 1, potential="increment", ess_threshold=1.0)
    target = Target.of(UNEVEN, method, 1)
    for move in moves(UNEVEN, method, target, 1, runs=20):
        assert move.after == move.before
        assert np.exp(move.sweep.log_evidence) == pytest.approx(UNEVEN.weight(move.before, method))
        assert move.run.usage.lm_calls == move.run.usage.reward_calls == 0


@pytest.mark.parametrize("potential", ["absolute", "increment"])
def test_log_weights_of_complete_answers(potential: str):
    method = ParticleGibbs(2, 2, potential=potential, beta=0.7)
    for path, _ in UNEVEN.lm.paths():
        expected = UNEVEN.weight(path, method)
        waits = max(0, 2 - len(path)) if potential == "absolute" else 0
        assert np.exp(method.filter.log_weights_of(answer(UNEVEN, path), 2)) == pytest.approx(
            expected * UNEVEN.phi(path, "odds", 0.7) ** waits
        )


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", WHOLE.values(), ids=WHOLE)
def test_whole_runs_weighted_by_their_first_evidence_are_unbiased(method: ParticleGibbs):
    z = whole_run_z_scores(UNEVEN, method, runs=150)
    assert np.abs(z).max() < LIMIT, z


def test_many_sweeps_forget_the_bias_of_a_small_filter():
    """One long run of two particles comes nearer to the target than a filter of two particles is on average."""
    method = ParticleGibbs(2, 2000, potential="absolute", ess_threshold=1.0, burn_in=10)
    exact = Target.of(MISLEADING, method, 3).mean(FUNCTIONS[1])
    posterior = run(MISLEADING, method)
    w = np.exp(posterior.log_weights) / np.exp(posterior.log_weights).sum()
    first = [path_of(trajectory)[0] == "a" for trajectory in posterior.trajectories]
    filtered = [
        r for r in results(MISLEADING, ParticleFilter(2, potential="absolute", ess_threshold=1.0), 300) if r is not None
    ]
    biased = np.mean([np.mean([path_of(t)[0] == "a" for t in r.trajectories]) for r in filtered])
    assert abs(float(w @ first) - exact) < 0.05 < abs(biased - exact)


@pytest.mark.parametrize("method", [ParticleGibbs(2, 2, potential=p) for p in ("absolute", "increment")])
def test_constant_potential_gives_the_prior_back(method: ParticleGibbs):
    constant = World(UNEVEN.lm, TabularReward({}, default=0.5))
    paths, prior = zip(*constant.lm.paths(), strict=True)
    found = moves(constant, method, Target.of(constant, method, 3), 3, runs=400)
    assert p_value([move.after for move in found], paths, np.array(prior)) > RATE
    assert {move.sweep.log_evidence for move in found} == {0.0}


@pytest.mark.parametrize("potential", ["absolute", "increment"])
def test_records_tell_sweep_by_sweep_what_happened(potential: str):
    method = ParticleGibbs(4, 3, potential=potential, ess_threshold=1.0, burn_in=1)
    for seed in range(20):
        result = run(UNEVEN, method, seed=seed)
        sweeps = [list(group) for _, group in itertools.groupby(result.records, key=lambda record: record.sweep)]
        assert [sweep[0].sweep for sweep in sweeps] == [0, 1, 2]
        plain = run(
            UNEVEN, ParticleFilter(4, potential=potential, ess_threshold=1.0, resampling="multinomial"), seed=seed
        )
        check_history(plain, method)
        assert [r.log_weights.tolist() for r in plain.records] == [r.log_weights.tolist() for r in sweeps[0]]
        assert result.log_evidence == plain.log_evidence
        for before, after in itertools.pairwise(sweeps):
            reference = after[-1].trajectories[-1]
            assert reference in before[-1].trajectories
            assert np.isfinite(before[-1].log_weights[before[-1].trajectories.index(reference)])
            assert after[0].resampled is False
        pooled = [trajectory for sweep in sweeps[1:] for trajectory in sweep[-1].trajectories]
        assert list(result.trajectories) == pooled
        w = np.exp(result.log_weights)
        assert np.allclose([w[:4].sum(), w[4:].sum()], 1.0), "each sweep has the same say"
        assert len(result.scores) == 8
        spent = sum((record.usage for record in result.records), motes.Usage())
        assert spent == result.usage
        assert result.usage.lm_calls == result.usage.reward_calls


@pytest.mark.parametrize("max_steps", [1, 2, 4])
@pytest.mark.parametrize("method", [ParticleGibbs(3, 2), ParallelTempering(2, 2)], ids=["pg", "pt"])
def test_max_steps_is_exact(method: ParticleGibbs, max_steps: int):
    lm = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(9)})
    result = run(World(lm, TabularReward({})), method, sampling=Sampling(max_steps=max_steps))
    assert {(t.depth, t.finished) for t in result.trajectories} == {(max_steps, "max_steps")}
    assert all(
        r.trajectories[0].depth == 1 + i % max_steps for i, r in enumerate(r for r in result.records if not r.chain)
    )


def test_all_weights_zero_is_an_error():
    zero = World(EVEN.lm, TabularReward(dict.fromkeys(prefixes(EVEN.lm), 0.0)))
    for method in (ParticleGibbs(2, 2, link="probability"), ParallelTempering(2, 2, link="probability")):
        with pytest.raises(DegenerateWeightsError, match="after step 1") as caught:
            run(zero, method)
        assert caught.value.result is not None
        assert caught.value.result.usage.lm_calls == (2 if type(method) is ParticleGibbs else 4)


# --------------------------------------------------------------------------------------------------- parallel tempering


@pytest.mark.parametrize("world", [EVEN, MISLEADING], ids=["even", "misleading"])
@pytest.mark.parametrize("ladder", [(1.0, 0.4), (1.0, 0.0)])
def test_a_swap_leaves_the_joint_target_invariant(world: World, ladder: tuple[float, ...]):
    method = ParallelTempering(2, 2, potential="absolute", beta=1.5, ladder=ladder)
    assert swapped_pairs(world, method, 3, runs=8000) > RATE


def test_chains_and_swaps_are_recorded():
    method = ParallelTempering(2, 4, potential="increment", beta=1.0, ladder=(1.0, 0.6, 0.3), burn_in=1)
    rates = []
    for seed in range(40):
        result = run(UNEVEN, method, seed=seed)
        assert [(r.sweep, r.chain) for r in result.records] == sorted((r.sweep, r.chain) for r in result.records)
        assert {(r.sweep, r.chain) for r in result.records} == set(itertools.product(range(4), range(3)))
        last = {(r.sweep, r.chain): r.trajectories for r in result.records}
        assert list(result.trajectories) == [t for sweep in (1, 2, 3) for t in last[sweep, 0]]
        for sweep in range(3):  # (1, 2) may swap after even sweeps, (2, 3) after odd ones
            came_from = [
                next(c for c in range(3) if any(last[sweep + 1, k][-1] is t for t in last[sweep, c])) for k in range(3)
            ]
            assert came_from[2 if sweep % 2 == 0 else 0] == (2 if sweep % 2 == 0 else 0)
        assert sum((record.usage for record in result.records), motes.Usage()) == result.usage
        rates.append(result.swap_rates)
    assert np.shape(rates) == (40, 2)
    assert set(np.ravel(rates)) == {0.0, 0.5, 1.0}
    assert math.isnan(run(UNEVEN, replace(method, num_sweeps=1, burn_in=0)).swap_rates[1])
    assert run(UNEVEN, ParticleGibbs(2, 2)).swap_rates == ()


@pytest.mark.parametrize("method", [ParticleGibbs(3, 3), ParallelTempering(2, 3), ParticleGibbs.paper(3)])
def test_same_seed_same_result_whatever_the_order_of_completion(method: ParticleGibbs):
    merging = World(Merging(UNEVEN.lm.table), UNEVEN.reward)
    for seed in range(4):
        first = run(UNEVEN, method, seed=seed)
        assert fingerprint(run(UNEVEN, method, seed=seed)) == fingerprint(first)
        assert fingerprint(run(merging, method, seed=seed)) == fingerprint(first)


@pytest.mark.parametrize("method", [ParticleGibbs(3, 4), ParallelTempering(2, 4)], ids=["pg", "pt"])
@pytest.mark.parametrize("token_budget", [1, 14, 20])
def test_a_sweep_that_a_limit_cut_short_is_left_out(method: ParticleGibbs, token_budget: int):
    for seed in range(10):
        result = run(EVEN, method, seed=seed, token_budget=token_budget)
        assert result.stopped == "token_budget"
        assert {t.finished for t in result.trajectories} == ({"token_budget"} if token_budget == 1 else {"eos"})


def test_an_observer_sees_all_that_was_spent():
    seen = []
    result = run(UNEVEN, ParallelTempering(2, 2), observe=lambda run, record: seen.append((run.usage.lm_calls, record)))
    assert sorted(map(id, result.records)) == sorted(id(record) for _, record in seen)
    assert [spent for spent, _ in seen] == sorted(spent for spent, _ in seen)
    assert seen[-1][0] == result.usage.lm_calls


# ---------------------------------------------------------------------------------------------------- configuration


def test_fields_in_order():
    assert ParticleGibbs(3, 5, potential="absolute", link="probability", beta=2.0, ess_threshold=0.7) == ParticleGibbs(
        num_particles=3, num_sweeps=5, potential="absolute", link="probability", beta=2.0, ess_threshold=0.7
    )
    assert ParticleGibbs(3, 5).budget == 15
    assert ParallelTempering(3, 5, ladder=(1.0, 0.5, 0.1)).budget == 45
    assert ParticleGibbs.paper(4) == ParticleGibbs(
        4, 4, potential="absolute", beta=1.0, ess_threshold=1.0, selector="argmax"
    )
    assert type(ParallelTempering.paper(4)) is ParallelTempering


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sweeps": 0}, "num_sweeps"),
        ({"num_particles": 1}, "at least 2"),
        ({"burn_in": 2}, "burn_in"),
        ({"burn_in": -1}, "burn_in"),
        ({"resampling": "systematic"}, "not valid beside a reference: use resampling='multinomial'"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
    ],
)
def test_values_that_cannot_work_are_refused(fields: dict[str, object], message: str):
    for cls in (ParticleGibbs, ParallelTempering):
        with pytest.raises(ConfigurationError, match=message):
            cls(**{"num_particles": 3, "num_sweeps": 2, **fields})


@pytest.mark.parametrize("ladder", [(), (0.5,), (1.0, 1.0), (1.0, 0.5, 0.7), (1.0, -0.1), (1.0, math.nan)])
def test_ladders_that_are_none_are_refused(ladder: tuple[float, ...]):
    with pytest.raises(ConfigurationError, match="ladder"):
        ParallelTempering(2, 2, ladder=ladder)


def test_specs_share_the_budget_out():
    assert method_from_spec("pg", 16) == ParticleGibbs(4, 4)
    assert method_from_spec("pg:num_sweeps=2:burn_in=1", 16) == ParticleGibbs(8, 2, burn_in=1)
    assert method_from_spec("pt", 16) == ParallelTempering(2, 4)
    assert method_from_spec("pt:ladder=1/0.5/0.2:num_sweeps=2", 24) == ParallelTempering(4, 2, ladder=(1.0, 0.5, 0.2))
    for spec, budget in (("pg", 6), ("pg", 4), ("pg", 0), ("pt", 12), ("pg:num_sweeps=0", 8), ("pg:num_sweeps=3", 16)):
        with pytest.raises(ConfigurationError):
            method_from_spec(spec, budget)
    with pytest.raises(ConfigurationError, match="as the budget"):
        method_from_spec("pg:num_particles=3", 16)
    with pytest.raises(ConfigurationError, match="ladder must be float"):
        method_from_spec("pt:ladder=1/half", 16)
