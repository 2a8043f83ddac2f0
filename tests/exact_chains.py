"""Conditional sweeps and swaps, started from exact draws of their target, and what compares them with it.

A whole run is compared too: weighted by the evidence of its first sweep, the reference that this sweep draws is an
exact draw of the target, and so is each later one. So E[Ẑ·ΣW(f − E[f])] = 0 for the particles of all sweeps.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from exact import FUNCTIONS, Path, World, mean_of, path_of, prefixes, results, z_scores
from motes import (
    ParallelTempering,
    ParticleFilter,
    Problem,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
    Trajectory,
)
from motes.methods import Population, Run
from motes.methods.sweep import Sweep
from motes.smc import Weights
from motes.tasks import BoxedAnswers


def misleading(steps: str) -> World:
    """Answers that begin with "a" look right at first and turn out wrong; those with "b" the other way round."""
    rows = [path for k in range(3) for path in itertools.product("ab", repeat=k)]
    lm = TabularLanguageModel({row: dict.fromkeys(steps, 1 / len(steps)) for row in rows})

    def score(path: Path) -> float:
        first = 0.85 if path[0] == "a" else 0.15
        if path not in lm.table:
            return 1 - first + (0.05 if path[-1] == "a" else -0.05)
        return first if len(path) == 1 else 0.6 if path[-1] == "a" else 0.35

    return World(lm, TabularReward({path: score(path) for path in prefixes(lm)}))


MISLEADING = misleading("ab")  # every answer has three steps
MISLEADING_UNEVEN = misleading("abc")  # one to three


@dataclass(frozen=True)
class Target:
    """p(x)·Φ(x)^beta by enumeration, where every answer waits until round `horizon` under "absolute".

    Attributes:
        paths, probabilities: of the answers; z: Σ p(x)·Φ(x)^beta.
    """

    paths: tuple[Path, ...]
    probabilities: np.ndarray
    z: float

    @classmethod
    def of(cls, world: World, method: ParticleFilter, horizon: int, beta: float = 1.0) -> Target:
        paths, prior = zip(*world.lm.paths(), strict=True)
        phi = np.array([world.weight(path, method) for path in paths])
        if method.potential == "absolute":
            waits = [max(0, horizon - len(path)) for path in paths]
            phi *= [world.phi(path, method.link, method.beta) ** w for path, w in zip(paths, waits, strict=True)]
        mass = np.array(prior) * phi**beta
        return cls(paths, mass / mass.sum(), float(mass.sum()))

    def draw(self, rng: np.random.Generator) -> Path:
        return self.paths[rng.choice(len(self.paths), p=self.probabilities)]

    def mean(self, f: Callable[[Path], float]) -> float:
        return float(self.probabilities @ [f(path) for path in self.paths])


def new_run(world: World, rng: np.random.Generator) -> Run:
    return Run(Problem("?"), world.lm, world.reward, BoxedAnswers(), Sampling(), rng)


def answer(world: World, path: Path) -> Population:
    """A complete answer as a population of one, with its scores."""
    trajectory = Trajectory(Problem("?"))
    for t, text in enumerate(path, start=1):
        trajectory = trajectory.extend(Step(text, "eos" if t == len(path) else "step"))
    scores = tuple(world.reward[path[:t]] for t in range(1, len(path) + 1))
    return Population((trajectory,), (scores,), np.ones(1, dtype=bool))


@dataclass(frozen=True)
class Move:
    """One conditional sweep: where it started, what it gave, where it ended, and the run's records."""

    before: Path
    sweep: Sweep
    after: Path
    run: Run


def moves(world: World, method: ParticleFilter, target: Target, horizon: int, runs: int, seed: int = 0) -> list[Move]:
    """Conditional sweeps whose references are exact draws from `target`."""

    async def every() -> list[Move]:
        found = []
        for number in range(runs):
            run = new_run(world, np.random.default_rng([seed, number]))
            before = target.draw(run.rng)
            sweep = await method.filter.sweep(run, reference=answer(world, before), horizon=horizon)
            found.append(Move(before, sweep, path_of(sweep.draw(run.rng).trajectories[0]), run))
        return found

    return asyncio.run(every())


