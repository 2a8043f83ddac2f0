"""How sure a measured accuracy is.

Runs of one problem with several seeds are not independent: problems are. The interval used throughout is Wilson's,
at the effective sample size of a cluster sample whose clusters are the problems,

    n_eff = p(1 − p) / v        v = Σ_i m_i² (p_i − p)² / (Σ_i m_i)²

with m_i runs of problem i, of which the share p_i is right, and p the share over all. With one run a problem n_eff is
the number of problems and the interval the plain Wilson interval; with more it lies between the number of problems
(seeds agree) and the number of runs (problems are alike). Deterministic, inside [0, 1], and of positive width also
where everything or nothing is right, where a bootstrap would claim certainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """A proportion and its confidence interval, all in [0, 1]; NaN without data."""

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


def proportion_interval(runs: Mapping[str, Sequence[bool]], level: float = 0.95) -> Interval:
    """The share of true values with its interval, clustered by problem.

    Args:
        runs: for each problem, one truth value per run.
    """
    clusters = [list(cluster) for cluster in runs.values() if cluster]
    if not clusters:
        return Interval(math.nan, math.nan, math.nan)
    p = sum(map(sum, clusters)) / sum(map(len, clusters))
    return wilson(p, effective_size(clusters), level)
