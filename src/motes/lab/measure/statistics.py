"""Confidence intervals of measured numbers.

Runs of one problem with several seeds are not independent; problems are. The interval of an accuracy is Wilson's, at
the effective sample size of a cluster sample whose clusters are the problems (Korn and Graubard, "Confidence intervals
for proportions with small expected number of positive counts estimated from survey data", 1998),

    n_eff = p(1 − p) · n/(n − 1) / v        v = K/(K − 1) · Σ_i m_i² (p_i − p)² / n²
    n*    = min(n, n_eff) · (t_{n−1} / t_{K−1})²

with K problems, m_i runs of problem i, of which the share p_i is right, n = Σ_i m_i runs in all, p the share over all
runs, and t_ν the quantile of Student's distribution, because v is estimated from only K problems. With one run for each
problem, n* is the number of problems and the interval is the plain Wilson interval. The interval is deterministic, lies
inside [0, 1], and has a positive width even if all runs or none are right, where a bootstrap would claim certainty. For
a single problem, which says nothing about others, there is no interval.

Other values in [0, 1] that are estimated from problems, such as pass@k and AUROC, have the same interval, at the
effective sample size p(1 − p)/v of their own variance v (`share_of_residuals`).

A mean of paired differences d_i ∈ [−1, 1] over K problems has Student's interval, with K − 1 degrees of freedom and the
standard error that two additional problems would give, on which each side is better by as much as on any problem:

    a  = max |d_i|, 1 where all are 0
    s² = (Σ d_i² + 2a² − (Σ d_i)²/(K + 2)) / (K + 1)          standard error: s/√(K + 2)

(after Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
data", 2012). So agreement on a few problems does not count as certainty. Measured coverage of 95 % intervals, 40,000
trials each of nine combinations of 1, 3 and 8 seeds, true differences, and how often the sides agree: 0.98 to 1.00 with
10 problems, 0.957 to 1.00 with 25 (where Student's interval alone falls to 0.43, and the percentile interval of a
bootstrap as low), 0.955 to 1.00 with 50, 0.951 to 1.00 with 100, 0.950 to 0.963 with 500.

A number that is not a mean, such as a scaling rate, has the percentile interval of a bootstrap over problems: problems
are sampled with replacement, each with all its runs of all methods, and the whole comparison is repeated. The bootstrap
is seeded, and runs in blocks, so that its memory does not grow with the number of problems. A bootstrap of K problems
varies too little, by (K − 1)/K, and estimates its variance from only K problems, so its ends are those of the larger
level Φ(√(K/(K − 1)) · t_{K−1}) (Hesterberg, "What teachers should know about the bootstrap", 2015).

In a table of C comparisons, one interval in twenty misses by chance. Simultaneous intervals contain all their true
values at once in 95 % of tables: each has the larger level at which the maximum over the table stays inside, for means
by the correlation of the differences (`joint_level`; Hothorn, Bretz and Westfall, "Simultaneous inference in general
parametric models", 2008), for the bootstrap by its ranks (`joint_rank_level`; Mandel and Betensky, "Simultaneous
confidence intervals based on the percentile bootstrap approach", 2008).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RESAMPLES = 4000
"""Number of bootstrap samples: enough to know the ends of a 95 % interval to a tenth of its width."""
BLOCK = 2**20
"""About as many numbers of a bootstrap are in memory at once: 8 MB, and a few times that while they are sampled."""
TABLES = 10_000
"""Number of simulated tables that give the level of simultaneous intervals: its 95 % are then precise to 0.2 %."""


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval.

    Attributes:
        value: NaN without data.
        low: the lower end; NaN if there is no interval, as for a single problem.
        high: the upper end; NaN likewise.
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
    """The p-quantile of Student's distribution, 0.5 ≤ p < 1, with a whole number of degrees of freedom."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < p:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < p else (low, middle)
    return high


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution function at t ≥ 0: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4); beyond a
    thousand degrees of freedom, the normal distribution function at a transformed t (26.7.8), exact to 1e-6."""
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
    """Wilson's interval of a proportion p of n independent observations (n need not be whole)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def numbered(names: Iterable[Hashable]) -> IntArray:
    """(n,) the names as numbers from 0, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def proportion_interval(runs: Mapping[Any, Sequence[float]], level: float = 0.95) -> Interval:
    """The share of true values with its interval, clustered by problem; a single problem has no interval.

    Args:
        runs: for each problem, one value for each run: whether it is right, or the share of it that is.
    """
    return share_interval(((problem, value) for problem, values in runs.items() for value in values), level)


def share_interval(runs: Iterable[tuple[Hashable, float]], level: float = 0.95) -> Interval:
    """Like `proportion_interval`, for runs as (problem, value) pairs, in any order."""
    pairs = list(runs)
    if not pairs:
        return Interval.none()
    problems, values = numbered(problem for problem, _ in pairs), np.array([value for _, value in pairs], dtype=float)
    p, num_problems = float(values.mean()), int(problems.max()) + 1
    if 1 < num_problems == len(values):
        return wilson(p, num_problems, level)
    residuals = (values - p) / len(values)
    return share_of_residuals(p, residuals, problems, independent=num_problems, values=len(values), level=level)


def share_of_residuals(
    p: float, residuals: FloatArray, problems: IntArray, *, independent: int, values: int, level: float = 0.95
) -> Interval:
    """The interval of a share, with the effective size n* of the module's docstring. Its width is never zero.

    Args:
        p: the share.
        residuals, problems: by which its variance v is estimated, see `variance_between`.
        independent: number of certainly independent observations, used if p is 0 or 1, where variance says nothing.
        values: number of all observations, an upper bound of the effective sample size.
    """
    variance, num_problems = variance_between(residuals, problems)
    if num_problems < 2:
        return Interval.none(p)
    if p in (0.0, 1.0):
        return wilson(p, independent, level)
    size = min(float(values), p * (1 - p) * values / (values - 1) / variance) if variance > 0 else float(values)
    tail = 0.5 + level / 2
    quantiles = student_quantile(tail, values - 1) / student_quantile(tail, num_problems - 1)
    return wilson(p, size * quantiles**2, level)


def student_interval(value: float, residuals: FloatArray, problems: IntArray) -> Interval:
    """A number with Student's 95 % interval over problems, see `variance_between`. There is no interval if only one
    problem contributes, or if they do not differ."""
    variance, num_problems = variance_between(residuals, problems)
    if num_problems < 2 or not variance:
        return Interval.none(value)
    half = student_quantile(0.975, num_problems - 1) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def variance_between(residuals: FloatArray, problems: IntArray) -> tuple[float, int]:
    """The variance of an estimate between problems, K/(K − 1) · Σ_i (Σ residuals of problem i)², and K.

    Args:
        residuals: (n,) by how much each observation moves the estimate away from its mean, to first order.
        problems: (n,) the number of each observation's problem, from 0; K of these numbers occur.
    """
    num_problems = len(np.unique(problems))
    sums = np.bincount(problems, residuals)
    return float((sums**2).sum()) * num_problems / max(1, num_problems - 1), num_problems


def paired_intervals(differences: FloatArray, level: float = 0.95) -> list[Interval]:
    """The mean of each column with its own interval.

    Args:
        differences: (K, C) in [−1, 1], for each problem and comparison; NaN if a comparison lacks the problem.
    """
    sizes, sums, extra = _column_sums(differences)
    squares = np.nansum(differences**2, axis=0) + extra - sums**2 / (sizes + 2)
    quantiles = [student_quantile(0.5 + level / 2, size - 1) if size > 1 else math.nan for size in sizes.tolist()]
    halves = np.sqrt(squares / (sizes + 1) / (sizes + 2)) * quantiles
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), math.nan)
    low, high = np.maximum(-1.0, means - halves), np.minimum(1.0, means + halves)
    return list(map(Interval, means.tolist(), low.tolist(), high.tolist()))


def simultaneous_intervals(differences: FloatArray) -> list[Interval]:
    """The mean of each column with an interval that is simultaneous over all columns; see `paired_intervals`."""
    sizes, sums, extra = _column_sums(differences)
    measured = sizes > 1
    centred = np.nan_to_num(differences - sums / np.maximum(sizes, 1))[:, measured]
    products = centred.T @ centred + np.diag(extra[measured])  # the additional problems are uncorrelated
    spread = np.sqrt(products.diagonal())
    return paired_intervals(differences, joint_level(products / np.outer(spread, spread)))


def _column_sums(differences: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """For each column: the number of differences, their sum, and 2a², the squares of the two additional problems."""
    largest = np.abs(np.nan_to_num(differences)).max(axis=0, initial=0.0)
    sizes = (~np.isnan(differences)).sum(axis=0)
    return sizes, np.nansum(differences, axis=0), 2 * np.where(largest > 0, largest, 1.0) ** 2


def joint_level(correlation: FloatArray, level: float = 0.95) -> float:
    """The level that each of C two-sided intervals needs so that all of them hold at once at `level`, if their errors
    are normal with this correlation, (C, C); simulated, with a fixed seed."""
    if len(correlation) < 2:
        return level
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    errors = np.random.default_rng(0).standard_normal((TABLES, len(correlation))) @ root.T
    bound = float(np.quantile(np.abs(errors).max(axis=1), level))
    return max(level, 2 * NormalDist().cdf(bound) - 1)


def joint_rank_level(draws: FloatArray, level: float = 0.95) -> float:
    """The level that the percentile intervals of all columns need so that a share `level` of the rows lies inside all.

    Args:
        draws: (B, C) B resamples of C estimates; some may be infinite.
    """
    count, columns = draws.shape
    if columns < 2:
        return level
    outermost = np.zeros(count)
    for column in draws.T:
        ordered = np.sort(column)
        above, below = np.searchsorted(ordered, column, "left"), count - np.searchsorted(ordered, column, "right")
        np.maximum(outermost, np.maximum(above, below) / count, out=outermost)  # ties count as far inside as possible
    inside = float(np.quantile(outermost, level))
    return max(level, 2 * inside - 1)


def resamples(problems: int, count: int = RESAMPLES, *, extra: int = 0) -> Iterator[FloatArray]:
    """How often each problem counts, (1 + count, problems), in blocks of rows: once in the first row, the sample
    itself; in each other row, as often as it occurs in a bootstrap sample of `problems` problems.

    Args:
        extra: number of further columns, for problems that occur in bootstrap samples but not in the sample.
    """
    rng = np.random.default_rng(0)
    columns = problems + extra
    yield np.concatenate([np.ones((1, problems)), np.zeros((1, extra))], axis=1)
    rows = max(1, BLOCK // columns)
    for done in range(0, count, rows):
        size = min(rows, count - done)
        samples = rng.integers(columns, size=(size, problems)) + columns * np.arange(size)[:, None]
        yield np.bincount(samples.ravel(), minlength=size * columns).reshape(size, columns).astype(np.float64)


def percentile_interval(estimates: FloatArray, level: float = 0.95, *, problems: int | None = None) -> Interval:
    """The first estimate, with order statistics of the others as its interval, so that estimates may be infinite.

    Args:
        estimates: (1 + B,) of the sample and of its B resamples; NaN without data.
        problems: K, the number of problems in the sample, which widens the interval (see the module's docstring); a
            single one has no interval. None: the level stays as it is.
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


def budget_to_reach(targets: FloatArray, budgets: Sequence[float], accuracies: FloatArray) -> FloatArray:
    """(B,) the budget at which each curve reaches its target: linear in log2(budget) between the measured budgets, on
    the running maximum of the curve; 0 if the smallest budget reaches the target, infinity if no measured one does.

    Args:
        targets: (B,) accuracies.
        budgets: K budgets, or their costs, ascending.
        accuracies: (B, K) one curve in each row.
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
