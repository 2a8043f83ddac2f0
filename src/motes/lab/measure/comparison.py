"""Methods against each other on the same problems: paired differences, and budgets that reach the same accuracy.

With acc(m, n) the accuracy of method m at budget n, the mean over problems of the share of a problem's runs, of all
seeds, that is right:

    difference      acc(m, n) − acc(chief, n)                                    over the problems that both have
    scaling rate    b / n, where b is the budget at which m reaches acc(chief, n)

b is interpolated linearly in log2(budget) between measured budgets, on the running maximum of m's curve: a method is
taken at the best it has shown with no larger budget, which favours noisy curves, here those of the other methods. It is
never extrapolated: "≤" stands before the smallest measured budget that is enough already, ">" before the largest that
is not.

Intervals (`motes.lab.measure.statistics`) are over problems and seeds: the variation among the runs of one problem is
contained in the mean of its runs, and so in the variation between problems. Where there are several comparisons, each
has its own interval and one that is simultaneous over all. A rate is resampled with two more problems, as a difference
has two more in its spread: on each, one side is better at every budget, by as much as on any problem.
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
"""Budgets of the chief method whose accuracy the others are to reach."""

CellName = tuple[str, int]
"""A method's spec and a budget."""


def chief_of(methods: Sequence[str]) -> str:
    """The method that others are compared with: the first whose id is `pf`, whatever its settings, or else the first
    of all."""
    return next((method for method in methods if method.partition(":")[0] == "pf"), methods[0])


def is_right(record: RunRecord) -> float:
    return float(record.outcome == "correct")


