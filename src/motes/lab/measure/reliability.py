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
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.lab.measure.comparison import ends
from motes.lab.measure.statistics import FloatArray, Interval, share_interval, share_of_variance, student_quantile
from motes.lab.run.records import RunRecord
from motes.methods.potential import log_potential

BINS = 10

PAIRS = 256
"""Of a group, from which its sharpness is estimated."""


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
        """Over all pairs, and over pairs of the same problem.

        The 95 % intervals are those of shares (`motes.lab.measure.statistics`). The variance is that of clustered
        data: the contribution of a problem's answers to the share varies from problem to problem (Obuchowski,
        "Nonparametric analysis of clustered ROC curve data", 1997). There is none where one problem alone tells.
        """
        positive, negative = self.values[self.right], self.values[~self.right]
        if not len(positive) or not len(negative):
            return Interval.none(), Interval.none()
        below = _ranks(negative, positive) / len(negative)  # share of wrong ones below each right one
        above = 1 - _ranks(positive, negative) / len(positive)
        area = auroc(self.values, self.right)
        problems = int(self.problems.max()) + 1
        spread = np.zeros(problems)
        np.add.at(spread, self.problems[self.right], (below - area) / len(positive))
        np.add.at(spread, self.problems[~self.right], (above - area) / len(negative))
        both = share_of_variance(
            area,
            float((spread**2).sum()) * problems / max(1, problems - 1),
            problems=problems,
            independent=min(len(np.unique(self.problems[which])) for which in (self.right, ~self.right)),
            values=len(self),
        )
        return both, self.auroc_within(self.problems)

    def auroc_within(self, groups: npt.NDArray[np.int64]) -> Interval:
        """Over the pairs of the same group, pooled; the variance of the interval is that of a ratio, between problems.

        Args:
            groups: (n,) the number of each one's group, from 0: its problem, or a part of it.
        """
        wins, pairs = pair_counts(self.values, self.right, groups)  # (G,)
        if not pairs.sum():
            return Interval.none()
        problem = np.zeros(len(wins), dtype=np.int64)
        problem[groups] = self.problems
        area = float(wins.sum() / pairs.sum())
        contested = len(np.unique(problem[pairs > 0]))
        return share_of_variance(
            area,
            _ratio_variance(wins, pairs, problem),
            problems=contested,
            independent=contested,
            values=int(np.bincount(groups)[pairs > 0].sum()),
        )

    def sharpness(self, groups: npt.NDArray[np.int64]) -> Interval:
        """How much more sharply the odds r/(1 − r) of scores should be taken, or less, to be evidence: the slope β of

            P(right) = σ(α_g + β · logit r)

        within groups g, with Student's 95 % interval over problems. Estimated from pairs of a right and a wrong one of
        the same group, of which the right one has logit r larger by d, as the β under which Σ log σ(βd) is largest:
        what the α are does not matter there (Cox and Snell, "Analysis of binary data", 1989, 2.5). Of a group's pairs
        at most `PAIRS` are taken. Not a number where there are none, or where the right one is always the larger.

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
        wrong = 1 / (1 + np.exp(beta * gaps))
        pulls = np.bincount(problems, wrong * gaps)
        telling = len(np.unique(problems))
        if telling < 2:
            return Interval.none(beta)
        error = math.sqrt((pulls**2).sum() * telling / (telling - 1)) / float((wrong * (1 - wrong) * gaps**2).sum())
        half = student_quantile(0.975, telling - 1) * error
        return Interval(beta, beta - half, beta + half)

    def _gaps(self, groups: npt.NDArray[np.int64]) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Of pairs of a right and a wrong one of the same group, by how much the right one's logit is larger, and the
        number of the problem."""
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
        beta: how sharply a filter should take the scores, between partial answers of as many steps: see
            `Predictions.sharpness`.
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
    beta: Interval
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
        within = abreast = beta = Interval.none()
        if rows:
            numbered = {part: i for i, part in enumerate(dict.fromkeys(row[2:] for row in rows))}
            parts = np.array([numbered[row[2:]] for row in rows])
            within = predictions.auroc_within(predictions.problems)
            abreast, beta = predictions.auroc_within(parts), predictions.sharpness(parts)
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
            beta,
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
            **ends(self.beta, "beta"),
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


def ratio_interval(numerators: FloatArray, denominators: FloatArray, problems: npt.NDArray[np.int64]) -> Interval:
    """Σ numerators / Σ denominators, with Student's 95 % interval over problems; without one where one problem alone
    tells, or where all have the same ratio.

    Args:
        numerators, denominators, problems: (n,) problems are numbered from 0.
    """
    if not denominators.sum():
        return Interval.none()
    ratio = float(numerators.sum() / denominators.sum())
    telling = len(np.unique(problems[denominators > 0]))
    variance = _ratio_variance(numerators, denominators, problems)
    if telling < 2 or not variance:
        return Interval.none(ratio)
    half = student_quantile(0.975, telling - 1) * math.sqrt(variance)
    return Interval(ratio, ratio - half, ratio + half)


def _ratio_variance(numerators: FloatArray, denominators: FloatArray, problems: npt.NDArray[np.int64]) -> float:
    """Of Σ numerators / Σ denominators, linearised, between problems (Cochran, "Sampling techniques", 1977, 6.3)."""
    total = denominators.sum()
    residuals = np.bincount(problems, numerators - numerators.sum() / total * denominators)
    telling = len(np.unique(problems[denominators > 0]))
    return float((residuals**2).sum() / total**2) * telling / max(1, telling - 1)


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


def _ranks(values: FloatArray, of: FloatArray) -> FloatArray:
    """How many of the values are below each of the others, ties counting half."""
    ordered = np.sort(values)
    ranks = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    return ranks.astype(np.float64) / 2
