"""A reward model's scores of partial answers, recorded in a pilot and resampled for chains.

Real reward models are not like those of theory. They notice some mistakes at once and others never; their scores may be
close to each other and still informative; and the score of a step depends on the score of the step before. Two
numbers cannot describe all that, so no model is fitted here: `Readings.next` samples the next score from the pilot's
scores after a similar score, about as far into an answer.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from motes.lab.run.records import RunRecord
from motes.methods.potential import log_potential

FloatArray = npt.NDArray[np.float64]

NEIGHBOURS = 40
"""The next score is sampled from this many scores of the pilot, those with the most similar score before them."""
PARTS = 8
"""Answers are divided into this many parts of equal length. A score is sampled from the same part of answers."""
MIN_POOL = 400
"""The least number of scores that each part has, if necessary from the parts beside it."""
BINS = 16
"""Number of bins of changes of the logit from which first mistakes are inferred."""
ROUNDS = 30
"""Number of iterations of that inference."""
TINY = 1e-12
"""Smaller probabilities are raised to this one before their logarithm is taken."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class ReadAnswer:
    """One complete answer with the reward model's scores.

    Attributes:
        problem: the problem's id.
        logits: (T,) of the scores of its steps.
        mistake: the place of its first wrong step; None if all steps are right.
        right: whether its final answer is right.
    """

    problem: str
    logits: tuple[float, ...]
    mistake: int | None
    right: bool

    @property
    def is_lucky(self) -> bool:
        """Whether the answer is right in spite of a mistake."""
        return self.right and self.mistake is not None


def answers_read(samples: Iterable[RunRecord]) -> list[ReadAnswer]:
    """The complete answers whose steps all have scores. If steps were not checked, `infer_mistakes` places mistakes."""
    answers, checked = [], False
    for record in samples:
        prefixes = record.prefixes
        if prefixes is None:
            continue
        for end, is_right in zip(prefixes.ends, record.right, strict=True):
            path = prefixes.path(end)
            scores = [prefixes.scores[step] for step in path]
            if not path or None in scores:
                continue
            marks = [prefixes.right[step] for step in path] if prefixes.right else []
            checked |= any(mark is not None for mark in marks)
            mistake = next((place for place, mark in enumerate(marks) if mark is False), None)
            logits = log_potential(np.array(scores, dtype=float), "odds", 1.0)
            answers.append(ReadAnswer(record.problem_id, tuple(logits.tolist()), mistake, is_right is True))
    return answers if checked else infer_mistakes(answers)


