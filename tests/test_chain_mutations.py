"""The exact tests of chains, entropic filters and islands can fail: each mistake below is found by one of them."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import motes.methods.entropic as entropic
import motes.methods.islands as islands
import motes.methods.parallel_tempering as parallel_tempering
import motes.methods.particle_filter as particle_filter
import motes.methods.particle_gibbs as particle_gibbs
import motes.methods.population as population
import motes.methods.sweep as sweep
from exact import EVEN, UNEVEN, World, z_limit, z_scores
from exact_chains import (
    MISLEADING,
    MISLEADING_UNEVEN,
    Target,
    choices_of_reference,
    conditional_means,
    expected_means,
    moves,
    p_value,
    swapped_pairs,
    whole_run_z_scores,
)
from motes import EntropicParticleFilter, Islands, ParallelTempering, ParticleFilter, ParticleGibbs, TabularReward
from mutations import mutant, replace_methods

Finds = Callable[[], bool]
RATE = 1e-8  # at most that of one test of those that the mutants must fail
LIMIT = z_limit(1, RATE)


@cache
def by_invariance(world: World, method: ParticleGibbs, horizon: int, runs: int = 500) -> Finds:
    """Found by χ² of the new reference, by E[1/Ẑ] = 1/Z, or by the mean of the weighted particles."""

    def finds() -> bool:
        target = Target.of(world, method, horizon)
        found = moves(world, method, target, horizon, runs)
        z = z_scores(conditional_means(found), expected_means(target))
        return p_value([m.after for m in found], target.paths, target.probabilities) < RATE or np.abs(z).max() > LIMIT

    return finds


@cache
def by_draws(world: World, method: ParticleGibbs, runs: int = 500) -> Finds:
    """Found by χ² of the new reference alone: sharp potentials, under which 1/Ẑ is no sample for a z-test."""

    def finds() -> bool:
        target = Target.of(world, method, 3)
        found = moves(world, method, target, 3, runs)
        return p_value([m.after for m in found], target.paths, target.probabilities) < RATE

    return finds


@cache
def by_choices(method: ParticleGibbs, runs: int = 300) -> Finds:
    """Found by how often free slots choose the reference."""

    def finds() -> bool:
        found = moves(UNEVEN, method, Target.of(UNEVEN, method, 3), 3, runs)
        return bool(np.abs(z_scores(choices_of_reference(found), np.zeros(2))).max() > LIMIT)

    return finds


@cache
def by_swaps(method: ParallelTempering, runs: int = 8000) -> Finds:
    """Found by χ² of two exact draws that were offered each other."""
    return lambda: swapped_pairs(EVEN, method, 3, runs) < RATE


@cache
def by_whole_runs(world: World, method: ParticleFilter, runs: int = 400) -> Finds:
    """Found by the pooled particles of whole runs, weighted by the evidence of the first sweeps."""
    return lambda: bool(np.abs(whole_run_z_scores(world, method, runs)).max() > LIMIT)


def gibbs(n: int, potential: str, beta: float = 2.0, ess_threshold: float = 1.0, **others: int) -> ParticleGibbs:
    return ParticleGibbs(n, 2, potential=potential, beta=beta, ess_threshold=ess_threshold, **others)


TEMPERED = ParallelTempering(
    2, 2, potential="absolute", link="probability", beta=3.0, ess_threshold=1.0, ladder=(1.0, 0.2), burn_in=1
)
ENTROPIC = EntropicParticleFilter(3, potential="absolute", beta=2.0, ess_threshold=0.9, expected_steps=5.0)
AHEAD = replace(ENTROPIC, look_ahead=True)
SCORES_OF_REFERENCE = "tuple(scores[:t] for scores in self.scores)"
SWAPPED = ParallelTempering(2, 2, potential="absolute", beta=2.0, ladder=(1.0, 0.5))

SOME_ZERO = World(EVEN.lm, TabularReward({**EVEN.reward.table, ("a",): 0.0}))

MUTATIONS: dict[str, tuple[types.ModuleType, str, str, Finds]] = {
    "the reference weighs its final score at every step, as its_hub does": (
        population,
        SCORES_OF_REFERENCE,
        "tuple(list(scores[-1:]) * min(t, len(scores)) for scores in self.scores)",
        by_draws(MISLEADING, gibbs(2, "absolute")),
    ),
    "the reference weighs the score one step ahead, as the paper's code does": (
        population,
        SCORES_OF_REFERENCE,
        "tuple(scores[: t + 1] for scores in self.scores)",
        by_draws(MISLEADING, gibbs(2, "absolute")),
    ),
    "the same where increments telescope": (
        population,
        SCORES_OF_REFERENCE,
        "tuple(list(scores[-1:]) * min(t, len(scores)) for scores in self.scores)",
        by_draws(MISLEADING_UNEVEN, gibbs(3, "increment")),
    ),
    "an ended reference's increment counts again": (
        population,
        "np.array([trajectory.depth >= t for trajectory in self.trajectories], dtype=bool)",
        "np.ones(len(self), dtype=bool)",
        by_invariance(UNEVEN, gibbs(3, "increment", ess_threshold=0.0), 3, runs=1000),
    ),
    "free slots do not choose the reference": (
        particle_filter,
        "resample(run.rng, probabilities, free, self.resampling)",
        "resample(run.rng, probabilities[:free] / probabilities[:free].sum(), free, self.resampling)",
        by_choices(gibbs(4, "increment")),
    ),
    "free slots do not choose the reference, seen in what is drawn": (
        particle_filter,
        "resample(run.rng, probabilities, free, self.resampling)",
        "resample(run.rng, probabilities[:free] / probabilities[:free].sum(), free, self.resampling)",
        by_draws(MISLEADING, gibbs(2, "absolute")),
    ),
    "free slots are resampled systematically": (
        particle_filter,
        "resample(run.rng, probabilities, free, self.resampling)",
        'resample(run.rng, probabilities, free, "systematic")',
        by_choices(gibbs(4, "increment")),
    ),
    "the reference's weight has no say in when to resample": (
        particle_filter,
        "weights.ess < self.ess_threshold * n",
        "Weights(weights.log_weights[:free]).ess < self.ess_threshold * free",
        by_invariance(MISLEADING, gibbs(3, "absolute", beta=1.0, ess_threshold=0.8), 3, runs=2000),
    ),
    "the evidence leaves the reference out": (
        particle_filter,
        "log_evidence += weights.log_mean",
        "log_evidence += Weights(weights.log_weights[:free]).log_mean",
        by_invariance(MISLEADING, gibbs(3, "absolute", beta=1.0), 3),
    ),
    "finished answers wait for ever": (
        particle_filter,
        "waiting_counts=horizon is None or t <= horizon",
        "waiting_counts=True",
        by_invariance(UNEVEN, gibbs(3, "absolute"), 2),
    ),
    "a sweep ends before its horizon": (
        particle_filter,
        "population.alive or t < (horizon or 0)",
        "population.alive",
        by_invariance(UNEVEN, gibbs(2, "absolute"), 5),
    ),
    "the next reference is drawn evenly": (
        sweep,
        "p=self.weights.normalized",
        "p=None",
        by_draws(MISLEADING, gibbs(2, "absolute")),
    ),
    "later sweeps have no reference": (
        particle_gibbs,
        "reference = sweeps[-1].draw(run.rng)",
        "reference = None",
        by_whole_runs(MISLEADING, gibbs(2, "absolute", beta=1.0, burn_in=1), runs=1000),
    ),
    "swaps have the wrong sign": (
        parallel_tempering,
        "(log_phi[1] - log_phi[0])",
        "(log_phi[0] - log_phi[1])",
        by_swaps(SWAPPED),
    ),
    "swaps weigh Φ whole": (
        parallel_tempering,
        "(self.ladder[k] - self.ladder[k + 1]) * (log",
        "1.0 * (log",
        by_swaps(SWAPPED),
    ),
    "every swap is accepted": (
        parallel_tempering,
        "rng.random() < math.exp(min(0.0, log_ratio))",
        "True",
        by_swaps(SWAPPED),
    ),
    "hot chains are as cold as the first": (
        parallel_tempering,
        '"beta": self.beta * beta',
        '"beta": self.beta',
        by_whole_runs(MISLEADING, TEMPERED, runs=300),
    ),
    "answers come from the hottest chain": (
        parallel_tempering,
        "sweeps.append(latest[0])",
        "sweeps.append(latest[-1])",
        by_whole_runs(MISLEADING, TEMPERED, runs=300),
    ),
    "annealing is not corrected": (
        entropic,
        "if not self.correction:",
        "if True:",
        by_whole_runs(EVEN, ENTROPIC),
    ),
    "look-ahead is not corrected": (
        entropic,
        "if not self.correction:",
        "if True:",
        by_whole_runs(EVEN, replace(AHEAD, annealing=False)),
    ),
    "the ratio that offspring carry is upside down": (
        particle_filter,
        "weights.normalized[ancestors] / probabilities[ancestors]",
        "probabilities[ancestors] / weights.normalized[ancestors]",
        by_whole_runs(MISLEADING, replace(AHEAD, beta=1.0)),
    ),
    "islands have the same say": (
        islands,
        'log_evidence if self.combine == "evidence" else None',
        "None",
        by_whole_runs(EVEN, Islands(1, 3, potential="absolute", beta=2.0)),
    ),
    "dead islands do not count": (
        islands,
        "np.log(self.num_islands)",
        "np.log(len(sweeps))",
        by_whole_runs(SOME_ZERO, Islands(1, 3, potential="absolute", link="probability")),
    ),
}

CLASSES: dict[types.ModuleType, tuple[type, ...]] = {
    population: (population.Population,),
    particle_filter: (ParticleFilter,),
    sweep: (sweep.Sweep,),
    particle_gibbs: (ParticleGibbs,),
    parallel_tempering: (ParallelTempering,),
    entropic: (EntropicParticleFilter,),
    islands: (Islands,),
}
"""The class of each module whose own functions a mutant takes the place of."""


def install(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, old: str, new: str) -> None:
    """Make the module's class, and `pool`, do what they would if `old` read `new`."""
    copy = mutant(module, old, new)
    for cls in CLASSES[module]:
        replace_methods(monkeypatch, cls, getattr(copy, cls.__name__))
    if module is sweep:
        for user in (particle_gibbs, islands):
            monkeypatch.setattr(user, "pool", copy.pool)


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch):
    module, old, new, finds = MUTATIONS[mistake]
    install(monkeypatch, module, old, new)
    assert finds()


@pytest.mark.parametrize("number", range(len({id(m[3]) for m in MUTATIONS.values()})))
def test_without_the_mistake_nothing_is_found(number: int):
    finds = list({id(m[3]): m[3] for m in MUTATIONS.values()}.values())
    assert not finds[number]()
