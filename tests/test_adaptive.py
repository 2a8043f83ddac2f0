"""The adaptive filter: unbiased while it does not stop early, and cheap where the answer is clear.

Bonferroni over all z-statistics on fixed seeds: a correct method fails with probability below 1e-6 over the choice of
seeds, by the normal approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import motes
from exact import EVEN, FUNCTIONS, UNEVEN, World, path_of, prefixes, results, unbiased_estimates, z_limit, z_scores
from motes import AdaptiveFilter, ParticleFilter, Result, Sampling, TabularLanguageModel, TabularReward
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.lab.run.method_spec import method_from_spec
from motes.methods import adaptive
from motes.methods.sweep import Sweep
from test_particle_filter import Merging, fingerprint

NEVER = 2.0
LIMIT = z_limit(4 * len(FUNCTIONS))
WORLDS = {"absolute": EVEN, "increment": UNEVEN}


def run(world: World, method: AdaptiveFilter, **options: object) -> Result:
    return motes.solve("?", **{"lm": world.lm, "reward": world.reward, "method": method, **options})


def deviations(world: World, method: AdaptiveFilter, runs: int) -> np.ndarray:
    return np.abs(z_scores(unbiased_estimates(world, method, runs=runs), world.target(method, FUNCTIONS)))


@pytest.mark.parametrize("potential", WORLDS)
def test_it_is_unbiased_when_all_waves_run(potential: str):
    method = AdaptiveFilter(6, 3, NEVER, 1, potential=potential, beta=1.5, ess_threshold=0.9)
    assert deviations(WORLDS[potential], method, 200).max() < LIMIT


@pytest.mark.parametrize("mistake", [lambda sweep: sweep.log_evidence, lambda sweep: np.log(len(sweep.population))])
def test_a_wave_that_has_not_its_say_is_noticed(mistake: Callable[[Sweep], float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adaptive, "_masses", lambda sweeps: [float(mistake(sweep)) for sweep in sweeps])
    method = AdaptiveFilter(6, 3, NEVER, 1, potential="increment", beta=1.5, ess_threshold=0.9)
    assert deviations(UNEVEN, method, 200).max() > LIMIT


def test_a_dead_wave_counts_as_evidence_zero():
    world = World(EVEN.lm, TabularReward({**EVEN.reward.table, ("a",): 0.0}))
    method = AdaptiveFilter(4, 3, NEVER, 1, potential="absolute", link="probability")
    found = results(world, method, 100)
    assert {2, 3, 4} <= {len(result.trajectories) for result in found if result is not None}
    assert deviations(world, method, 350).max() < LIMIT
    with pytest.raises(DegenerateWeightsError, match="after step 1"):
        run(World(EVEN.lm, TabularReward(dict.fromkeys(prefixes(EVEN.lm), 0.0))), method)


@pytest.mark.parametrize(
    ("particles", "waves", "smallest", "sizes"),
    [
        (64, 4, 1, (8, 8, 16, 32)),
        (64, 1, 1, (64,)),
        (5, 4, 1, (1, 1, 1, 2)),
        (3, 4, 1, (1, 1, 1)),
        (1, 4, 1, (1,)),
        (100, 3, 1, (25, 25, 50)),
        (64, 4, 8, (8, 8, 16, 32)),
        (64, 4, 9, (16, 16, 32)),
        (32, 4, 8, (8, 8, 16)),
        (8, 4, 8, (8,)),
        (5, 4, 8, (5,)),
    ],
)
def test_waves_double_what_there_was(particles: int, waves: int, smallest: int, sizes: tuple[int, ...]):
    assert AdaptiveFilter(particles, waves, smallest=smallest).sizes == sizes
    assert sum(sizes) == particles


def boxed(*answers: str) -> World:
    """Each of the answers as likely as the others, all scored the same."""
    texts = {f"\\boxed{{{answer}}}": 1 / len(answers) for answer in answers}
    return World(TabularLanguageModel({(): texts}), TabularReward({}, default=0.5))


def test_it_stops_when_an_answer_has_the_posterior():
    sure, torn = boxed("7"), boxed("7", "8")
    for seed in range(10):
        result = run(sure, AdaptiveFilter(64), seed=seed)
        assert (len(result.trajectories), result.usage.lm_calls, result.confidence) == (8, 8, 1.0)
        result = run(torn, AdaptiveFilter(64, decided=0.9), seed=seed)
        assert (len(result.trajectories), result.usage.lm_calls) == (64, 64)
        assert [len(record.trajectories) for record in result.records] == [8, 8, 16, 32]
        assert [record.sweep for record in result.records] == [0, 1, 2, 3]
        assert len(run(torn, AdaptiveFilter(64, decided=0.5), seed=seed).trajectories) == 8


def test_it_stops_where_the_pooled_posterior_says_so():
    """Each wave is a filter by itself; what is decided, is decided over all so far."""
    method = AdaptiveFilter(16, 4, 0.7, 1, potential="increment")
    lengths = set()
    for result in results(boxed("7", "8"), method, 40):
        counts = np.cumsum(
            [[sum(a in t.text for t in r.trajectories) for a in ("{7}", "{8}")] for r in result.records], axis=0
        )
        shares = counts.max(1) / counts.sum(1)
        assert (shares[:-1] < 0.7).all()
        assert shares[-1] >= 0.7 or len(result.trajectories) == 16
        lengths.add(len(result.records))
    assert len(lengths) > 1


def test_it_goes_on_where_an_answer_is_agreed_upon_but_not_thought_right():
    """All particles give the one answer there is; its score alone says whether the run goes on."""
    lm = boxed("7").lm
    for score, method, drawn in (
        (0.51, AdaptiveFilter(64), 8),
        (0.49, AdaptiveFilter(64), 64),
        (0.49, AdaptiveFilter(64, assured=0.4), 8),
        (0.01, AdaptiveFilter(64, assured=0.0), 8),
    ):
        assert len(run(World(lm, TabularReward({}, default=score)), method).trajectories) == drawn


def test_the_score_that_counts_is_the_mean_of_the_answers_particles_by_weight():
    trajectories = [f"\\boxed{{7}}{' ' * k}" for k in range(2)] + ["\\boxed{8}"]
    lm = TabularLanguageModel({(): dict.fromkeys(trajectories, 1 / 3)})
    reward = TabularReward(dict(zip([(text,) for text in trajectories], (0.9, 0.6, 0.01), strict=True)))
    lengths = set()
    for result in results(World(lm, reward), AdaptiveFilter(32, potential="increment", assured=0.75), 40):
        first = [i for i, t in enumerate(result.records[0].trajectories) if "7" in t.text]
        record = result.records[0]
        weights = np.exp(record.log_weights[first])
        mean = float(np.average(record.scores[first], weights=weights))
        assert (len(result.records) == 1) == (mean >= 0.75)
        lengths.add(len(result.records))
    assert len(lengths) > 1


def test_finished_answers_of_one_wave_wait_for_those_of_others():
    """Where nothing is resampled a particle's mass is the product of its φ, over as many rounds for all."""
    method = AdaptiveFilter(6, 2, NEVER, 1, potential="absolute", beta=1.0, ess_threshold=0.0)
    unlike = 0
    for result in results(UNEVEN, method, 20):
        rounds = [sum(record.sweep == wave for record in result.records) for wave in range(2)]
        unlike += len(set(rounds)) > 1
        expected = []
        for trajectory in result.trajectories:
            path = path_of(trajectory)
            factors = [UNEVEN.phi(path[:t], "odds", 1.0) for t in range(1, len(path) + 1)]
            expected.append(sum(np.log(factors)) + (max(rounds) - len(path)) * np.log(factors[-1]))
        assert result.log_weights - result.log_weights[0] == pytest.approx(np.array(expected) - expected[0])
        assert np.exp(result.log_evidence) == pytest.approx(np.mean(np.exp(expected)))
    assert unlike


