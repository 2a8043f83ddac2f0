"""The exact tests can fail: each mistake below, made in the source, is found by one of their statistics.

"Unbiased" mistakes, which no mean of Ẑ can
show, are found by the second moments of two particles or by the rules that the records must follow.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

import motes.methods.particle_filter as particle_filter
import motes.methods.potential as potential
import motes.methods.run as run
import motes.smc.resampling as resampling
from exact import (
    EVEN,
    FUNCTIONS,
    UNEVEN,
    World,
    check_history,
    results,
    two_particle_moments,
    two_particle_statistics,
    unbiased_estimates,
    z_limit,
    z_scores,
)
from motes import ParticleFilter
from mutations import mutant

Finds = Callable[[type[ParticleFilter]], bool]
LIMIT = z_limit(1000)  # at least that of the tests that the mutants must fail


@cache
def by_evidence(world: World, **config: object) -> Finds:
    """Found by E[Ẑ] = Z or E[Ẑ·ΣWf] = Z·E[f]."""

    def finds(cls: type[ParticleFilter]) -> bool:
        method = cls(**{"num_particles": 3, "ess_threshold": 1.0, "resampling": "multinomial", **config})
        z = z_scores(unbiased_estimates(world, method, runs=400), world.target(method, FUNCTIONS))
        return bool(np.abs(z).max() > LIMIT)

    return finds


@cache
def by_two_particles(**config: object) -> Finds:
    """Found by the exact moments of two particles, waiting for each other included."""

    def finds(cls: type[ParticleFilter]) -> bool:
        method = cls(**{"num_particles": 2, "ess_threshold": 1.0, "resampling": "multinomial", **config})
        z = z_scores(two_particle_statistics(UNEVEN, method, runs=400), two_particle_moments(UNEVEN, method))
        return bool(np.abs(z).max() > LIMIT)

    return finds


@cache
def by_offspring(scheme: str) -> Finds:
    """Found by E[offspring_i] = N·W_i, whatever becomes of the offspring: a filter's particles are exchangeable, so
    that its means hide much of what a scheme does wrong."""

    def finds(cls: type[ParticleFilter]) -> bool:
        weights, rng = np.array([0.4, 0.0, 0.3, 0.2, 0.1]), np.random.default_rng(0)
        draws = [particle_filter.resample(rng, weights, 4, scheme) for _ in range(3000)]
        counts = np.array([np.bincount(ancestors, minlength=5) for ancestors in draws])
        return bool(np.abs(z_scores(counts, 4 * weights)).max() > LIMIT)

    return finds


@cache
def by_records(**config: object) -> Finds:
    """Found by the rules that every run's records follow."""

    def finds(cls: type[ParticleFilter]) -> bool:
        method = cls(**{"num_particles": 5, "beta": 3.0, **config})
        try:
            for result in results(UNEVEN, method, runs=20):
                check_history(result, method)
        except AssertionError:
            return True
        return False

    return finds


