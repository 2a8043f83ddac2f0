"""Finite worlds in which everything that can happen is enumerated, and what compares runs with them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from motes import ParticleFilter, Result, TabularLanguageModel, TabularReward, Trajectory, asolve
from motes.errors import DegenerateWeightsError

Path = tuple[str, ...]


def path_of(trajectory: Trajectory) -> Path:
    return tuple(step.text for step in trajectory.steps)


@dataclass(frozen=True)
class World:
    """A language model and a reward model that are tables."""

    lm: TabularLanguageModel
    reward: TabularReward

    @classmethod
    def random(cls, seed: int, steps: str) -> World:
        """Answers of up to three steps; any step but "a" and "b" ends one. Moderate scores: z-tests are near normal."""
        rng = np.random.default_rng(seed)
        rows = [path for k in range(3) for path in itertools.product("ab", repeat=k)]
        lm = TabularLanguageModel({r: dict(zip(steps, rng.dirichlet([4] * len(steps)), strict=True)) for r in rows})
        return cls(lm, TabularReward({prefix: float(rng.uniform(0.2, 0.8)) for prefix in prefixes(lm)}))

    def phi(self, path: Path, link: str, beta: float) -> float:
        r = self.reward[path]
        return float({"odds": r / (1 - r), "probability": r, "exponential": np.exp(r)}[link] ** beta)

    def weight(self, path: Path, method: ParticleFilter) -> float:
        """The whole accumulated potential of a complete answer that never waited for others."""
        factors = [self.phi(path[: t + 1], method.link, method.beta) for t in range(len(path))]
        if method.potential == "absolute":
            return float(np.prod(factors))
        kept = 0.0 if method.potential == "increment" else method.potential
        return float(factors[-1] * np.prod(factors[:-1]) ** kept) if all(factors) else 0.0

    def target(self, method: ParticleFilter, functions: Sequence[Callable[[Path], float]]) -> np.ndarray:
        """Z·E[f] of each function under the target, by enumeration."""
        terms = [p * self.weight(x, method) * np.array([f(x) for f in functions]) for x, p in self.lm.paths()]
        return np.sum(terms, axis=0)


def prefixes(lm: TabularLanguageModel) -> list[Path]:
    return sorted({path[:k] for path, _ in lm.paths() for k in range(1, len(path) + 1)})


EVEN = World.random(1, "ab")  # every answer has three steps
UNEVEN = World.random(3, "abc")  # one to three

FUNCTIONS: tuple[Callable[[Path], float], ...] = (
    lambda path: 1.0,  # its estimate is Ẑ itself
    lambda path: float(path[0] == "a"),
    lambda path: float(path[-1] == "a") + 0.1 * len(path),
)


def results(world: World, method: ParticleFilter, runs: int, seed: int = 0) -> list[Result | None]:
    """Independent runs; None for one in which every weight was zero."""

    async def one(seed: int) -> Result | None:
        try:
            return await asolve("?", lm=world.lm, reward=world.reward, method=method, seed=seed)
        except DegenerateWeightsError:
            return None

    async def every() -> list[Result | None]:
        return [await one(1_000_000 * seed + run) for run in range(runs)]

    return asyncio.run(every())


def mean_of(result: Result, f: Callable[[Path], float]) -> float:
    """Σ W f over the final particles."""
    w = np.exp(result.log_weights - result.log_weights.max())
    values = [f(path_of(t)) if weight else 0.0 for t, weight in zip(result.trajectories, w, strict=True)]
    return float(np.average(values, weights=w))


def unbiased_estimates(world: World, method: ParticleFilter, runs: int, seed: int = 0) -> np.ndarray:
    """(runs, functions) of Ẑ·ΣWf, whose mean is Z·E[f]."""
    rows = []
    for result in results(world, method, runs, seed):
        if result is None:
            rows.append(np.zeros(len(FUNCTIONS)))
        else:
            rows.append(np.exp(result.log_evidence) * np.array([mean_of(result, f) for f in FUNCTIONS]))
    return np.array(rows)


def z_scores(samples: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(K,) of the means of (R, K) samples. What does not vary must be exact: its z is 0, or beyond any limit."""
    error = samples.mean(axis=0) - expected
    spread = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    exact = np.isclose(error, 0.0, rtol=0, atol=1e-9)
    return np.where(exact, 0.0, error / np.maximum(spread, 1e-12))


def z_limit(num_tests: int, false_alarm_rate: float = 1e-6) -> float:
    """What |z| stays under in all of `num_tests` two-sided tests together but for the given rate (Bonferroni)."""
    return float(norm.isf(false_alarm_rate / 2 / num_tests))


# ------------------------------------------------------------------------------------------------- two particles