class PairedRuns:
    """The runs of evaluations, cell by cell, to be compared problem by problem."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.cells: dict[CellName, dict[str, list[RunRecord]]] = {}
        for record in {record.key: record for record in records}.values():
            cell = self.cells.setdefault((record.method, record.budget), {})
            cell.setdefault(record.problem_id, []).append(record)

    def budgets(self, method: str) -> list[int]:
        """The budgets at which a method has runs, ascending."""
        return sorted(budget for name, budget in self.cells if name == method)

    def problems(self, cells: Sequence[CellName]) -> tuple[str, ...]:
        """The problems that all of these cells have runs of."""
        return tuple(sorted(set.intersection(*(set(self.cells.get(cell, {})) for cell in cells))))

    def values(
        self, cells: Sequence[CellName], problems: Sequence[str], value: Callable[[RunRecord], float] = is_right
    ) -> FloatArray:
        """The mean value of each problem's runs in each cell, (P, C); NaN where a cell has none of it."""
        return np.array(
            [
                [_mean([value(run) for run in self.cells.get(cell, {}).get(problem, ())]) for cell in cells]
                for problem in problems
            ],
            dtype=np.float64,
        ).reshape(len(problems), len(cells))

    def means(self, cells: Sequence[CellName], value: Callable[[RunRecord], float] = is_right) -> FloatArray:
        """The mean value of each cell, over the problems that all of them have: of the sample, then of samples of its
        problems drawn with replacement. (1 + B, C); NaN where they have no problem in common."""
        problems = self.problems(cells)
        if not problems:
            return np.full((1, len(cells)), np.nan)
        values = self.values(cells, problems, value)
        return np.concatenate([counts @ values for counts in resamples(len(problems))]) / len(problems)

    def interval(self, estimates: FloatArray, cells: Sequence[CellName]) -> Interval:
        """The interval of what was computed, (1 + B,), from the `means` of these cells."""
        return percentile_interval(estimates, problems=len(self.problems(cells)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Difference:
    """Accuracy of a method less that of the chief one at `budget`, as a share: 0.01 is one percentage point.

    A method that draws one trajectory whatever the budget, as `greedy` does, is compared with the chief at each.

    Attributes:
        problems: that both have.
        value: with its own 95 % interval.
        simultaneous: with the interval that holds together with those of all comparisons made with it.
    """

    method: str
    chief: str
    budget: int
    problems: int
    value: Interval
    simultaneous: Interval

    def __str__(self) -> str:
        """With the simultaneous interval: what a table of several is read for."""
        low, high = self.simultaneous.low, self.simultaneous.high
        return f"{points(self.value.value)} ({points(low)} to {points(high)})"

    def row(self) -> dict[str, Any]:
        """As a flat row of the CSV file."""
        together = ends(self.simultaneous, "simultaneous")
        del together["simultaneous"]
        names = {"method": self.method, "chief": self.chief, "budget": self.budget, "problems": self.problems}
        return {**names, **ends(self.value, "difference"), **together}


@dataclass(frozen=True)
class Rate:
    """How many times the chief's budget, or cost, a method needs for the same accuracy.

    Attributes:
        budget: n, of the chief.
        value: budget of the method over n, or its cost over the chief's at n, with its own 95 % interval. 0: not more
            than `smallest`; infinity: more than `largest`.
        simultaneous: with the interval that holds together with those of all rates found with it.
        smallest, largest: rates of the smallest and of the largest budget at which the method was measured.
    """

    method: str
    chief: str
    budget: int
    value: Interval
    simultaneous: Interval
    smallest: float
    largest: float

    def text(self, rate: float) -> str:
        if math.isnan(rate):  # the end of no interval
            return "–"
        if rate == 0:
            return f"≤ {self.smallest:.3g}"
        return f"> {self.largest:.3g}" if rate == math.inf else f"{rate:.2g}" if rate < 10 else f"{rate:.0f}"

    def with_own_interval(self) -> str:
        value = self.value
        return f"{self.text(value.value)} ({self.text(value.low)} – {self.text(value.high)})"

    def __str__(self) -> str:
        """With the simultaneous interval: what a table of several is read for."""
        low, high = self.simultaneous.low, self.simultaneous.high
        return f"{self.text(self.value.value)} ({self.text(low)} to {self.text(high)})"

    def row(self) -> dict[str, Any]:
        """As a flat row of the CSV file: ends that were not measured are written with their sign."""
        ends = {"rate": self.value.value, "rate_low": self.value.low, "rate_high": self.value.high}
        ends |= {"simultaneous_low": self.simultaneous.low, "simultaneous_high": self.simultaneous.high}
        written = {name: self.text(end) if end in (0, math.inf) else round(end, 4) for name, end in ends.items()}
        return {"method": self.method, "chief": self.chief, "budget": self.budget, **written}


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−") if share == share else "–"


def differences(runs: PairedRuns, methods: Sequence[str], chief: str | None = None) -> list[Difference]:
    """Each method against the chief one of `methods`, at each budget that both were measured at."""
    chief = chief or chief_of(methods)
    compared: list[tuple[str, int, CellName, CellName]] = []
    for method in methods:
        for budget in runs.budgets(chief):
            cell = (method, 1 if draws_one(method) else budget)
            if method != chief and cell in runs.cells:
                compared.append((method, budget, cell, (chief, budget)))
    found = compare_cells(runs, [(cell, reference) for *_, cell, reference in compared])
    return [
        Difference(method, chief, budget, *numbers)
        for (method, budget, *_), numbers in zip(compared, found, strict=True)
    ]


def compare_cells(runs: PairedRuns, pairs: Sequence[tuple[CellName, CellName]]) -> list[tuple[int, Interval, Interval]]:
    """The accuracy of the first cell of each pair less that of the second, over the problems that both have: how many
    those are, the difference with its own interval, and with the one that is simultaneous over all pairs."""
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
        costs: what a run of each method at each budget costs, growing with the budget; then rates are those of costs,
            interpolated between the costs of the budgets measured, which are taken as known.
    """
    chief = chief or chief_of(methods)
    compared: list[tuple[str, int, list[int], tuple[str, ...]]] = []
    for method in methods:
        budgets = runs.budgets(method)
        if method == chief or len(budgets) < 2:
            continue
        for reference in sorted(set(references) & set(runs.budgets(chief))):
            problems = runs.problems([(chief, reference), *((method, budget) for budget in budgets)])
            if problems:
                compared.append((method, reference, budgets, problems))
    prices = {cell: cell[1] if costs is None else costs[cell] for cell in runs.cells}
    estimates: list[FloatArray] = [np.empty(0)] * len(compared)
    for problems in {problems for *_, problems in compared}:
        places = [i for i, (*_, those) in enumerate(compared) if those == problems]
        asked = [compared[i][:3] for i in places]
        for i, drawn in zip(places, _resampled_rates(runs, chief, asked, problems, prices), strict=True):
            estimates[i] = drawn
    several = [estimates[i][1:] for i, (*_, problems) in enumerate(compared) if len(problems) > 1]
    level = joint_rank_level(np.stack(several, axis=1)) if several else 0.95
    found = []
    for (method, reference, budgets, problems), drawn in zip(compared, estimates, strict=True):
        own, together = (percentile_interval(drawn, at, problems=len(problems)) for at in (0.95, level))
        least, most = (prices[method, budget] / prices[chief, reference] for budget in (budgets[0], budgets[-1]))
        found.append(Rate(method, chief, reference, own, together, least, most))
    return found


def _resampled_rates(
    runs: PairedRuns,
    chief: str,
    asked: Sequence[tuple[str, int, Sequence[int]]],
    problems: Sequence[str],
    prices: Mapping[CellName, float],
) -> list[FloatArray]:
    """Rates of methods, each at the chief's budget and with budgets of its own: of the sample, and of samples of its
    problems and the two further ones of the module's docstring. (1 + B,) each."""
    cells = [cell for method, n, budgets in asked for cell in [(chief, n), *((method, budget) for budget in budgets)]]
    cells = list(dict.fromkeys(cells))
    values = runs.values(cells, problems)  # (K, C)
    blocks = [
        (counts[:, :-2] @ values, counts[:, -2:].copy()) for counts in resamples(len(problems), extra=2)
    ]  # sums over problems, and how often each of the two was drawn
    sums, further = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    found = []
    for method, n, budgets in asked:
        target, curve = cells.index((chief, n)), [cells.index((method, budget)) for budget in budgets]
        gap = float(np.abs(values[:, curve] - values[:, [target]]).max()) or 1.0
        ahead, behind = (1 + gap) / 2, (1 - gap) / 2
        targets = sums[:, target] + further @ [ahead, behind]
        curves = sums[:, curve] + (further @ [behind, ahead])[:, None]
        paid = [prices[method, budget] for budget in budgets]
        reached = budget_to_reach(targets.round(9), paid, curves.round(9))  # equal sums are equal
        found.append(reached / prices[chief, n])
    return found


def majority_share(record: RunRecord) -> float | None:
    """The chance that the most frequent answer of a run is right, where one of the equally frequent is drawn: exact.
    None where the record does not tell. What the grader could not say counts as not right."""
    given = [group for group in record.groups if group is not None]
    if not given:
        return 0.0 if record.groups or not record.posterior else None
    most = max(map(given.count, given))
    first = [group for group in dict.fromkeys(given) if given.count(group) == most]
    return sum(record.right[record.groups.index(group)] is True for group in first) / len(first)


def pass_at(records: Sequence[RunRecord]) -> dict[int, Interval]:
    """The chance that any of k independent samples is right, for k = 1, 2, 4, … and n, of runs of n samples each:
    1 − C(n − c, k)/C(n, k), unbiased (Chen et al., arXiv 2107.03374, equation 1), c of n being right, mean over runs.

    n is the budget. Samples that are missing, of a failed run all, and answers that could not be graded are not right.
    Runs whose records are too old to tell are left out. The interval is that of a share
    (`motes.lab.measure.statistics`): n samples hold n/k independent sets of k.

    Args:
        records: of one cell.
    """
    told = [record for record in records if record.right or record.outcome == "failed"]
    if not any(record.right for record in told):
        return {}
    n = max(max(record.budget, len(record.right)) for record in told)

    def chance(record: RunRecord, k: int) -> float:
        wrong = n - sum(right is True for right in record.right)
        return 1 - math.comb(wrong, k) / math.comb(n, k)

    found = {}
    for k in [2**i for i in range(n.bit_length()) if 2**i < n] + [n]:
        chances = [(record.problem_id, chance(record, k)) for record in told]
        found[k] = share_interval(each for each in chances for _ in range(n // k))
    return found


def ends(interval: Interval, name: str) -> dict[str, float]:
    """An interval as three fields of a flat row."""
    return {
        name: round(interval.value, 6),
        f"{name}_low": round(interval.low, 6),
        f"{name}_high": round(interval.high, 6),
    }
