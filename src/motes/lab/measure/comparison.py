"""Compare methods on the same problems: paired differences, and budgets that reach the same accuracy.

acc(m, n) is the accuracy of method m at budget n: the mean, over problems, of the share of a problem's runs (of all
seeds) that is right.

    difference      acc(m, n) − acc(chief, n)                                    over the problems that both have
    scaling rate    b / n, where b is the budget at which m reaches acc(chief, n)

b is interpolated linearly in log2(budget) between measured budgets, on the running maximum of m's curve: at each budget
a method counts with its best accuracy up to there, which favours noisy curves, here those of the other methods. b is
never extrapolated: "≤" marks the smallest measured budget if that is enough already, ">" the largest if it is not.

Intervals (`motes.lab.measure.statistics`) are over problems and seeds: the variation among the runs of one problem is
contained in the mean of its runs, and so in the variation between problems. If there are several comparisons, each has
its own interval and one that is simultaneous over all. A rate is resampled with two additional problems, as the spread
of a difference has two: on each, one side is better at every budget, by as much as on any problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from motes.lab.measure.statistics import (
    FloatArray,
    Interval,
    budget_to_reach,
    joint_rank_level,
    paired_intervals,
    percentile_interval,
    resamples,
    share_interval,
    simultaneous_intervals,
)
from motes.lab.run.method_spec import draws_one
from motes.lab.run.records import RunRecord

REFERENCE_BUDGETS = (4, 8, 16)
"""Budgets of the chief method at which the others have to reach its accuracy."""

CellName = tuple[str, int]
"""A method's spec and a budget."""


def chief_of(methods: Sequence[str]) -> str:
    """The method with which others are compared: the first one with the id `pf`, whatever its settings. If there is
    none, the first method."""
    return next((method for method in methods if method.partition(":")[0] == "pf"), methods[0])


def is_right(record: RunRecord) -> float:
    return float(record.outcome == "correct")


class PairedRuns:
    """The runs of evaluations by cell and problem, so that cells can be compared on the same problems."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.cells: dict[CellName, dict[str, list[RunRecord]]] = {}
        for record in {record.key: record for record in records}.values():
            cell = self.cells.setdefault((record.method, record.budget), {})
            cell.setdefault(record.problem_id, []).append(record)

    def budgets(self, method: str) -> list[int]:
        """The budgets at which a method has runs, ascending."""
        return sorted(budget for name, budget in self.cells if name == method)

    def problems(self, cells: Sequence[CellName]) -> tuple[str, ...]:
        """The problems of which all these cells have runs."""
        return tuple(sorted(set.intersection(*(set(self.cells.get(cell, {})) for cell in cells))))

    def values(
        self, cells: Sequence[CellName], problems: Sequence[str], value: Callable[[RunRecord], float] = is_right
    ) -> FloatArray:
        """(P, C) the mean value of each problem's runs in each cell; NaN if a cell has no run of the problem."""
        values = np.full((len(problems), len(cells)), math.nan)
        for row, problem in enumerate(problems):
            for column, cell in enumerate(cells):
                if runs := self.cells.get(cell, {}).get(problem):
                    values[row, column] = sum(map(value, runs)) / len(runs)
        return values

    def means(self, cells: Sequence[CellName], value: Callable[[RunRecord], float] = is_right) -> FloatArray:
        """(1 + B, C) the mean value of each cell over their common problems: first of the sample, then of B bootstrap
        samples of these problems. NaN if the cells have no problem in common."""
        problems = self.problems(cells)
        if not problems:
            return np.full((1, len(cells)), np.nan)
        values = self.values(cells, problems, value)
        return np.concatenate([counts @ values for counts in resamples(len(problems))]) / len(problems)

    def interval(self, estimates: FloatArray, cells: Sequence[CellName]) -> Interval:
        """The interval of estimates, (1 + B,), that were computed from the `means` of these cells."""
        return percentile_interval(estimates, problems=len(self.problems(cells)))


@dataclass(frozen=True)
class Difference:
    """The accuracy of a method less that of the chief method at `budget`, as a share: 0.01 is one percentage point.

    A method that draws one trajectory whatever the budget, as `greedy` does, is compared with the chief at each budget.

    Attributes:
        problems: number of problems that both have.
        value: the difference with its own 95 % interval.
        simultaneous: the difference with the interval that is simultaneous over all comparisons made with it.
    """

    method: str
    chief: str
    budget: int
    problems: int
    value: Interval
    simultaneous: Interval

    def __str__(self) -> str:
        """With the simultaneous interval, because readers of a table compare several rows."""
        low, high = self.simultaneous.low, self.simultaneous.high
        return f"{points(self.value.value)} ({points(low)} to {points(high)})"

    def row(self) -> dict[str, Any]:
        """A flat row of the CSV file."""
        simultaneous = ends(self.simultaneous, "simultaneous")
        del simultaneous["simultaneous"]
        names = {"method": self.method, "chief": self.chief, "budget": self.budget, "problems": self.problems}
        return {**names, **ends(self.value, "difference"), **simultaneous}