class Readings:
    """Samples scores of prefixes from those of a pilot: a `motes.lab.chains.Reader`.

    Args:
        answers: of the pilot, at least one.
    """

    def __init__(self, answers: Sequence[ReadAnswer]) -> None:
        pools: dict[tuple[bool, bool, bool], list[tuple[float, float, float]]] = {}
        for answer in answers:
            length = len(answer.logits)
            wrong_from = length if answer.mistake is None else answer.mistake
            for place, logit in enumerate(answer.logits):
                kind = (place == 0, place - 1 < wrong_from, place < wrong_from)
                before = answer.logits[place - 1] if place else 0.0
                pools.setdefault(kind, []).append(((place + 1) / length, before, logit))
        self._pools = {kind: np.array(pool) for kind, pool in pools.items()}  # (n, 3) share of length, before, logit
        self._sorted: dict[tuple[bool, bool, bool, int], tuple[list[float], list[float]]] = {}

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """See `motes.lab.chains.Reader`."""
        previous, logits = self._pool_of((before is None, was_right, is_right), round(PARTS * share))
        if before is not None:
            middle = (bisect_left(previous, before) + bisect_right(previous, before)) // 2
            first = max(0, min(middle - NEIGHBOURS // 2, len(logits) - NEIGHBOURS))
            logits = sorted(logits[first : first + NEIGHBOURS])
        return logits[min(int(_NORMAL.cdf(normal) * len(logits)), len(logits) - 1)]

    def with_auroc(self, auroc: float) -> Readings | Better:
        """A reader that scores wrong prefixes lower, so that of a right and a wrong prefix in the same part of an
        answer, the right one has the larger score with chance `auroc`; this reader itself if it does so already."""
        parts: dict[int, tuple[list[float], list[float]]] = {}
        for (_, _, is_right), pool in self._pools.items():
            for share, _, logit in pool:
                parts.setdefault(round(PARTS * share), ([], []))[is_right].append(logit)
        differences = np.concatenate(
            [np.subtract.outer(_thin(right), _thin(wrong)).ravel() for wrong, right in parts.values()]
        )
        gap = -float(np.quantile(differences, 1 - auroc)) if len(differences) else 0.0
        return Better(self, gap) if gap > 0 else self

    def _pool_of(self, kind: tuple[bool, bool, bool], part: int) -> tuple[list[float], list[float]]:
        """Two lists of logits: the scores before those of a kind and part, in ascending order, and these scores. First
        steps have no score before them, and are in ascending order of their own."""
        if (*kind, part) not in self._sorted:
            pool = self._pools.get(kind)
            if pool is None:  # no first step is wrong, say: take all other wrong steps, or else all steps
                others = [pool for other, pool in self._pools.items() if other[2] == kind[2]]
                pool = np.concatenate(others or list(self._pools.values()))
            nearest = np.argsort(np.abs(pool[:, 0] - part / PARTS), kind="stable")
            pool = pool[nearest[: max(MIN_POOL, len(pool) // (PARTS - 2))]]
            is_first, *_ = kind
            pool = pool[np.argsort(pool[:, 2 if is_first else 1], kind="stable")]
            self._sorted[*kind, part] = pool[:, 1].tolist(), pool[:, 2].tolist()
        return self._sorted[*kind, part]


def _thin(values: Sequence[float]) -> FloatArray:
    """About a thousand of the sorted values, at equal distances; all of them if there are fewer."""
    ordered = np.sort(values)
    return ordered[:: max(1, len(ordered) // 1000)]


@dataclass(frozen=True)
class Better:
    """A reader that scores wrong prefixes lower than another reader does, by the constant `gap` on the logit."""

    reader: Readings
    gap: float

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """See `motes.lab.chains.Reader`."""
        original = before if before is None or was_right else before + self.gap
        logit = self.reader.next(original, was_right, is_right, share, normal)
        return logit if is_right else logit - self.gap


def infer_mistakes(answers: Sequence[ReadAnswer]) -> list[ReadAnswer]:
    """The answers with the places of their first mistakes, each sampled from its probabilities given the answer's
    scores. A right answer may have a mistake; a wrong one must.

    A hidden Markov model has two states: right so far, and wrong since a mistake. Its parameters are histograms of how
    logits change from step to step while an answer is right, at its first mistake, and after it; the chance of a
    mistake at a step; and the chance that an answer with a mistake is right all the same. They are estimated together
    with the places of the mistakes by expectation maximisation (Dempster, Laird, Rubin 1977).
    """
    if not any(answer.right for answer in answers) or all(answer.right for answer in answers):
        return [answer if answer.right else replace(answer, mistake=0) for answer in answers]
    changes = [np.diff(np.array((0.0, *answer.logits))) for answer in answers]
    edges = np.quantile(np.concatenate(changes), np.linspace(0, 1, BINS + 1)[1:-1])
    # First and later steps have histograms of their own, because their changes differ in size.
    cells = [(np.minimum(np.arange(len(each)), 1), np.searchsorted(edges, each)) for each in changes]
    # For each answer, (T + 1,) the chances that its first mistake is at each step, and that it has none.
    chances = [
        np.append(np.full(len(each), (0.1 if answer.right else 1.0) / len(each)), 0.9 if answer.right else 0.0)
        for answer, each in zip(answers, changes, strict=True)
    ]
    for _ in range(ROUNDS):
        # 1. The parameters, from the chances.
        histograms, mistakes, reached, lucky = np.ones((3, 2, BINS)), 0.0, 0.0, 0.0
        for answer, cell, chance in zip(answers, cells, chances, strict=True):
            at, passed = chance[:-1], np.cumsum(chance)[:-1]
            for histogram, share in zip(histograms, (1 - passed, at, passed - at), strict=True):
                np.add.at(histogram, cell, share)
            mistakes += passed[-1]
            reached += float(np.sum(1 - passed + at))
            lucky += passed[-1] if answer.right else 0.0
        log_right, log_mistake, log_wrong = np.log(histograms / histograms.sum(axis=2, keepdims=True))
        hazard, luck = mistakes / reached, lucky / mistakes
        # 2. The chances, from the parameters.
        for i, (answer, cell) in enumerate(zip(answers, cells, strict=True)):
            before = np.append(0.0, np.cumsum(log_right[cell] + math.log1p(-hazard)))
            after = np.append(np.cumsum(log_wrong[cell][::-1])[::-1], 0.0)[1:]
            outcome = luck if answer.right else 1 - luck
            logs = before[:-1] + log_mistake[cell] + math.log(hazard) + after + math.log(max(outcome, TINY))
            logs = np.append(logs, before[-1] if answer.right else -math.inf)
            chances[i] = np.exp(logs - logs.max())
            chances[i] /= chances[i].sum()
    rng = np.random.default_rng(0)
    places = [int(rng.choice(len(chance), p=chance)) for chance in chances]
    return [
        replace(answer, mistake=None if place == len(answer.logits) else place)
        for answer, place in zip(answers, places, strict=True)
    ]
