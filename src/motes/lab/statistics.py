"""How sure a measured number is.

Runs of one problem with several seeds are not independent: problems are. The interval of an accuracy is Wilson's, at
the effective sample size of a cluster sample whose clusters are the problems (Korn and Graubard, "Confidence intervals
for proportions with small expected number of positive counts estimated from survey data", 1998),

    n_eff = p(1 − p) · n/(n − 1) / v        v = K/(K − 1) · Σ_i m_i² (p_i − p)² / n²
    n*    = min(n, n_eff) · (t_{n−1} / t_{K−1})²

with m_i runs of problem i, of which the share p_i is right, K problems, n = Σ_i m_i runs, p the share over all, and t_ν
the quantile of Student's distribution: v is known from K problems only. With one run a problem n* is the number of
problems and the interval the plain Wilson interval. Deterministic, inside [0, 1], and of positive width also where
everything or nothing is right, where a bootstrap would claim certainty. One problem says nothing about others: then
there is no interval.

What compares methods on the same problems has the percentile interval of a bootstrap over problems: problems are drawn
with replacement, each with all its runs of all methods, and the whole comparison is made again. It is seeded. A
bootstrap of K problems varies too little, by (K − 1)/K, and knows its variance from K problems only, so its ends are
those of the larger level Φ(√(K/(K − 1)) · t_{K−1}) (Hesterberg, "What teachers should know about the
bootstrap", 2015).
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
    """A number and its confidence interval.

    Attributes:
        value: NaN without data.
        low, high: NaN where there is no interval, as for one problem alone.
    """

    value: float
    low: float
    high: float

    @classmethod
    def none(cls, value: float = math.nan) -> Interval:
        """A number without an interval."""
        return cls(value, math.nan, math.nan)

    @property
    def is_known(self) -> bool:
        """Whether there is an interval around the number."""
        return not math.isnan(self.low)


@lru_cache(maxsize=1024)
def student_quantile(p: float, freedom: int) -> float:
    """The p-quantile, 0.5 ≤ p < 1, of Student's distribution with a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return high


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution function at t ≥ 0: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), and beyond a
    thousand degrees of freedom a normal distribution's at a transformed t (26.7.8), right to 1e-6."""
    if freedom > 1000:
        z = t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom))
        return NormalDist().cdf(z)
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = math.sin(theta) * (cosine if odd else 1.0)
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = 2 / math.pi * (theta + total) if odd else total
    return 0.5 + inside / 2


def wilson(p: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's interval of a proportion p out of n independent observations (n need not be whole)."""
    if n <= 0:
        return Interval.none()
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def effective_size(clusters: Sequence[Sequence[bool]], level: float = 0.95) -> float:
    """n* of the module's docstring; each of at least two clusters holds the runs of one problem, at least one."""
    problems, runs = len(clusters), sum(map(len, clusters))
    p = sum(map(sum, clusters)) / runs
    if problems == runs or p in (0.0, 1.0):  # where nothing varies, count what is independent for certain
        return float(problems)
    squares = sum((sum(cluster) - len(cluster) * p) ** 2 for cluster in clusters)
    variance = problems / (problems - 1) * squares / runs**2
    independent = min(float(runs), p * (1 - p) * runs / (runs - 1) / variance) if variance else float(runs)
    tail = 0.5 + level / 2
    return independent * (student_quantile(tail, runs - 1) / student_quantile(tail, problems - 1)) ** 2


def proportion_interval(runs: Mapping[Any, Sequence[bool]], level: float = 0.95) -> Interval:
    """The share of true values with its interval, clustered by problem; without an interval for one problem alone.

    Args:
        runs: for each problem, one truth value per run.
    """
    clusters = [list(cluster) for cluster in runs.values() if cluster]
    if not clusters:
        return Interval.none()
    p = sum(map(sum, clusters)) / sum(map(len, clusters))
    return Interval.none(p) if len(clusters) == 1 else wilson(p, effective_size(clusters, level), level)


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


def percentile_interval(estimates: FloatArray, level: float = 0.95, *, problems: int | None = None) -> Interval:
    """The first of the estimates, between order statistics of the others, so that infinite ones may be among them.

    Args:
        estimates: (1 + B,) of the sample and of its B resamples. NaN where there is no data.
        problems: K, that were drawn from; one alone has no interval. By default so many that the level stays as it is.
    """
    if np.isnan(estimates).any():
        return Interval.none()
    if problems == 1:
        return Interval.none(float(estimates[0]))
    ordered = np.sort(estimates[1:])
    outside = (1 - level) / 2
    if problems is not None:
        width = math.sqrt(problems / (problems - 1)) * student_quantile(1 - outside, problems - 1)
        outside = NormalDist().cdf(-width)
    tail = round(outside * len(ordered))
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
