"""How sure a measured number is.

Runs of one problem with several seeds are not independent: problems are. The interval of an accuracy is Wilson's, at
the effective sample size of a cluster sample whose clusters are the problems,

    n_eff = p(1 − p) / v        v = Σ_i m_i² (p_i − p)² / (Σ_i m_i)²

with m_i runs of problem i, of which the share p_i is right, and p the share over all. With one run a problem n_eff is
the number of problems and the interval the plain Wilson interval; with more it lies between the number of problems
(seeds agree) and the number of runs (problems are alike). Deterministic, inside [0, 1], and of positive width also
where everything or nothing is right, where a bootstrap would claim certainty.

What compares methods on the same problems has the percentile interval of a bootstrap over problems: problems are drawn
with replacement, each with all its runs of all methods, and the whole comparison is made again. It is seeded, holds its
level from about fifty problems on, and is too narrow below.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 4000
"""Samples of a bootstrap: the ends of a 95 % interval are then known to a tenth of its width."""


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval; NaN without data."""

    value: float
    low: float
    high: float


def wilson(p: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion p out of n independent observations (n need not be whole)."""
    if n <= 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def effective_size(clusters: Sequence[Sequence[bool]]) -> float:
    """n_eff of the module's docstring; each cluster holds the runs of one problem, at least one."""
    runs = sum(map(len, clusters))
    if not runs:
        return 0.0
    p = sum(map(sum, clusters)) / runs
    variance = sum((sum(cluster) - len(cluster) * p) ** 2 for cluster in clusters) / runs**2
    if p in (0.0, 1.0):  # nothing varies: count what is independent for certain
        return float(len(clusters))
    return float(runs) if variance == 0 else min(float(runs), p * (1 - p) / variance)


def proportion_interval(runs: Mapping[Any, Sequence[bool]], level: float = 0.95) -> Interval:
    """The share of true values with its interval, clustered by problem.

    Args:
        runs: for each problem, one truth value per run.
    """
    clusters = [list(cluster) for cluster in runs.values() if cluster]
    if not clusters:
        return Interval(math.nan, math.nan, math.nan)
    p = sum(map(sum, clusters)) / sum(map(len, clusters))
    return wilson(p, effective_size(clusters), level)


def share_interval(runs: Iterable[tuple[Hashable, bool]]) -> Interval:
    """The same of (problem, truth value) pairs, a run each, in any order."""
    clusters: dict[Hashable, list[bool]] = {}
    for problem, holds in runs:
        clusters.setdefault(problem, []).append(holds)
    return proportion_interval(clusters)


@lru_cache(maxsize=4)
def resamples(problems: int, count: int = RESAMPLES, seed: int = 0) -> FloatArray:
    """How often each problem counts, (1 + count, problems): once in the first row, the sample itself; in the others, as
    often as it is drawn in as many draws with replacement. Read-only."""
    drawn = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=count)
    counts = np.vstack([np.ones((1, problems)), drawn])
    counts.flags.writeable = False
    return counts


def percentile_interval(estimates: FloatArray, level: float = 0.95) -> Interval:
    """The first of the estimates, between order statistics of the others, so that infinite ones may be among them.

    Args:
        estimates: (1 + B,) of the sample and of its B resamples. NaN where there is no data.
    """
    if np.isnan(estimates).any():
        return Interval(math.nan, math.nan, math.nan)
    ordered = np.sort(estimates[1:])
    tail = round((1 - level) / 2 * len(ordered))
    return Interval(float(estimates[0]), float(ordered[tail]), float(ordered[-1 - tail]))


def budget_to_reach(targets: FloatArray, budgets: Sequence[int], accuracies: FloatArray) -> FloatArray:
    """The budget at which each curve reaches its target, (B,): linear in log2(budget) between the measured budgets, on
    the running maximum of the curve. 0 where the smallest budget reaches it; infinity where no measured one does.

    Args:
        targets: (B,) accuracies. budgets: K, ascending. accuracies: (B, K), one curve a row.
    """
    curves = np.maximum.accumulate(accuracies, axis=1)
    reached = curves >= targets[:, None]
    rows, first = np.arange(len(curves)), np.argmax(reached, axis=1)
    before = np.maximum(first - 1, 0)
    low, high = curves[rows, before], curves[rows, first]
    share = np.divide(targets - low, high - low, out=np.zeros(len(curves)), where=high > low)
    logs = np.log2(budgets)
    between = 2.0 ** (logs[before] + share * (logs[first] - logs[before]))
    return np.where(~reached.any(axis=1), np.inf, np.where(first == 0, 0.0, between))