def offspring_of_two(w: float, scheme: str) -> list[tuple[tuple[int, int], float]]:
    """The law of the ancestors of two particles of normalised weights w and 1 − w. All schemes but multinomial keep
    the floor of 2w and of 2(1 − w) for certain, and unbiasedness says the rest."""
    both = w * w if scheme == "multinomial" else max(0.0, 2 * w - 1)
    none = (1 - w) ** 2 if scheme == "multinomial" else max(0.0, 1 - 2 * w)
    return [((0, 0), both), ((0, 1), 1 - both - none), ((1, 1), none)]


def two_particle_moments(world: World, method: ParticleFilter) -> np.ndarray:
    """The exact means of `two_particle_statistics`, by enumeration of everything that two particles can do."""
    total = np.zeros(5)

    def extensions(path: Path) -> list[tuple[Path, float]]:
        if path and path not in world.lm.table:
            return [(path, 1.0)]
        return [((*path, text), p) for text, p in world.lm.table[path].items()]

    def g(before: Path, path: Path) -> float:
        now = world.phi(path, method.link, method.beta)
        if method.potential == "absolute":
            return now
        if path == before:
            return 1.0
        kept = 0.0 if method.potential == "increment" else method.potential
        return now / world.phi(before, method.link, method.beta) ** (1 - kept) if before else now

    def walk(pair: tuple[Path, Path], w: tuple[float, float], z: float, p: float, rounds: int, met: bool) -> None:
        if rounds and all(path not in world.lm.table for path in pair):
            estimate = z * sum(w) / 2
            mean = sum(v * FUNCTIONS[2](x) for v, x in zip(w, pair, strict=True)) / sum(w)
            total[:] += p * np.array([estimate, estimate**2, mean, rounds, met])
            return
        branches: list[tuple[tuple[int, int], float]] = [((0, 1), 1.0)]
        if rounds and (method.ess_threshold == 1 or sum(w) ** 2 / (w[0] ** 2 + w[1] ** 2) < 2 * method.ess_threshold):
            branches = offspring_of_two(w[0] / sum(w), method.resampling)
            z, w = z * sum(w) / 2, (1.0, 1.0)
        for (i, j), chance in branches:
            for (x, px), (y, py) in itertools.product(extensions(pair[i]), extensions(pair[j])):
                weights = (w[0] * g(pair[i], x), w[1] * g(pair[j], y))
                walk((x, y), weights, z, p * chance * px * py, rounds + 1, met or i == j)

    walk(((), ()), (1.0, 1.0), 1.0, 1.0, 0, False)
    return total


def two_particle_statistics(world: World, method: ParticleFilter, runs: int, seed: int = 0) -> np.ndarray:
    """(runs, 5): Ẑ, Ẑ², the self-normalised ΣWf (biased, and here exactly so), the number of rounds, and whether
    both particles descend from one."""
    rows = []
    for result in results(world, method, runs, seed):
        estimate = np.exp(result.log_evidence)
        first, second = (trajectory.path[0] for trajectory in result.trajectories)
        rows.append((estimate, estimate**2, mean_of(result, FUNCTIONS[2]), len(result.records), first is second))
    return np.array(rows)


# ------------------------------------------------------------------------------------------------- one run's records


def check_history(result: Result, method: ParticleFilter) -> None:
    """Whether the records tell one consistent story that follows the method's rules."""
    n = method.num_particles
    before: Sequence[Trajectory] | None = None
    weights = np.zeros(n)
    closed = 0.0
    for number, record in enumerate(result.records):
        assert record.ancestors.shape == record.log_weights.shape == record.scores.shape == (n,)
        assert len(record.trajectories) == n
        w = np.exp(weights - weights.max())
        due = method.ess_threshold == 1 or w.sum() ** 2 / (w**2).sum() < method.ess_threshold * n
        assert record.resampled == (number > 0 and due), "resampled when, and only when, due"
        if record.resampled:
            closed += float(np.log(np.exp(weights).mean()))
            weights = np.zeros(n)
        else:
            assert record.ancestors.tolist() == list(range(n))
        if before is not None:
            assert any(t.finished is None for t in before), "no round after the last"
            for i, (trajectory, a) in enumerate(zip(record.trajectories, record.ancestors, strict=True)):
                ancestor = before[a]
                assert (trajectory is ancestor) if ancestor.finished else (trajectory.parent is ancestor), i
        increments = record.log_weights - weights
        for i, trajectory in enumerate(record.trajectories):
            if method.potential != "absolute" and before is not None and trajectory is before[record.ancestors[i]]:
                assert increments[i] == 0.0, "a finished particle's increment is 1"
        weights = record.log_weights
        assert np.isclose(record.log_evidence, closed + np.log(np.exp(weights).mean())), "the last interval included"
        assert np.isclose(record.ess, np.exp(weights).sum() ** 2 / np.exp(2 * weights).sum())
        before = record.trajectories
    assert result.trajectories == result.records[-1].trajectories, "no resampling after the last step"
    assert (result.log_weights == result.records[-1].log_weights).all()
    assert result.log_evidence == result.records[-1].log_evidence
    assert all(t.finished for t in result.trajectories)
