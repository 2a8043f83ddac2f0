"""The entropic particle filter and islands against exact numbers: worlds whose every path is enumerated.

The z-tests are one family on fixed seeds, Bonferroni over all its statistics: correct methods fail one of them with
probability below 1e-6 over the choice of seeds, by the normal approximation. That they can fail is shown in
test_chain_mutations.py, and here for the form of the entropic filter that is published, which is biased.
"""

from __future__ import annotations

from dataclasses import replace

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
    unbiased_estimates,
    z_limit,
    z_scores,
)
from motes import EntropicParticleFilter, Islands, ParticleFilter, Result, Sampling, TabularLanguageModel, TabularReward
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.lab.run.method_spec import method_from_spec
from motes.smc import RESAMPLING, Weights
from test_particle_filter import Merging, fingerprint

FORMS = {
    "annealed": {"annealing": True, "look_ahead": False},
    "looking ahead": {"annealing": False, "look_ahead": True},
    "both": {"annealing": True, "look_ahead": True},
}
WORLDS = {"absolute": EVEN, "increment": UNEVEN}
LIMIT = z_limit((2 * 2 * 4 * 3 + 3 + 2 * 4 + 3) * len(FUNCTIONS) + 1)


def run(world: World, method: ParticleFilter, **options: object) -> Result:
    return motes.solve("?", **{"lm": world.lm, "reward": world.reward, "method": method, **options})


# ------------------------------------------------------------------------------------------ entropic particle filter


@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize("link", ["odds", "probability"])
@pytest.mark.parametrize("potential", WORLDS)
def test_with_the_correction_the_target_is_preserved(potential: str, link: str, scheme: str):
    world = WORLDS[potential]
    for form in FORMS.values():
        method = EntropicParticleFilter(
            3,
            potential=potential,
            link=link,
            beta=1.5,
            ess_threshold=0.9,
            resampling=scheme,
            expected_steps=6.0,
            **form,
        )
        z = z_scores(unbiased_estimates(world, method, runs=60), world.target(method, FUNCTIONS))
        assert np.abs(z).max() < LIMIT, (form, z)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_as_published_it_is_biased(form: dict[str, bool]):
    """Each of its two parts, and both, at a size that cannot be chance; corrected on the same seeds it is not."""
    corrected = EntropicParticleFilter(
        3,
        potential="absolute",
        link="odds",
        beta=2.0,
        ess_threshold=0.9,
        resampling="multinomial",
        expected_steps=6.0,
        **form,
    )
    expected = EVEN.target(corrected, FUNCTIONS)
    published = replace(corrected, correction=False)
    assert np.abs(z_scores(unbiased_estimates(EVEN, published, runs=420), expected)).max() > LIMIT
    assert np.abs(z_scores(unbiased_estimates(EVEN, corrected, runs=420), expected)).max() < LIMIT


def test_zero_scores_ahead_keep_a_chance():
    reward = TabularReward({**EVEN.reward.table, ("a", "a"): 0.0, ("b", "a", "a"): 0.0})
    world = World(EVEN.lm, reward)
    method = EntropicParticleFilter(4, potential="absolute", link="probability", ess_threshold=1.0, look_ahead=True)
    z = z_scores(unbiased_estimates(world, method, runs=300), world.target(method, FUNCTIONS))
    assert np.abs(z).max() < LIMIT, z


@pytest.mark.parametrize(
    ("weights", "t", "temperature"),
    [
        ([1.0, 0.0, 0.0, 0.0], 1, 4 * 0.875),  # N/ESS = 4, T = 8
        ([1.0, 0.0, 0.0, 0.0], 3, 4 * 0.625),
        ([1.0, 0.0, 0.0, 0.0], 4, 1.0),  # half the way: over
        ([0.5, 0.5, 0.0, 0.0], 1, 1.0),  # ESS = N/2: diverse enough
        ([1.0, 0.9, 0.0, 0.0], 1, 4 / 1.994475138 * 0.875),
        ([1.0, 0.9, 0.0, 0.0], 3, 4 / 1.994475138 * 0.625),
    ],
)
def test_temperature(weights: list[float], t: int, temperature: float):
    with np.errstate(divide="ignore"):
        value = Weights(np.log(weights))
    assert EntropicParticleFilter(4)._temperature(value, t) == pytest.approx(temperature)
    assert EntropicParticleFilter(4, annealing=False)._temperature(value, t) == 1.0