def test_one_wave_is_the_particle_filter():
    for first, second in zip(
        results(UNEVEN, ParticleFilter(4), 20), results(UNEVEN, AdaptiveFilter(4, 1), 20), strict=True
    ):
        assert second.log_evidence == pytest.approx(first.log_evidence, abs=1e-12)
        same = replace(second, method=first.method, log_evidence=first.log_evidence)
        assert fingerprint(same) == fingerprint(first)


def test_same_seed_same_result_whatever_the_order_of_completion():
    method = AdaptiveFilter(6, decided=NEVER, smallest=1)
    merging = World(Merging(UNEVEN.lm.table), UNEVEN.reward)
    for seed in range(4):
        first = run(UNEVEN, method, seed=seed)
        assert fingerprint(run(UNEVEN, method, seed=seed)) == fingerprint(first)
        assert fingerprint(run(merging, method, seed=seed)) == fingerprint(first)


def test_a_limit_ends_it_with_the_waves_there_are():
    for seed in range(5):
        result = run(EVEN, AdaptiveFilter(8, decided=NEVER, smallest=1), seed=seed, token_budget=4)
        assert result.stopped == "token_budget"
        assert 1 <= len(result.trajectories) < 8
    decided = run(boxed("7"), AdaptiveFilter(8, smallest=1), token_budget=1)
    assert decided.answer == "7"
    assert decided.stopped is None, "nothing more would have been done"


def test_the_former_name_of_its_size():
    with pytest.warns(DeprecationWarning, match="num_particles of AdaptiveFilter is deprecated: use max_particles"):
        former = AdaptiveFilter(num_particles=12, num_waves=3)  # type: ignore[call-arg]
    assert former == AdaptiveFilter(12, 3)
    with pytest.warns(DeprecationWarning, match="max_particles"):
        assert former.num_particles == 12  # type: ignore[attr-defined]


def test_configuration():
    assert method_from_spec("adaptive:num_waves=3:decided=0.8", 12) == AdaptiveFilter(12, 3, 0.8)
    assert AdaptiveFilter(12).budget == 12
    with pytest.raises(ConfigurationError, match="num_waves"):
        AdaptiveFilter(4, 0)
    with pytest.raises(ConfigurationError, match="decided"):
        AdaptiveFilter(4, decided=0.0)
    with pytest.raises(ConfigurationError, match="assured is a score"):
        AdaptiveFilter(4, assured=1.5)
    with pytest.raises(ConfigurationError, match="smallest must be a whole number of at least 1"):
        AdaptiveFilter(4, smallest=0)
    with pytest.raises(ConfigurationError, match="max_particles must be a whole number of at least 1"):
        AdaptiveFilter(0)
    lm = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(9)})
    result = run(World(lm, TabularReward({})), AdaptiveFilter(4), sampling=Sampling(max_steps=3))
    assert {t.finished for t in result.trajectories} == {"max_steps"}
