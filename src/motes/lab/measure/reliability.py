"""How well scores and confidences predict which answers are right.

Do they separate right from wrong? AUROC: the chance that, of a right and a wrong answer, the right one has the larger
value, ties counting half (Hanley and McNeil, 1982). It is taken over all pairs, and over pairs of answers to the same
problem: knowing which problems are hard raises the first, but only the second helps a method to choose among answers.
Are they probabilities? Expected calibration error, Brier score, and the share of right answers by bins of the value.

`Quality` is about the answers that a run ended with. A method that selects by scores has selected among them: its
answers are not independent samples, and the same reward model looks worse on them than on the answers of best-of-N.

`StepQuality` is about all partial answers that a run drew, selected or not. Each step counts once, however many
particles continued it. Even so they are not independent samples, because each continues a step that was selected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.lab.measure.comparison import ends
from motes.lab.measure.statistics import (
    FloatArray,
    IntArray,
    Interval,
    numbered,
    share_interval,
    share_of_residuals,
    student_interval,
)
from motes.lab.run.records import RunRecord
from motes.methods.potential import log_potential

BINS = 10

PAIRS = 256
"""The largest number of a group's pairs from which the sharpness is estimated."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of whether answers, or steps, are right, each with the truth.

    Attributes:
        values: (n,) the predictions, in [0, 1].
        right: (n,) the truth.
        problems: (n,) the number of each prediction's problem, from 0 to P − 1.
    """

    values: FloatArray
    right: npt.NDArray[np.bool_]
    problems: IntArray

    @classmethod
    def of(cls, rows: Sequence[tuple[float, bool, str]]) -> Predictions:
        """The predictions in rows of (value, right, problem)."""
        return cls(
            np.array([value for value, *_ in rows], dtype=np.float64),
            np.array([right for _, right, _ in rows], dtype=bool),
            numbered(problem for *_, problem in rows),
        )

    @classmethod
    def of_scores(cls, records: Sequence[RunRecord]) -> Predictions:
        """The final scores of all answers that have one and were graded."""
        return cls.of(
            [
                (score, right, record.problem_id)
                for record in records
                for score, right in zip(record.scores, record.right, strict=bool(record.scores))  # none in old records
                if score is not None and right is not None
            ]
        )

    @classmethod
    def of_confidence(cls, records: Sequence[RunRecord]) -> Predictions:
        """The posterior mass of each run's answer. Runs without an answer, and ungraded runs, are left out."""
        graded = [record for record in records if record.outcome in ("correct", "wrong")]
        return cls.of([(record.confidence, record.outcome == "correct", record.problem_id) for record in graded])

    def __len__(self) -> int:
        return len(self.values)

    def auroc(self) -> tuple[Interval, Interval]:
        """The AUROC over all pairs, and the AUROC over pairs of the same problem.

        The 95 % intervals are those of shares (`motes.lab.measure.statistics`). The variance is that of clustered
        data: the contribution of a problem's answers to the share varies from problem to problem (Obuchowski,
        "Nonparametric analysis of clustered ROC curve data", 1997). A single problem has no interval.
        """
        area, positive, negative = auroc(self.values, self.right), self.values[self.right], self.values[~self.right]
        if math.isnan(area):
            return Interval.none(), Interval.none()
        below = _ranks(negative, positive) / len(negative)  # share of wrong ones below each right one
        above = 1 - _ranks(positive, negative) / len(positive)  # share of right ones above each wrong one
        residuals = np.empty(len(self))
        residuals[self.right] = (below - area) / len(positive)
        residuals[~self.right] = (above - area) / len(negative)
        independent = min(len(np.unique(self.problems[label])) for label in (self.right, ~self.right))
        overall = share_of_residuals(area, residuals, self.problems, independent=independent, values=len(self))
        return overall, self.auroc_within(self.problems)

    def auroc_within(self, groups: IntArray) -> Interval:
        """The AUROC over the pairs within groups, pooled; the interval's variance is that of a ratio, between problems.

        Args:
            groups: (n,) the number of each prediction's group, from 0: its problem, or a part of its problem.
        """
        wins, pairs = pair_counts(self.values, self.right, groups)  # (G,)
        if not pairs.sum():
            return Interval.none()
        problems = np.zeros(len(wins), dtype=np.int64)  # (G,)
        problems[groups] = self.problems
        area, residuals, problems = _ratio(wins, pairs, problems)
        values = int(np.bincount(groups)[pairs > 0].sum())
        return share_of_residuals(area, residuals, problems, independent=len(np.unique(problems)), values=values)

    def sharpness(self, groups: IntArray) -> Interval:
        """The power to which the odds r/(1 − r) of scores should be raised to be evidence: the slope β of

            P(right) = σ(α_g + β · logit r)

        within groups g, with Student's 95 % interval over problems. It is estimated from pairs of a right and a wrong
        prediction of the same group: d is by how much the right one's logit r is larger, and β maximises Σ log σ(βd).
        The α drop out there (Cox and Snell, "Analysis of binary data", 1989, 2.5). At most `PAIRS` pairs of a group
        are used. NaN if there are no pairs, or if the right one's value is always the larger.

        Args:
            groups: as for `auroc_within`.
        """
        gaps, problems = self._gaps(groups)
        if not (gaps < 0).any():
            return Interval.none()
        beta = 0.0
        for _ in range(100):
            wrong = 1 / (1 + np.exp(beta * gaps))
            step = (wrong * gaps).sum() / (wrong * (1 - wrong) * gaps**2).sum()
            beta += float(np.clip(step, -1.0, 1.0))
            if abs(step) < 1e-9:
                break
        residuals = wrong * gaps / (wrong * (1 - wrong) * gaps**2).sum()
        return student_interval(beta, residuals, problems)

    def _gaps(self, groups: IntArray) -> tuple[FloatArray, IntArray]:
        """For each pair of a right and a wrong prediction of the same group: by how much the right one's logit is
        larger, and the number of their problem."""
        logits = log_potential(self.values, "odds", 1.0)
        order = np.argsort(groups, kind="stable")
        bounds = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
        rng = np.random.default_rng(0)
        gaps, problems = [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        for start, stop in pairwise(bounds):
            members = order[start:stop]
            right, wrong = members[self.right[members]], members[~self.right[members]]
            total = len(right) * len(wrong)
            if total:
                pairs = np.arange(total) if total <= PAIRS else rng.choice(total, PAIRS, replace=False)
                gaps.append(logits[right[pairs // len(wrong)]] - logits[wrong[pairs % len(wrong)]])
                problems.append(np.full(len(pairs), self.problems[members[0]]))
        return np.concatenate(gaps), np.concatenate(problems)

    def expected_calibration_error(self) -> float:
        return expected_calibration_error(self.values, self.right.astype(np.float64)) if len(self) else math.nan

    def brier_score(self) -> float:
        return brier_score(self.values, self.right.astype(np.float64)) if len(self) else math.nan

    def bins(self) -> list[Bin]:
        """The non-empty bins, of equal width."""
        indices = _bin_indices(self.values)
        bins = []
        for in_bin in (indices == i for i in np.unique(indices)):
            right = share_interval(zip(self.problems[in_bin].tolist(), self.right[in_bin].tolist(), strict=True))
            bins.append(Bin(int(in_bin.sum()), float(self.values[in_bin].mean()), right))
        return bins


@dataclass(frozen=True)
class Bin:
    """The number of values in a bin, their mean, and the share of right answers, clustered by problem."""

    count: int
    mean: float
    right: Interval


@dataclass(frozen=True)
class Quality:
    """How good the predictions of one method at one budget are.

    Attributes:
        kind: "score" (the reward model's score of each answer) or "confidence" (the run's confidence in its answer).
        predictions: the graded ones, at least one.
    """

    method: str
    budget: int
    kind: str
    predictions: Predictions

    @cached_property
    def aurocs(self) -> tuple[Interval, Interval]:
        """The AUROC over all pairs, and over pairs of answers to one problem (from several seeds, for confidences)."""
        return self.predictions.auroc()

    def row(self) -> dict[str, Any]:
        """A flat row of a CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "kind": self.kind,
            "predictions": len(self.predictions),
            "mean": round(float(self.predictions.values.mean()), 6),
            "right": round(float(self.predictions.right.mean()), 6),
            **ends(self.aurocs[0], "auroc"),
            **ends(self.aurocs[1], "auroc_within"),
            "ece": round(self.predictions.expected_calibration_error(), 6),
            "brier": round(self.predictions.brier_score(), 6),
        }


@dataclass(frozen=True)
class StepQuality:
    """The numbers that decide whether particles can win, of one method at one budget.

    Attributes:
        is_independent: whether the answers are independent samples of the language model.
        steps: mean number of steps of the answers that runs ended with; answers without a step are left out.
        right: share of right answers, counting those of failed runs; for independent samples this is pass@1.
        checked: whether the task's step checker labels partial answers; if not, the final answers do.
        prefixes: number of partial answers that have a score and a label.
        wrong: the share of them that is wrong.
        within: AUROC of their last steps' scores, over pairs of the same problem.
        abreast: the same over pairs that also have the same number of steps, which a method compares in one round.
        beta: how sharply a filter should use the scores, estimated from the same pairs: see `Predictions.sharpness`.
        untold: number of runs with records from before partial answers were kept.
    """

    method: str
    budget: int
    is_independent: bool
    steps: Interval
    right: Interval
    checked: bool
    prefixes: int
    wrong: float
    within: Interval
    abreast: Interval
    beta: Interval
    untold: int

    @classmethod
    def of(cls, method: str, budget: int, is_independent: bool, records: Sequence[RunRecord]) -> StepQuality | None:
        """The numbers of these records; None if nothing was scored."""
        if not any(score is not None for record in records for score in record.scores):
            return None
        checked = any(record.prefixes is not None and record.prefixes.right for record in records)
        rows: list[tuple[float, bool, str, int]] = []  # score, right, problem, number of steps
        lengths: list[tuple[int, int]] = []  # total number of steps, number of answers
        for record in records:
            if (prefixes := record.prefixes) is None:
                continue
            depths = prefixes.depths
            steps = [depths[end] for end in prefixes.ends if end is not None]
            lengths.append((sum(steps), len(steps)))
            labels = prefixes.right if checked else prefixes.lead_to(record.right)
            rows += [
                (score, label, record.problem_id, depth)
                for score, label, depth in zip(prefixes.scores, labels, depths, strict=bool(labels))
                if score is not None and label is not None
            ]
        predictions = Predictions.of([row[:3] for row in rows])
        groups = numbered(row[2:] for row in rows)
        totals, answers = np.array(lengths, dtype=np.float64).reshape(-1, 2).T
        problems = numbered(record.problem_id for record in records if record.prefixes is not None)
        right = [
            (record.problem_id, each is True)
            for record in records
            for each in ((False,) * record.budget if record.outcome == "failed" else record.right)
        ]
        return cls(
            method,
            budget,
            is_independent,
            ratio_interval(totals, answers, problems),
            share_interval(right),
            checked,
            len(rows),
            float((~predictions.right).mean()) if rows else math.nan,
            predictions.auroc_within(predictions.problems),
            predictions.auroc_within(groups),
            predictions.sharpness(groups),
            sum(record.prefixes is None and bool(record.scores) for record in records),
        )

    def row(self) -> dict[str, Any]:
        """A flat row of a CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "independent": int(self.is_independent),
            **ends(self.steps, "steps"),
            **ends(self.right, "right"),
            "labelled_by": "step checker" if self.checked else "final answer",
            "partial_answers": self.prefixes,
            "wrong": round(self.wrong, 6),
            **ends(self.within, "auroc_within"),
            **ends(self.abreast, "auroc_abreast"),
            **ends(self.beta, "beta"),
            "runs_untold": self.untold,
        }


def auroc(values: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """The chance that a right item has a larger value than a wrong one; ties count half. NaN if either kind is missing.
    Both arguments have the shape (n,)."""
    values = np.asarray(values, dtype=np.float64)
    wins, pairs = pair_counts(values, np.asarray(right, dtype=bool), np.zeros(len(values), dtype=np.int64))
    return float(wins.sum() / pairs.sum()) if pairs.sum() else math.nan


def pair_counts(values: FloatArray, right: npt.NDArray[np.bool_], groups: IntArray) -> tuple[FloatArray, FloatArray]:
    """For each group, (G,): the number of pairs of a right and a wrong item in which the right one has the larger
    value, ties counting half; and the number of all such pairs. Arguments: (n,), with groups numbered from 0."""
    number = int(groups.max(initial=-1)) + 1
    rights, wrongs = (np.bincount(groups[label], minlength=number) for label in (right, ~right))
    _, places = np.unique(values, return_inverse=True)
    keys = groups * len(values) + places  # ordered by group, then by value
    below = _ranks(keys[~right], keys[right])  # wrong items of earlier groups included
    below -= (wrongs.cumsum() - wrongs)[groups[right]]
    wins = np.bincount(groups[right], below, minlength=number)
    return wins.astype(np.float64), (rights * wrongs).astype(np.float64)


def ratio_interval(numerators: FloatArray, denominators: FloatArray, problems: IntArray) -> Interval:
    """Σ numerators / Σ denominators, with Student's 95 % interval over problems. There is no interval if only one
    problem contributes, or if all have the same ratio. Arguments: (n,), with problems numbered from 0."""
    return student_interval(*_ratio(numerators, denominators, problems)) if denominators.sum() else Interval.none()


def _ratio(numerators: FloatArray, denominators: FloatArray, problems: IntArray) -> tuple[float, FloatArray, IntArray]:
    """Σ numerators / Σ denominators, its linearised residuals, and their problems (Cochran, "Sampling techniques",
    1977, 6.3)."""
    total = denominators.sum()
    ratio = numerators.sum() / total
    used = denominators > 0
    return float(ratio), (numerators - ratio * denominators)[used] / total, problems[used]


def expected_calibration_error(probabilities: FloatArray, labels: FloatArray) -> float:
    """Σ_b n_b/n · |mean label − mean probability| over ten bins of equal width (Naeini et al. 2015; Guo et al., arXiv
    1706.04599). Both arguments have the shape (n,)."""
    gaps = np.bincount(_bin_indices(probabilities), labels - probabilities)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Mean squared difference (Brier, 1950)."""
    return float(np.mean((probabilities - labels) ** 2))


def _bin_indices(values: FloatArray) -> IntArray:
    return np.minimum((values * BINS).astype(np.int64), BINS - 1)


def _ranks(values: FloatArray | IntArray, others: FloatArray | IntArray) -> FloatArray:
    """For each of the other values, the number of values below it, ties counting half."""
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, others, "left") + np.searchsorted(ordered, others, "right")
    return ranks.astype(np.float64) / 2