def test_look_ahead_draws_one_more_step_of_each_and_counts_it():
    method = EntropicParticleFilter(5, potential="absolute", ess_threshold=1.0, look_ahead=True)
    for seed in range(10):
        result = run(EVEN, method, seed=seed)
        assert [record.usage.lm_calls for record in result.records] == [5, 10, 10]
        assert result.usage.lm_calls == result.usage.reward_calls == result.usage.generated_tokens == 25
        for before, after in zip(result.records, result.records[1:], strict=False):
            for trajectory, ancestor in zip(after.trajectories, after.ancestors, strict=True):
                assert trajectory.parent is before.trajectories[ancestor], "what was looked at is not kept"
    assert method.budget == 5
    assert run(EVEN, replace(method, ess_threshold=0.0)).usage.lm_calls == 15


def test_without_its_two_parts_it_is_the_particle_filter():
    plain = ParticleFilter(4, potential="increment", ess_threshold=0.9)
    for correction in (True, False):
        method = EntropicParticleFilter(
            4, potential="increment", ess_threshold=0.9, annealing=False, correction=correction
        )
        for first, second in zip(results(UNEVEN, plain, 20), results(UNEVEN, method, 20), strict=True):
            assert fingerprint(first) == fingerprint(second)


def test_weights_carried_are_the_ratio_of_weight_and_chance():
    method = EntropicParticleFilter(4, potential="absolute", beta=3.0, ess_threshold=1.0, expected_steps=100.0)
    annealed = 0
    for result in results(EVEN, method, 20):
        for t, (before, after) in enumerate(zip(result.records, result.records[1:], strict=False), start=1):
            w = Weights(before.log_weights)
            tau = max(1.0, 4 / w.ess * (1 - t / 100)) if w.ess < 2 else 1.0
            carried = np.log(w.normalized) - np.log(Weights(before.log_weights / tau).normalized)
            phi = [np.log(EVEN.phi(path_of(t), "odds", 3.0)) for t in after.trajectories]
            assert np.allclose(after.log_weights, carried[after.ancestors] + phi)
            annealed += tau > 1
    assert annealed > 5


@pytest.mark.parametrize("look_ahead", [True, False])
def test_constant_potential_gives_weights_of_one(look_ahead: bool):
    constant = World(UNEVEN.lm, TabularReward({}, default=0.5))
    for result in results(constant, EntropicParticleFilter(3, ess_threshold=1.0, look_ahead=look_ahead), 20):
        assert result.log_evidence == 0.0
        assert not result.log_weights.any()


def test_one_particle_weighs_its_path():
    for look_ahead in (True, False):
        method = EntropicParticleFilter(1, potential="increment", ess_threshold=1.0, look_ahead=look_ahead)
        for result in results(UNEVEN, method, 20):
            assert np.exp(result.log_evidence) == pytest.approx(UNEVEN.weight(path_of(result.trajectories[0]), method))


# ------------------------------------------------------------------------------------------------------------- islands


@pytest.mark.parametrize("scheme", RESAMPLING)
@pytest.mark.parametrize("potential", WORLDS)
def test_islands_are_unbiased(potential: str, scheme: str):
    method = Islands(2, 3, potential=potential, link="odds", beta=1.5, ess_threshold=0.9, resampling=scheme)
    z = z_scores(unbiased_estimates(WORLDS[potential], method, runs=120), WORLDS[potential].target(method, FUNCTIONS))
    assert np.abs(z).max() < LIMIT, z


def test_dead_islands_count_as_evidence_zero():
    world = World(EVEN.lm, TabularReward({**EVEN.reward.table, ("a",): 0.0}))
    method = Islands(1, 3, potential="absolute", link="probability")
    found = results(world, method, 150)
    assert {len(result.trajectories) for result in found if result is not None} == {1, 2, 3}
    assert None in found, "all of them dead is an error"
    z = z_scores(unbiased_estimates(world, method, runs=350), world.target(method, FUNCTIONS))
    assert np.abs(z).max() < LIMIT, z
    with pytest.raises(DegenerateWeightsError, match="after step 1"):
        run(World(EVEN.lm, TabularReward(dict.fromkeys(prefixes(EVEN.lm), 0.0))), method)


@pytest.mark.parametrize("combine", ["evidence", "equal"])
@pytest.mark.parametrize("potential", WORLDS)
def test_each_island_is_a_filter_and_weighs_its_evidence_or_as_much_as_any(potential: str, combine: str):
    method = Islands(3, 4, potential=potential, beta=2.0, ess_threshold=0.7, combine=combine)
    waited = 0
    for result in results(UNEVEN, method, 15):
        evidence = []
        rounds = [sum(record.chain == m for record in result.records) for m in range(4)]
        for m in range(4):
            records = tuple(record for record in result.records if record.chain == m)
            last = records[-1]
            evidence.append(np.exp(last.log_evidence))
            part = replace(
                result,
                records=records,
                trajectories=last.trajectories,
                log_weights=last.log_weights,
                log_evidence=last.log_evidence,
            )
            check_history(part, method)
            assert result.trajectories[3 * m : 3 * m + 3] == last.trajectories
            weights = np.exp(last.log_weights)
            if potential == "absolute" and (waits := max(rounds) - rounds[m]):  # for the islands that took longer
                phi = np.array([UNEVEN.phi(path_of(t), "odds", 2.0) for t in last.trajectories])
                evidence[-1] *= np.mean(weights * phi**waits) / np.mean(weights)
                weights *= phi**waits
                waited += 1
            own = np.exp(result.log_weights[3 * m : 3 * m + 3])
            assert own.sum() == pytest.approx(evidence[-1] if combine == "evidence" else 1.0)
            assert np.allclose(own / own.sum(), weights / weights.sum())
        assert np.exp(result.log_evidence) == pytest.approx(np.mean(evidence))
        assert result.scores.shape == (12,)
        assert sum((record.usage for record in result.records), motes.Usage()) == result.usage
    assert bool(waited) == (potential == "absolute")


