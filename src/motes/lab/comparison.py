"""Methods against each other on the same problems: paired differences, and budgets that reach the same accuracy.

With acc(m, n) the accuracy of method m at budget n:

    difference      acc(m, n) − acc(chief, n)                                    over the runs that both have
    scaling rate    b / n, where b is the budget at which m reaches acc(chief, n)

b is interpolated linearly in log2(budget) between measured budgets, on the running maximum of m's curve: a method is
taken at the best it has shown with no larger budget, which favours noisy curves, here those of the other methods. It is
never extrapolated: "≤" stands before the smallest measured budget that is enough already, ">" before the largest that
is not. Intervals: see `motes.lab.statistics`; resampled problems change both methods' curves together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from motes.lab.records import RunRecord
from motes.lab.statistics import FloatArray, Interval, budget_to_reach, percentile_interval, resamples

REFERENCE_BUDGETS = (4, 8, 16)
"""Budgets of the chief method whose accuracy the others are to reach."""

CellName = tuple[str, int]
"""A method's spec and a budget."""


def chief_of(methods: Sequence[str]) -> str:
    """The method that others are compared with: the first particle filter, or else the first of all."""
    return next((method for method in methods if method.startswith("pf")), methods[0])


def is_right(record: RunRecord) -> float:
    return float(record.outcome == "correct")


class PairedRuns:
    """The runs of an evaluation, cell by cell, to be compared problem by problem."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.cells: dict[CellName, dict[tuple[str, int], RunRecord]] = {}
        for record in records:
            self.cells.setdefault((record.method, record.budget), {})[record.problem_id, record.seed] = record

    def budgets(self, method: str) -> list[int]:
        """The budgets at which a method has runs, ascending."""
        return sorted(budget for name, budget in self.cells if name == method)

    def means(self, cells: Sequence[CellName], value: Callable[[RunRecord], float] = is_right) -> FloatArray:
        """The mean value of each cell, over the runs that all of them have (problem and seed): of the sample, then of
        samples of its problems drawn with replacement. (1 + B, C); NaN where they have no run in common."""
        runs = [self.cells.get(cell, {}) for cell in cells]
        shared = self._shared(cells)
        if not shared:
            return np.full((1, len(cells)), np.nan)
        index = {problem: i for i, problem in enumerate(dict.fromkeys(problem for problem, _ in shared))}
        of_problem = [index[problem] for problem, _ in shared]
        sums, sizes = np.zeros((len(index), len(cells))), np.zeros((len(index), 1))  # (P, C), (P, 1)
        np.add.at(sums, of_problem, [[value(run[key]) for run in runs] for key in shared])
        np.add.at(sizes, of_problem, 1.0)
        counts = resamples(len(index))
        return np.asarray((counts @ sums) / (counts @ sizes))

    def interval(self, estimates: FloatArray, cells: Sequence[CellName]) -> Interval:
        """The interval of what was computed, (1 + B,), from the `means` of these cells."""
        return percentile_interval(estimates, problems=len({problem for problem, _ in self._shared(cells)}))

    def _shared(self, cells: Sequence[CellName]) -> list[tuple[str, int]]:
        """The problems and seeds that all of these cells have runs of."""
        return sorted(set.intersection(*(set(self.cells.get(cell, {})) for cell in cells)))


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method less that of the chief one at `budget`, as a share: 0.01 is one percentage point.

    A method that is measured at budget 1 alone, as `greedy` is, is compared with the chief at each budget.
    """

    method: str
    chief: str
    budget: int
    value: Interval

    def __str__(self) -> str:
        return f"{points(self.value.value)} ({points(self.value.low)} to {points(self.value.high)})"

    def row(self) -> dict[str, Any]:
        return {"method": self.method, "chief": self.chief, "budget": self.budget, **ends(self.value, "difference")}