INCREMENT, ABSOLUTE = {"potential": "increment"}, {"potential": "absolute"}
MUTATIONS: dict[str, tuple[types.ModuleType, str, str, Finds]] = {
    "weights are not reset after resampling": (
        particle_filter,
        "weights = self._weights_after_resampling(weights, probabilities, ancestors)",
        "pass",
        by_evidence(UNEVEN, **INCREMENT),
    ),
    "the intervals' evidence is not kept": (
        particle_filter,
        "log_evidence += weights.log_mean",
        "pass",
        by_evidence(UNEVEN, **INCREMENT),
    ),
    "the last interval's evidence is left out": (
        particle_filter,
        "return Sweep(population, weights, log_evidence + weights.log_mean",
        "return Sweep(population, weights, log_evidence",
        by_evidence(UNEVEN, **INCREMENT),
    ),
    "evidence is of the mean log-weight": (
        particle_filter,
        "log_evidence += weights.log_mean",
        "log_evidence += float(weights.log_weights.mean())",
        by_evidence(EVEN, **ABSOLUTE),
    ),
    "resampling ignores the weights": (
        particle_filter,
        "run.rng, probabilities, free",
        "run.rng, np.full(n, 1 / n), free",
        by_evidence(EVEN, **ABSOLUTE),
    ),
    "resampling sharpens the weights": (
        particle_filter,
        "run.rng, probabilities, free",
        "run.rng, Weights(2 * weights.log_weights).normalized, free",
        by_evidence(EVEN, **ABSOLUTE),
    ),
    "multinomial resampling is biased": (
        resampling,
        "np.sort(rng.random(n))",
        "np.sort(rng.random(n) ** 1.1)",
        by_offspring("multinomial"),
    ),
    "systematic resampling has no shift": (
        resampling,
        "(np.arange(n) + rng.random()) / n",
        "(np.arange(n) + 0.5) / n",
        by_offspring("systematic"),
    ),
    "residual resampling draws the rest evenly": (
        resampling,
        "rest / rest.sum()",
        "(rest > 0) / (rest > 0).sum()",
        by_offspring("residual"),
    ),
    "stratified resampling draws each stratum's start": (
        resampling,
        "(np.arange(n) + rng.random(n)) / n",
        "np.arange(n) / n",
        by_offspring("stratified"),
    ),
    "the increment forgets the score before": (
        potential,
        "now - (1 - kept) * before)  # weight",
        "now)  # weight",
        by_evidence(UNEVEN, **INCREMENT),
    ),
    "evidence that is to be kept is forgotten": (
        potential,
        "now - (1 - kept) * before)  # weight",
        "now - before)  # weight",
        by_evidence(UNEVEN, potential=0.4),
    ),
    "the first increment is left out": (
        potential,
        "before = np.where(np.isnan(before), 0.0, before)",
        "before = np.where(np.isnan(before), now, before)",
        by_evidence(UNEVEN, **INCREMENT),
    ),
    "a finished particle's increment counts again": (
        potential,
        "np.where(population.extended, ratio",
        "np.where(np.ones_like(population.extended), ratio",
        by_records(**INCREMENT, ess_threshold=0.5),
    ),
    "a finished answer's last score does not count again": (
        potential,
        "increment = np.where(empty, -np.inf, now)",
        "increment = np.where(population.extended, now, 0.0)",
        by_two_particles(**ABSOLUTE),
    ),
    "the links are exchanged": (
        potential,
        'link == "odds"',
        'link != "odds"',
        by_evidence(EVEN, **ABSOLUTE),
    ),
    "beta is forgotten": (
        potential,
        "beta * (np.log",
        "1 * (np.log",
        by_evidence(EVEN, **ABSOLUTE, beta=1.5),
    ),
    "all particles share one seed": (
        run,
        "seeds = {i: int(streams[i].integers(2**63)) for i in live}",
        "seeds = dict.fromkeys(live, int(self.rng.integers(2**63)))",
        by_two_particles(**INCREMENT),
    ),
    "resampled twice a round": (
        particle_filter,
        "ancestors[:free] = resample(run.rng, probabilities, free, self.resampling)",
        "ancestors = resample(run.rng, probabilities, n, self.resampling)\n"
        "                ancestors = ancestors[resample(run.rng, np.full(n, 1 / n), n, self.resampling)]",
        by_two_particles(**ABSOLUTE),
    ),
    "resampled in the first round": (
        particle_filter,
        "resampled = t > 0 and ",
        "resampled = ",
        by_records(ess_threshold=1.0),
    ),
    "resampled after the last step": (
        particle_filter,
        "        return Sweep(population, weights, log_evidence +",
        "        population = population.select(resample(run.rng, weights.normalized, n, self.resampling))\n"
        "        return Sweep(population, weights, log_evidence +",
        by_records(ess_threshold=1.0),
    ),
    "resampled where the weights are even": (
        particle_filter,
        "weights.ess < self",
        "weights.ess > self",
        by_records(ess_threshold=0.5),
    ),
    "the record shows other ancestors": (
        particle_filter,
        "ancestors=ancestors,",
        "ancestors=ancestors[::-1],",
        by_records(ess_threshold=1.0),
    ),
}


def method_of(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, copy: types.ModuleType
) -> type[ParticleFilter]:
    """The particle filter that runs on the mutated module."""
    if module is particle_filter:
        return copy.ParticleFilter
    if module is run:
        monkeypatch.setattr(run.Run, "extend", copy.Run.extend)
    elif module is potential:
        monkeypatch.setattr(particle_filter, "log_increment", copy.log_increment)
    else:
        monkeypatch.setattr(particle_filter, "resample", copy.resample)
    return ParticleFilter


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    module, old, new, finds = MUTATIONS[mistake]
    assert finds(method_of(monkeypatch, module, mutant(module, old, new)))


@pytest.mark.parametrize(
    "finds", {id(m[3]): m[3] for m in MUTATIONS.values()}.values(), ids=lambda finds: finds.__qualname__.split(".")[0]
)
def test_without_the_mistake_nothing_is_found(finds: Finds):
    assert not finds(ParticleFilter)
