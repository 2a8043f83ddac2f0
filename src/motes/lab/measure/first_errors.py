"""How well scores find the first error of an answer, as defined by ProcessBench (arXiv 2412.06559).

The prediction for an answer is its first step with a score below the threshold, or "no error" if there is no such step.
From the shares of answers with a right prediction, a among those with an error and b among those without one,

    F1 = 2 a b / (a + b)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from motes.lab.measure.statistics import FloatArray, IntArray, Interval, share_interval, share_of_residuals

Threshold = float | Literal["best"]


@dataclass(frozen=True, eq=False)
class Answers:
    """The thresholds at which the prediction for each answer is right: those with low < t ≤ high.

    Attributes:
        low: (n,)
        high: (n,)
        wrong: (n,) whether the answer has an error.
        problems: (n,) the number of each answer's problem.
    """

    low: FloatArray
    high: FloatArray
    wrong: npt.NDArray[np.bool_]
    problems: IntArray

    def __len__(self) -> int:
        return len(self.low)

    def of(self, chosen: npt.NDArray[np.bool_]) -> Answers:
        """The chosen answers."""
        return Answers(self.low[chosen], self.high[chosen], self.wrong[chosen], self.problems[chosen])

    def predicted(self, threshold: float) -> npt.NDArray[np.bool_]:
        """(n,) whether the prediction at this threshold is right."""
        return (self.low < threshold) & (threshold <= self.high)

    def best_threshold(self) -> float:
        """The threshold with the largest F1 (the smallest one of several): the middle between the two neighbouring
        scores that have this F1 between them. 0.5 if there are no answers with an error, or none without, or if no
        threshold gives right predictions for both kinds."""
        numbers = self.wrong.sum(), (~self.wrong).sum()
        if not all(numbers):
            return 0.5
        places = np.unique(np.concatenate([self.low, self.high]))
        shares = []  # for each kind: (k,) the share that a threshold at each place predicts right
        for kind, number in zip((self.wrong, ~self.wrong), numbers, strict=True):
            possible = kind & (self.low < self.high)
            lows, highs = np.sort(self.low[possible]), np.sort(self.high[possible])
            shares.append((np.searchsorted(lows, places) - np.searchsorted(highs, places)) / number)
        values = harmonic_mean(*shares)
        best = int(np.argmax(values))
        if not values[best]:
            return 0.5
        below, above = max(float(places[best - 1]), 0.0), min(float(places[best]), 1.0)
        return (below + above) / 2 if below < above else float(np.nextafter(below, 2))


def harmonic_mean(a: FloatArray, b: FloatArray) -> FloatArray:
    """2 a b / (a + b); 0 if both are 0."""
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a + b), where=a + b > 0)


@dataclass(frozen=True)
class FirstErrors:
    """How well scores find first errors; see the module's docstring.

    Attributes:
        threshold: a score below it says that a step is wrong.
        chosen_on: number of answers on which the threshold was chosen, and which the other numbers leave out; 0 if the
            threshold was given.
        wrong: the share of answers with an error whose prediction is right.
        right: the share of answers without an error whose prediction is right.
        f1: the harmonic mean of both.
        numbers: number of answers with an error, and of answers without one.
    """

    threshold: float
    chosen_on: int
    wrong: Interval
    right: Interval
    f1: Interval
    numbers: tuple[int, int]

    @classmethod
    def of(cls, answers: Answers, threshold: Threshold) -> FirstErrors:
        chosen_on = 0
        if threshold == "best":
            number = int(answers.problems.max()) + 1 if len(answers) else 0
            half = np.random.default_rng(0).permutation(number) % 2
            is_first_half = half[answers.problems] == 0
            threshold, chosen_on = answers.of(is_first_half).best_threshold(), int(is_first_half.sum())
            answers = answers.of(~is_first_half)
        hits = answers.predicted(threshold)
        shares = [
            share_interval(zip(answers.problems[kind].tolist(), hits[kind].tolist(), strict=True))
            for kind in (answers.wrong, ~answers.wrong)
        ]
        numbers = int(answers.wrong.sum()), int((~answers.wrong).sum())
        f1 = _f1(answers, hits) if all(numbers) else Interval.none()
        return cls(threshold, chosen_on, shares[0], shares[1], f1, numbers)


def _f1(answers: Answers, hits: npt.NDArray[np.bool_]) -> Interval:
    """F1 with the 95 % interval of a share (`motes.lab.measure.statistics`). The variance is that of F1, linearised in
    a and b, between questions."""
    problems, wrong = answers.problems, answers.wrong
    a, b = float(hits[wrong].mean()), float(hits[~wrong].mean())
    f1 = float(harmonic_mean(np.array(a), np.array(b)))
    slopes = (2 * (b / (a + b)) ** 2, 2 * (a / (a + b)) ** 2) if a + b else (0.0, 0.0)  # in a, in b
    residuals = np.empty(len(answers))
    for kind, share, slope in ((wrong, a, slopes[0]), (~wrong, b, slopes[1])):
        residuals[kind] = slope * (hits[kind] - share) / kind.sum()
    independent = min(len(np.unique(problems[kind])) for kind in (wrong, ~wrong))
    return share_of_residuals(f1, residuals, problems, independent=independent, values=len(answers))
