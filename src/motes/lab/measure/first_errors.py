"""How well scores find the first error of an answer, as ProcessBench has it (arXiv 2412.06559).

The prediction for an answer is its first step whose score lies below the threshold, or that there is none. With the
shares of right predictions

    a = of answers with an error        b = of answers without one        F1 = 2 a b / (a + b)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from motes.lab.measure.statistics import FloatArray, Interval, share_interval, share_of_variance

Threshold = float | Literal["best"]


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers by the thresholds at which their first error, or that they have none, is predicted.

    Attributes:
        low, high: (n,) a threshold t does so where low < t ≤ high.
        wrong: (n,) whether there is an error. problems: (n,)
    """

    low: FloatArray
    high: FloatArray
    wrong: npt.NDArray[np.bool_]
    problems: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.low)

    def of(self, chosen: npt.NDArray[np.bool_]) -> Answers:
        """Some of them."""
        return Answers(self.low[chosen], self.high[chosen], self.wrong[chosen], self.problems[chosen])

    def predicted(self, threshold: float) -> npt.NDArray[np.bool_]:
        """(n,) whether the prediction at a threshold is right."""
        return (self.low < threshold) & (threshold <= self.high)

    def best_threshold(self) -> float:
        """The threshold of the largest F1, the smallest of several: the middle between the two neighbouring scores that
        lead to it. 0.5 where there are not both kinds of answers, or no threshold predicts any of both."""
        numbers = self.wrong.sum(), (~self.wrong).sum()
        if not all(numbers):
            return 0.5
        places = np.unique(np.concatenate([self.low, self.high]))
        shares = []  # of each kind (k,) predicted by a threshold at each place
        for kind, number in zip((self.wrong, ~self.wrong), numbers, strict=True):
            possible = kind & (self.low < self.high)
            begun, over = np.sort(self.low[possible]), np.sort(self.high[possible])
            shares.append((np.searchsorted(begun, places) - np.searchsorted(over, places)) / number)
        values = harmonic_mean(*shares)
        best = int(np.argmax(values))
        if not values[best]:
            return 0.5
        below, above = max(float(places[best - 1]), 0.0), min(float(places[best]), 1.0)
        return (below + above) / 2 if below < above else float(np.nextafter(below, 2))


def harmonic_mean(a: FloatArray, b: FloatArray) -> FloatArray:
    """2 a b / (a + b); 0 where both are 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return np.divide(2 * a * b, a + b, out=np.zeros_like(a + b), where=a + b > 0)


@dataclass(frozen=True)
class FirstErrors:
    """How well first errors are found, see the module's docstring.

    Attributes:
        threshold: below which a score says that a step is wrong.
        chosen_on: answers that it was chosen on, which are not among those measured; 0: it was given.
        wrong, right: the share of answers with an error, and of those without one, that are predicted; `f1`.
        numbers: of such answers.
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
            chooses = half[answers.problems] == 0
            threshold, chosen_on = answers.of(chooses).best_threshold(), int(chooses.sum())
            answers = answers.of(~chooses)
        hits = answers.predicted(threshold)
        shares = [
            share_interval(zip(answers.problems[kind].tolist(), hits[kind].tolist(), strict=True))
            for kind in (answers.wrong, ~answers.wrong)
        ]
        numbers = int(answers.wrong.sum()), int((~answers.wrong).sum())
        f1 = _f1(answers, hits) if all(numbers) else Interval.none()
        return cls(threshold, chosen_on, shares[0], shares[1], f1, numbers)


def _f1(answers: Answers, hits: npt.NDArray[np.bool_]) -> Interval:
    """F1 with the 95 % interval of a share (`motes.lab.measure.statistics`). The variance is that of F1 linearised in a
    and b, between questions."""
    problems, wrong = answers.problems, answers.wrong
    a, b = float(hits[wrong].mean()), float(hits[~wrong].mean())
    f1 = float(harmonic_mean(np.array(a), np.array(b)))
    slopes = (2 * (b / (a + b)) ** 2, 2 * (a / (a + b)) ** 2) if a + b else (0.0, 0.0)  # in a, in b
    number = int(problems.max()) + 1
    spread = np.zeros(number)
    for kind, share, slope in ((wrong, a, slopes[0]), (~wrong, b, slopes[1])):
        np.add.at(spread, problems[kind], slope * (hits[kind] - share) / kind.sum())
    telling = len(np.unique(problems))
    return share_of_variance(
        f1,
        float((spread**2).sum()) * telling / max(1, telling - 1),
        problems=telling,
        independent=min(len(np.unique(problems[kind])) for kind in (wrong, ~wrong)),
        values=len(answers),
    )
