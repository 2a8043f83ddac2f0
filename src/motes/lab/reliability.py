"""What scores and confidences are worth as predictions of what is right.

Do they tell right from wrong? AUROC: the chance that a right one has the larger value, ties counting half (Hanley and
McNeil, 1982). Over all pairs, and over pairs of answers to the same problem: to know which problems are hard raises the
first, and only the second helps a method to choose among answers. Are they probabilities? Expected calibration error,
Brier score, and the share that is right by bins of the value.

`Quality` is about the answers that a run ended with. A method that selects by scores has selected among them: its
answers are not independent samples, and the same reward model looks worse on them than on those of best-of-N.

`StepQuality` is about partial answers, all that a run drew, those that were not selected included. Each step counts
once, however many particles went on from it. They are selected all the same, as each continues one that was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.lab.comparison import ends
from motes.lab.records import RunRecord
from motes.lab.statistics import FloatArray, Interval, percentile_interval, resamples, share_interval

BINS = 10
LEVELS = 1024
"""Distinct values told apart by the bootstrap of an AUROC."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Values in [0, 1], and what came true.

    Attributes:
        values: (n,) right: (n,) problems: (n,) the number of each one's problem, from 0 to P − 1.
    """

    values: FloatArray
    right: npt.NDArray[np.bool_]
    problems: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[tuple[float, bool, str]]) -> Predictions:
        """Of (value, right, problem)."""
        number = {problem: i for i, problem in enumerate(dict.fromkeys(problem for *_, problem in rows))}
        return cls(
            np.array([value for value, *_ in rows], dtype=np.float64),
            np.array([right for _, right, _ in rows], dtype=bool),
            np.array([number[problem] for *_, problem in rows], dtype=np.int64),
        )

    @classmethod
    def of_scores(cls, records: Sequence[RunRecord]) -> Predictions:
        """The final score of every answer that has one and was graded."""
        return cls.of(
            [
                (score, right, record.problem_id)
                for record in records
                for score, right in zip(record.scores, record.right, strict=bool(record.scores))  # old ones have none
                if score is not None and right is not None
            ]
        )

    @classmethod
    def of_confidence(cls, records: Sequence[RunRecord]) -> Predictions:
        """The posterior mass of every run's answer; runs without an answer, and ungraded ones, say nothing."""
        graded = [record for record in records if record.outcome in ("correct", "wrong")]
        return cls.of([(record.confidence, record.outcome == "correct", record.problem_id) for record in graded])

    def __len__(self) -> int:
        return len(self.values)

    def auroc(self) -> tuple[Interval, Interval]:
        """Over all pairs, and over pairs of the same problem; with 95 % intervals of a bootstrap over problems."""
        if self.right.all() or not self.right.any():
            nothing = Interval(math.nan, math.nan, math.nan)
            return nothing, nothing
        levels, place = np.unique(self.values, return_inverse=True)
        if len(levels) > LEVELS:
            edges = np.quantile(self.values, np.linspace(0, 1, LEVELS + 1)[1:-1])
            place = np.searchsorted(edges, self.values)
        number = int(self.problems.max()) + 1
        clusters = clusters_of(number)  # (P,)
        here = clusters[self.problems]  # (n,)
        counts = np.zeros((2, int(clusters.max()) + 1, int(place.max()) + 1))
        np.add.at(counts, (self.right.astype(np.int64), here, place), 1.0)
        wrong, right = counts  # (K, levels)
        wins = right @ (wrong.cumsum(1) - wrong / 2).T  # (K, K): right ones of j over wrong ones of k
        drawn = resamples(len(wins))  # (1 + B, K)
        rights, wrongs = right.sum(1), wrong.sum(1)  # (K,)
        with np.errstate(invalid="ignore"):
            all_pairs = ((drawn @ wins) * drawn).sum(1) / ((drawn @ rights) * (drawn @ wrongs))
        all_pairs[0] = auroc(self.values, self.right)  # the levels are all its values, or nearly
        return _interval(all_pairs, len(wins)), self.auroc_within(self.problems)

    def auroc_within(self, groups: npt.NDArray[np.int64]) -> Interval:
        """Over the pairs of the same group; with a 95 % interval of a bootstrap over problems.

        Args:
            groups: (n,) the number of each one's group, from 0: its problem, or a part of it.
        """
        wins, pairs = pair_counts(self.values, self.right, groups)  # (G,)
        problem = np.zeros(len(wins), dtype=np.int64)
        problem[groups] = self.problems
        return ratio_interval(wins, pairs, problem)

    def expected_calibration_error(self) -> float:
        return expected_calibration_error(self.values, self.right.astype(np.float64)) if len(self) else math.nan

    def brier_score(self) -> float:
        return brier_score(self.values, self.right.astype(np.float64)) if len(self) else math.nan

    def bins(self) -> list[Bin]:
        """The bins of equal width that have anything in them."""
        place = _bin(self.values)
        found = []
        for here in (place == i for i in np.unique(place)):
            right = share_interval(zip(self.problems[here].tolist(), self.right[here].tolist(), strict=True))
            found.append(Bin(int(here.sum()), float(self.values[here].mean()), right))
        return found