@dataclass(frozen=True)
class Rate:
    """How many times the chief's budget, or cost, a method needs for the same accuracy.

    Attributes:
        budget: n, the chief's budget.
        value: the method's budget over n, or its cost over the chief's at n, with its own 95 % interval. 0: at most
            `smallest`; infinity: more than `largest`.
        simultaneous: the same with the interval that is simultaneous over all rates computed with it.
        smallest: the rate of the smallest budget at which the method was measured.
        largest: the rate of the largest one.
    """

    method: str
    chief: str
    budget: int
    value: Interval
    simultaneous: Interval
    smallest: float
    largest: float

    def text(self, rate: float) -> str:
        if math.isnan(rate):  # the end of a missing interval
            return "–"
        if rate == 0:
            return f"≤ {self.smallest:.3g}"
        if rate == math.inf:
            return f"> {self.largest:.3g}"
        return f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"

    def with_own_interval(self) -> str:
        value = self.value
        return f"{self.text(value.value)} ({self.text(value.low)} – {self.text(value.high)})"

    def __str__(self) -> str:
        """With the simultaneous interval, because readers of a table compare several rows."""
        low, high = self.simultaneous.low, self.simultaneous.high
        return f"{self.text(self.value.value)} ({self.text(low)} to {self.text(high)})"

    def row(self) -> dict[str, Any]:
        """A flat row of the CSV file. Rates beyond the measured ones are written with "≤" or ">"."""
        numbers = {"rate": self.value.value, "rate_low": self.value.low, "rate_high": self.value.high}
        numbers |= {"simultaneous_low": self.simultaneous.low, "simultaneous_high": self.simultaneous.high}
        fields = {name: self.text(rate) if rate in (0, math.inf) else round(rate, 4) for name, rate in numbers.items()}
        return {"method": self.method, "chief": self.chief, "budget": self.budget, **fields}


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−") if share == share else "–"


def differences(runs: PairedRuns, methods: Sequence[str], chief: str | None = None) -> list[Difference]:
    """The difference of each method to the chief one of `methods`, at each budget at which both were measured."""
    chief = chief or chief_of(methods)
    pairs: dict[tuple[str, int], tuple[CellName, CellName]] = {}
    for method in methods:
        for budget in runs.budgets(chief):
            cell = (method, 1 if draws_one(method) else budget)
            if method != chief and cell in runs.cells:
                pairs[method, budget] = (cell, (chief, budget))
    results = compare_cells(runs, list(pairs.values()))
    return [Difference(method, chief, budget, *result) for (method, budget), result in zip(pairs, results, strict=True)]


def compare_cells(runs: PairedRuns, pairs: Sequence[tuple[CellName, CellName]]) -> list[tuple[int, Interval, Interval]]:
    """For each pair, the accuracy of the first cell less that of the second, over their common problems: the number of
    these problems, the difference with its own interval, and with the interval that is simultaneous over all pairs."""
    if not pairs:
        return []
    cells = list(dict.fromkeys(cell for pair in pairs for cell in pair))
    problems = sorted(set().union(*(runs.cells.get(cell, {}) for cell in cells)))
    values = runs.values(cells, problems)
    first, second = ([cells.index(pair[i]) for pair in pairs] for i in (0, 1))
    columns = values[:, first] - values[:, second]
    sizes = (~np.isnan(columns)).sum(axis=0).tolist()
    return list(zip(sizes, paired_intervals(columns), simultaneous_intervals(columns), strict=True))