def conditional_means(found: Sequence[Move]) -> np.ndarray:
    """(runs, functions): 1/Ẑ, whose mean is 1/Z, and ΣWf, whose mean is that of f under the target."""
    rows = []
    for move in found:
        w = move.sweep.weights.normalized
        paths = [path_of(trajectory) for trajectory in move.sweep.population.trajectories]
        means = [float(w @ [f(path) for path in paths]) for f in FUNCTIONS[1:]]
        rows.append([np.exp(-move.sweep.log_evidence), *means])
    return np.array(rows)


def expected_means(target: Target) -> np.ndarray:
    return np.array([1 / target.z, *(target.mean(f) for f in FUNCTIONS[1:])])


def choices_of_reference(found: Sequence[Move]) -> np.ndarray:
    """(runs, 2) of k − mW and k(k−1) − m(m−1)W², summed over the resamplings of a sweep, whose means are 0.

    k of the m free slots choose the reference, whose weight is W: independently of each other, so that k is binomial.
    """
    rows = []
    for move in found:
        row = np.zeros(2)
        for before, after in itertools.pairwise(move.run.records):
            if after.resampled:
                n = len(after.ancestors)
                k, m, w = (after.ancestors[:-1] == n - 1).sum(), n - 1, Weights(before.log_weights).normalized[-1]
                row += [k - m * w, k * (k - 1) - m * (m - 1) * w**2]
        rows.append(row)
    return np.array(rows)


def p_value(outcomes: Sequence[object], cells: Sequence[object], probabilities: np.ndarray) -> float:
    """Of Pearson's χ² test. `outcomes` lie in `cells`; cells of fewer than 10 expected outcomes are taken together."""
    index = {cell: i for i, cell in enumerate(cells)}
    counts = np.bincount([index[outcome] for outcome in outcomes], minlength=len(cells))
    expected = len(outcomes) * probabilities
    small = expected < 10
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    if expected[-1] < 10:  # too few even together: with the last one
        counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


# ----------------------------------------------------------------------------------------------- parallel tempering


def swapped_pairs(world: World, method: ParallelTempering, horizon: int, runs: int, seed: int = 0) -> float:
    """The p-value of the joint law of two references, drawn from their targets and offered each other."""
    cold, hot = (Target.of(world, method, horizon, beta) for beta in method.ladder)
    answers = {path: answer(world, path) for path in cold.paths}
    rng = np.random.default_rng(seed)
    outcomes = []
    for _ in range(runs):
        pair = cold.draw(rng), hot.draw(rng)
        swaps = method._swaps(rng, answers[pair[0]], answers[pair[1]], 0, horizon)
        outcomes.append(pair[::-1] if swaps else pair)
    cells = list(itertools.product(cold.paths, hot.paths))
    return p_value(outcomes, cells, np.outer(cold.probabilities, hot.probabilities).ravel())


def whole_runs(world: World, method: ParticleFilter, target: Target, runs: int, seed: int = 0) -> np.ndarray:
    """(runs, functions) of Ẑ, and Ẑ · Σ W (f − E[f]), with E[f] under `target`; 0 for a failed run.

    Ẑ is that of the first sweep, in parallel tempering the product over all chains.
    """
    rows: list[Sequence[float]] = []
    for result in results(world, method, runs, seed):
        if result is None:
            rows.append([0.0] * len(FUNCTIONS))
            continue
        log_evidence = result.log_evidence
        if isinstance(method, ParallelTempering):
            first = {record.chain: record.log_evidence for record in result.records if record.sweep == 0}
            log_evidence = sum(first.values())  # of each chain's last record
        errors = [mean_of(result, f) - target.mean(f) for f in FUNCTIONS[1:]]
        rows.append(np.exp(log_evidence) * np.array([1.0, *errors]))
    return np.array(rows)


def whole_run_z_scores(world: World, method: ParticleFilter, runs: int, seed: int = 0) -> np.ndarray:
    """(functions,) of `whole_runs`, whose means are Z (the chains' product) and zeros."""
    horizon = 3  # matters under "absolute" alone, where every answer must have three steps
    targets = [Target.of(world, method, horizon, beta) for beta in getattr(method, "ladder", (1.0,))]
    expected = [np.prod([target.z for target in targets]), *[0.0] * (len(FUNCTIONS) - 1)]
    return z_scores(whole_runs(world, method, targets[0], runs, seed), np.array(expected))