@dataclass(frozen=True)
class Bin:
    """Of the values in one bin: how many, their mean, and the share that is right, clustered by problem."""

    count: int
    mean: float
    right: Interval


@dataclass(frozen=True)
class Quality:
    """How good the predictions of one method at one budget are.

    Attributes:
        kind: "score" (the reward model's, of each answer) or "confidence" (the run's, of the answer it gave).
        predictions: that were made and graded; `mean`: value; `right`: share.
        auroc: over all pairs; `within`: over pairs of answers to one problem (of several seeds, for confidences).
        ece, brier: see `expected_calibration_error` and `brier_score`.
    """

    method: str
    budget: int
    kind: str
    predictions: int
    mean: float
    right: float
    auroc: Interval
    within: Interval
    ece: float
    brier: float
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, method: str, budget: int, kind: str, predictions: Predictions) -> Quality:
        return cls(
            method,
            budget,
            kind,
            len(predictions),
            float(predictions.values.mean()),
            float(predictions.right.mean()),
            *predictions.auroc(),
            predictions.expected_calibration_error(),
            predictions.brier_score(),
            tuple(predictions.bins()),
        )

    def row(self) -> dict[str, Any]:
        """As a flat row of a CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "kind": self.kind,
            "predictions": self.predictions,
            "mean": round(self.mean, 6),
            "right": round(self.right, 6),
            **ends(self.auroc, "auroc"),
            **ends(self.within, "auroc_within"),
            "ece": round(self.ece, 6),
            "brier": round(self.brier, 6),
        }


@dataclass(frozen=True)
class StepQuality:
    """The numbers that decide whether particles can win, of one method at one budget.

    Attributes:
        is_independent: whether its answers are independent samples of the language model.
        steps: mean number of steps of the answers that runs ended with, those of no step left out.
        right: share of the answers that is right, those of failed runs included; of independent samples that is pass@1.
        checked: whether the task's step checker says which partial answers are right, or else their final answers.
        prefixes: partial answers with a score that are known to be right or wrong. `wrong`: the share of wrong ones.
        within: AUROC of their last steps' scores, over pairs to the same problem; `abreast`: over pairs of as many
            steps, which is what a method compares in one round.
        untold: runs whose records are from before partial answers were kept.
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
    untold: int

    @classmethod
    def of(cls, method: str, budget: int, is_independent: bool, records: Sequence[RunRecord]) -> StepQuality | None:
        """None where nothing was scored."""
        if not any(score is not None for record in records for score in record.scores):
            return None
        checked = any(record.prefixes is not None and record.prefixes.right for record in records)
        numbers = {problem: i for i, problem in enumerate(dict.fromkeys(record.problem_id for record in records))}
        rows: list[tuple[float, bool, int, int]] = []  # score, right, problem, number of steps
        lengths: list[tuple[int, int, int]] = []  # steps in all, answers, problem
        for record in records:
            if (prefixes := record.prefixes) is None:
                continue
            problem, depths = numbers[record.problem_id], prefixes.depths
            steps = [depths[end] for end in prefixes.ends if end is not None]
            lengths.append((sum(steps), len(steps), problem))
            labels = prefixes.right if checked else prefixes.lead_to(record.right)
            rows += [
                (score, label, problem, depth)
                for score, label, depth in zip(prefixes.scores, labels, depths, strict=bool(labels))
                if score is not None and label is not None
            ]
        total, answers, problems = np.array(lengths or [(0, 0, 0)]).T
        predictions = Predictions(
            np.array([row[0] for row in rows]),
            np.array([row[1] for row in rows], dtype=bool),
            np.array([row[2] for row in rows], dtype=np.int64),
        )
        within = abreast = Interval.none()
        if rows:
            parts = {part: i for i, part in enumerate(dict.fromkeys(row[2:] for row in rows))}
            within = predictions.auroc_within(predictions.problems)
            abreast = predictions.auroc_within(np.array([parts[row[2:]] for row in rows]))
        right = [
            (record.problem_id, each is True)
            for record in records
            for each in ((False,) * record.budget if record.outcome == "failed" else record.right)
        ]
        return cls(
            method,
            budget,
            is_independent,
            ratio_interval(total.astype(np.float64), answers.astype(np.float64), problems),
            share_interval(right),
            checked,
            len(rows),
            float((~predictions.right).mean()) if rows else math.nan,
            within,
            abreast,
            sum(record.prefixes is None and bool(record.scores) for record in records),
        )

    def row(self) -> dict[str, Any]:
        """As a flat row of a CSV file."""
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
            "runs_untold": self.untold,
        }