def rates(
    runs: PairedRuns,
    methods: Sequence[str],
    references: Sequence[int] = REFERENCE_BUDGETS,
    chief: str | None = None,
    costs: Mapping[CellName, float] | None = None,
) -> list[Rate]:
    """The scaling rate of each method with a curve (two budgets or more) against the chief one of `methods`.

    Args:
        costs: the cost of a run of each method at each budget, growing with the budget. Rates are then those of costs,
            interpolated between the costs of the measured budgets, which count as known exactly.
    """
    chief = chief or chief_of(methods)
    samples: dict[tuple[str, ...], _Samples] = {}  # comparisons over the same problems share their bootstrap samples
    compared: list[tuple[str, int, int, list[float], FloatArray]] = []  # method, n, number of problems, costs, rates
    for method in methods:
        curve = [(method, budget) for budget in runs.budgets(method)]
        if method == chief or len(curve) < 2:
            continue
        for n in sorted(set(references) & set(runs.budgets(chief))):
            target = (chief, n)
            if problems := runs.problems([target, *curve]):
                if problems not in samples:
                    samples[problems] = _Samples(runs, problems)
                relative = [cell[1] / n if costs is None else costs[cell] / costs[target] for cell in curve]
                estimates = samples[problems].rates(target, curve, relative)
                compared.append((method, n, len(problems), relative, estimates))
    several = [estimates[1:] for _, _, num_problems, _, estimates in compared if num_problems > 1]
    joint = joint_rank_level(np.stack(several, axis=1)) if several else 0.95
    results = []
    for method, n, num_problems, relative, estimates in compared:
        own, simultaneous = (percentile_interval(estimates, level, problems=num_problems) for level in (0.95, joint))
        results.append(Rate(method, chief, n, own, simultaneous, relative[0], relative[-1]))
    return results


class _Samples:
    """Bootstrap samples of some problems and of two additional ones (see the module's docstring)."""

    def __init__(self, runs: PairedRuns, problems: Sequence[str]) -> None:
        self.cells = [cell for cell, of_cell in runs.cells.items() if of_cell.keys() >= set(problems)]
        self.values = runs.values(self.cells, problems)  # (K, C)
        blocks = [(counts[:, :-2] @ self.values, counts[:, -2:].copy()) for counts in resamples(len(problems), extra=2)]
        # (1 + B, C) sums over problems; (1 + B, 2) how often each of the two additional ones was sampled
        self.sums, self.extra = (np.concatenate(parts) for parts in zip(*blocks, strict=True))

    def rates(self, target: CellName, curve: Sequence[CellName], costs: Sequence[float]) -> FloatArray:
        """(1 + B,) the cost at which the curve reaches the target, for the sample and for its bootstrap samples."""
        reference, columns = self.cells.index(target), [self.cells.index(cell) for cell in curve]
        gap = float(np.abs(self.values[:, columns] - self.values[:, [reference]]).max()) or 1.0
        ahead, behind = (1 + gap) / 2, (1 - gap) / 2
        targets = self.sums[:, reference] + self.extra @ [ahead, behind]
        accuracies = self.sums[:, columns] + (self.extra @ [behind, ahead])[:, None]
        return budget_to_reach(targets.round(9), costs, accuracies.round(9))  # rounded, so that equal sums are equal


def majority_share(record: RunRecord) -> float | None:
    """The chance that the most frequent answer of a run is right; if several are equally frequent, that one of them,
    sampled at random, is right. None if the record is too old to tell. Ungraded answers count as not right."""
    stated = [group for group in record.groups if group is not None]
    if not stated:
        return 0.0 if record.groups or not record.posterior else None
    most = max(map(stated.count, stated))
    most_frequent = [group for group in dict.fromkeys(stated) if stated.count(group) == most]
    return sum(record.right[record.groups.index(group)] is True for group in most_frequent) / len(most_frequent)


def pass_at(records: Sequence[RunRecord]) -> dict[int, Interval]:
    """pass@k: the chance that any of k independent samples is right, for k = 1, 2, 4, … and n. From runs of n samples,
    c of them right, it is the mean of 1 − C(n − c, k)/C(n, k), unbiased (Chen et al., arXiv 2107.03374, equation 1).

    n is the budget. Missing samples (all of a failed run) and answers that could not be graded count as not right. Runs
    whose records are too old to tell are left out. The interval is that of a share (`motes.lab.measure.statistics`): n
    samples contain n/k independent sets of k.

    Args:
        records: of one cell.
    """
    graded = [record for record in records if record.right or record.outcome == "failed"]
    if not any(record.right for record in graded):
        return {}
    n = max(max(record.budget, len(record.right)) for record in graded)

    def chance(record: RunRecord, k: int) -> float:
        wrong = n - sum(right is True for right in record.right)
        return 1 - math.comb(wrong, k) / math.comb(n, k)

    shares = {}
    for k in [2**i for i in range(n.bit_length()) if 2**i < n] + [n]:
        chances = [(record.problem_id, chance(record, k)) for record in graded]
        shares[k] = share_interval(each for each in chances for _ in range(n // k))
    return shares


def ends(interval: Interval, name: str) -> dict[str, float]:
    """An interval as three fields of a flat row."""
    return {
        name: round(interval.value, 6),
        f"{name}_low": round(interval.low, 6),
        f"{name}_high": round(interval.high, 6),
    }