@dataclass(frozen=True)
class Rate:
    """How many times the chief's budget a method needs for the same accuracy.

    Attributes:
        budget: n, of the chief.
        value: budgets of the method over n. 0: not more than `smallest`/n; infinity: more than `largest`/n.
        smallest, largest: budgets at which the method was measured.
    """

    method: str
    chief: str
    budget: int
    value: Interval
    smallest: int
    largest: int

    def text(self, rate: float) -> str:
        if math.isnan(rate):  # the end of no interval
            return "–"
        if rate == 0:
            return f"≤ {self.smallest / self.budget:g}"
        return (
            f"> {self.largest / self.budget:g}" if rate == math.inf else f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"
        )

    def __str__(self) -> str:
        return f"{self.text(self.value.value)} ({self.text(self.value.low)} to {self.text(self.value.high)})"

    def row(self) -> dict[str, Any]:
        """As a flat row of the CSV file: ends that were not measured are written with their sign."""
        ends = {"rate": self.value.value, "rate_low": self.value.low, "rate_high": self.value.high}
        written = {name: self.text(end) if end in (0, math.inf) else round(end, 4) for name, end in ends.items()}
        return {"method": self.method, "chief": self.chief, "budget": self.budget, **written}


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−") if share == share else "–"


def differences(runs: PairedRuns, methods: Sequence[str], chief: str | None = None) -> list[Difference]:
    """Each method against the chief one of `methods`, at each budget that both were measured at."""
    chief = chief or chief_of(methods)
    found = []
    for method in methods:
        own = runs.budgets(method)
        for budget in runs.budgets(chief):
            cell = (method, 1 if own == [1] else budget)
            if method != chief and cell in runs.cells:
                pair = [cell, (chief, budget)]
                means = runs.means(pair)
                found.append(Difference(method, chief, budget, runs.interval(means[:, 0] - means[:, 1], pair)))
    return found


def rates(runs: PairedRuns, methods: Sequence[str], references: Sequence[int] = REFERENCE_BUDGETS) -> list[Rate]:
    """The scaling rate of each method with a curve (two budgets or more) against the chief one of `methods`."""
    chief = chief_of(methods)
    found = []
    for method in methods:
        budgets = runs.budgets(method)
        if method == chief or len(budgets) < 2:
            continue
        for reference in sorted(set(references) & set(runs.budgets(chief))):
            cells = [(chief, reference), *((method, budget) for budget in budgets)]
            means = runs.means(cells)
            if np.isnan(means).any():
                continue
            needed = budget_to_reach(means[:, 0], budgets, means[:, 1:])
            value = runs.interval(needed / reference, cells)
            found.append(Rate(method, chief, reference, value, budgets[0], budgets[-1]))
    return found


def pass_at(records: Sequence[RunRecord]) -> dict[int, Interval]:
    """The chance that any of k independent samples is right, for k = 1, 2, 4, … and n, of runs of n samples each:
    1 − C(n − c, k)/C(n, k), unbiased (Chen et al., arXiv 2107.03374, equation 1), c of n being right, mean over runs.

    Answers that could not be graded are not right; runs whose records do not tell, and failed ones, are left out.
    """
    records = [record for record in records if record.right]
    sizes = {len(record.right) for record in records}
    if len(sizes) != 1:
        return {}
    (n,) = sizes
    runs = PairedRuns(records)
    (cell,) = runs.cells

    def chance(record: RunRecord, k: int) -> float:
        wrong = n - sum(right is True for right in record.right)
        return 1 - math.comb(wrong, k) / math.comb(n, k)

    budgets = [2**i for i in range(n.bit_length()) if 2**i < n] + [n]
    return {k: runs.interval(runs.means([cell], partial(chance, k=k))[:, 0], [cell]) for k in budgets}


def ends(interval: Interval, name: str) -> dict[str, float]:
    """An interval as three fields of a flat row."""
    return {
        name: round(interval.value, 6),
        f"{name}_low": round(interval.low, 6),
        f"{name}_high": round(interval.high, 6),
    }