def auroc(values: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """The chance that a right one has a larger value than a wrong one; ties count half. NaN where there are no two.

    Args:
        values, right: (n,)
    """
    positive = np.asarray(right, dtype=bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def pair_counts(
    values: FloatArray, right: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """(G,) In each group, the pairs in which a right one has a larger value than a wrong one, ties counting half; and
    all pairs of a right and a wrong one.

    Args:
        values, right, groups: (n,) groups are numbered from 0.
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    number = int(groups.max()) + 1
    rights = np.bincount(groups[right], minlength=number).astype(np.float64)
    wrongs = np.bincount(groups[~right], minlength=number).astype(np.float64)
    order = np.lexsort((values, groups))
    values, right, groups = values[order], right[order], groups[order]
    changes = np.ones(len(values), dtype=bool)
    changes[1:] = (values[1:] != values[:-1]) | (groups[1:] != groups[:-1])
    tie = changes.cumsum() - 1  # (n,) equal values of a group have one number
    tied = np.bincount(tie[~right], minlength=len(values))  # wrong ones among them
    before = (wrongs.cumsum() - wrongs)[groups]  # wrong ones of the groups before
    below = np.cumsum(~right) - before  # (n,) wrong ones of the group up to here
    last = np.flatnonzero(np.append(changes[1:], True))  # where each tie ends
    wins = np.zeros(number)
    np.add.at(wins, groups[right], (below[last][tie] - tied[tie] / 2)[right])
    return wins, rights * wrongs


CLUSTERS = 2000
"""More problems than these are drawn together, in so many parts: a bootstrap of them varies as much, and its memory
does not grow with their number."""


def clusters_of(problems: int) -> npt.NDArray[np.int64]:
    """(P,) the number of the cluster that each problem is drawn with, from 0: its own, or a part of many problems."""
    if problems <= CLUSTERS:
        return np.arange(problems)
    return np.random.default_rng(0).permutation(problems) % CLUSTERS


def ratio_interval(numerators: FloatArray, denominators: FloatArray, problems: npt.NDArray[np.int64]) -> Interval:
    """Σ numerators / Σ denominators, with the 95 % percentile interval of a bootstrap over problems; without one where
    no resample differs.

    Args:
        numerators, denominators, problems: (n,) problems are numbered from 0.
    """
    if not denominators.sum():
        return Interval.none()
    number = int(problems.max()) + 1
    clusters = clusters_of(number)[problems]
    sums = [np.bincount(clusters, weights) for weights in (numerators, denominators)]  # each (K,)
    drawn = resamples(len(sums[0]))  # (1 + B, K)
    with np.errstate(invalid="ignore"):
        return _interval((drawn @ sums[0]) / (drawn @ sums[1]), len(sums[0]))


def expected_calibration_error(probabilities: FloatArray, labels: FloatArray) -> float:
    """Σ_b n_b/n · |mean label − mean probability| over ten bins of equal width (Naeini et al. 2015; Guo et al., arXiv
    1706.04599).

    Args:
        probabilities, labels: (n,)
    """
    gaps = np.zeros(BINS)
    np.add.at(gaps, _bin(probabilities), labels - probabilities)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: FloatArray, labels: FloatArray) -> float:
    """Mean squared difference (Brier, 1950)."""
    return float(np.mean((probabilities - labels) ** 2))


def _bin(values: FloatArray) -> npt.NDArray[np.int64]:
    return np.minimum((values * BINS).astype(np.int64), BINS - 1)


def _interval(estimates: FloatArray, problems: int) -> Interval:
    """Resamples without a right or a wrong one say nothing; where all say the same, how sure it is stays unknown."""
    value, drawn = estimates[0], estimates[1:]
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or (drawn == drawn[0]).all():
        return Interval.none(float(value))
    return percentile_interval(np.concatenate([[value], drawn]), problems=problems)