def test_equal_islands_estimate_the_same_evidence_without_bias():
    """And a dead one has no vote."""
    method = Islands(2, 3, potential="increment", link="odds", beta=1.5, ess_threshold=0.9, combine="equal")
    found = [result for result in results(UNEVEN, method, 300) if result is not None]
    z = z_scores(np.exp([[result.log_evidence] for result in found]), UNEVEN.target(method, [lambda path: 1.0]))
    assert np.abs(z).max() < LIMIT, z
    world = World(EVEN.lm, TabularReward({**EVEN.reward.table, ("a",): 0.0}))
    for result in filter(
        None, results(world, Islands(1, 3, potential="absolute", link="probability", combine="equal"), 50)
    ):
        assert np.allclose(np.exp(result.log_weights), 1.0)


def test_one_island_is_the_particle_filter_and_constant_potential_the_prior():
    constant = World(UNEVEN.lm, TabularReward({}, default=0.5))
    for result in results(constant, Islands(2, 2), 10):
        assert (result.log_evidence, np.ptp(result.log_weights)) == (0.0, 0.0)
    (plain,), (one,) = (
        unbiased_estimates(UNEVEN, method, runs=1)
        for method in (ParticleFilter(1, potential="increment"), Islands(1, 1))
    )
    assert plain.shape == one.shape


# ------------------------------------------------------------------------------------------------------- what all share

ALL = {
    "epf": EntropicParticleFilter(4, beta=3.0, look_ahead=True),
    "published": EntropicParticleFilter.paper(4),
    "islands": Islands(2, 3),
}


@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
def test_same_seed_same_result_whatever_the_order_of_completion(method: ParticleFilter):
    merging = World(Merging(UNEVEN.lm.table), UNEVEN.reward)
    for seed in range(4):
        first = run(UNEVEN, method, seed=seed)
        assert fingerprint(run(UNEVEN, method, seed=seed)) == fingerprint(first)
        assert fingerprint(run(merging, method, seed=seed)) == fingerprint(first)


@pytest.mark.parametrize("max_steps", [1, 2, 4])
@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
def test_max_steps_is_exact(method: ParticleFilter, max_steps: int):
    lm = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(9)})
    result = run(World(lm, TabularReward({})), method, sampling=Sampling(max_steps=max_steps))
    assert {(t.depth, t.finished) for t in result.trajectories} == {(max_steps, "max_steps")}


@pytest.mark.parametrize("method", ALL.values(), ids=ALL)
@pytest.mark.parametrize("token_budget", [1, 5])
def test_a_limit_ends_them_with_what_there_is(method: ParticleFilter, token_budget: int):
    for seed in range(5):
        result = run(EVEN, method, seed=seed, token_budget=token_budget)
        assert result.stopped == "token_budget"
        assert len(result.trajectories) == method.budget


def test_configuration():
    assert EntropicParticleFilter.paper(5) == EntropicParticleFilter(
        5,
        potential="absolute",
        link="odds",
        beta=1.0,
        ess_threshold=1.0,
        resampling="multinomial",
        selector="argmax",
        correction=False,
    )
    assert method_from_spec("epf:look_ahead=true:expected_steps=4", 6) == EntropicParticleFilter(
        6, look_ahead=True, expected_steps=4.0
    )
    assert method_from_spec("epf:paper", 6) == EntropicParticleFilter.paper(6)
    assert method_from_spec("islands", 12) == Islands(3, 4)
    assert method_from_spec("islands:num_islands=2:beta=2", 12) == Islands(6, 2, beta=2.0)
    assert method_from_spec("islands:combine=equal", 12) == Islands(3, 4, combine="equal")
    assert Islands(3, 4).budget == 12
    for value in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigurationError, match="expected_steps"):
            EntropicParticleFilter(4, expected_steps=value)
    with pytest.raises(ConfigurationError, match="num_islands"):
        Islands(4, 0)
    with pytest.raises(ConfigurationError, match="no 4 equal parts"):
        method_from_spec("islands", 6)
