"""What scores and confidences are worth as predictions of what is right.

Do they tell right from wrong? AUROC: the chance that a right one has the larger value, ties counting half (Hanley and
McNeil, 1982). Over all pairs, and over pairs of answers to the same problem: to know which problems are hard raises the
first, and only the second helps a method to choose among answers. Are they probabilities? Expected calibration error,
Brier score, and the share that is right by bins of the value.

Scores are those of the answers that a run ended with. A method that selects by scores has selected among them: its
answers are not independent samples, and the same reward model looks worse on them than on those of best-of-N.
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
        problems = int(self.problems.max()) + 1
        counts = np.zeros((2, problems, int(place.max()) + 1))
        np.add.at(counts, (self.right.astype(np.int64), self.problems, place), 1.0)
        wrong, right = counts  # (P, levels)
        wins = right @ (wrong.cumsum(1) - wrong / 2).T  # (P, P): right ones of p over wrong ones of q
        drawn = resamples(problems)  # (1 + B, P)
        rights, wrongs = right.sum(1), wrong.sum(1)  # (P,)
        with np.errstate(invalid="ignore"):
            all_pairs = ((drawn @ wins) * drawn).sum(1) / ((drawn @ rights) * (drawn @ wrongs))
            same = (drawn @ wins.diagonal()) / (drawn @ (rights * wrongs))
        all_pairs[0] = auroc(self.values, self.right)  # the levels are all its values, or nearly
        return _interval(all_pairs, problems), _interval(same, problems)

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
    """Resamples without a right or a wrong one say nothing."""
    value, drawn = estimates[0], estimates[1:]
    return percentile_interval(np.concatenate([[value], drawn[~np.isnan(drawn)]]), problems=problems)
