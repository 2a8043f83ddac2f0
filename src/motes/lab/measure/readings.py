"""What a reward model says of partial answers: taken down in a pilot, and said again of chains.

A reward model seldom is what theory makes of it. Some mistakes it notices at once, and some never; it may be sure of
little and still know much; what it says of a step depends on what it said of the one before. No two numbers tell all
that, so that nothing is fitted here: `Readings.next` draws what is said next from what was said in the pilot after
about the same, about as far into an answer.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from motes.lab.run.records import RunRecord
from motes.methods.potential import log_potential

FloatArray = npt.NDArray[np.float64]

NEIGHBOURS = 40
"""Of what was said in the pilot, so much that comes next to the same is drawn from."""
PARTS = 8
"""Of an answer's length, within which as much is said as within the whole: other parts are left out of account."""
NEAREST = 400
"""So many readings at least are looked at for each part."""
BINS = 16
"""Of changes of a logit, where first mistakes are inferred from them."""
ROUNDS = 30
"""Of that inference."""
TINY = 1e-12
"""No chance is taken for smaller, where its logarithm counts."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class ReadAnswer:
    """One complete answer as the reward model saw it.

    Attributes:
        problem: its id.
        logits: (T,) of its steps' scores.
        mistake: the place of its first wrong step; None where all are right.
        right: whether its final answer is.
    """

    problem: str
    logits: tuple[float, ...]
    mistake: int | None
    right: bool

    @property
    def is_lucky(self) -> bool:
        """Whether it is right in spite of a mistake."""
        return self.right and self.mistake is not None


def answers_read(samples: Iterable[RunRecord]) -> list[ReadAnswer]:
    """The complete answers all of whose steps have scores; where nobody checked the steps, with the places of their
    first mistakes as `infer_mistakes` finds them."""
    found, checked = [], False
    for record in samples:
        prefixes = record.prefixes
        if prefixes is None:
            continue
        for end, is_right in zip(prefixes.ends, record.right, strict=True):
            path = prefixes.path(end)
            scores = [prefixes.scores[step] for step in path]
            if not path or any(score is None for score in scores):
                continue
            marks = [prefixes.right[step] for step in path] if prefixes.right else []
            checked |= any(mark is not None for mark in marks)
            mistake = next((place for place, mark in enumerate(marks) if mark is False), None)
            logits = log_potential(np.array(scores, dtype=float), "odds", 1.0)
            found.append(ReadAnswer(record.problem_id, tuple(logits.tolist()), mistake, is_right is True))
    return found if checked else infer_mistakes(found)


class _Pool(NamedTuple):
    """Readings of one kind, by what was said before them."""

    befores: list[float]
    logits: list[float]


class Readings:
    """Says of prefixes what was said in a pilot, a `motes.lab.chains.Reader`.

    Args:
        answers: of the pilot, one at least.
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
        self._pools = {kind: np.array(each) for kind, each in pools.items()}
        self._sorted: dict[tuple[bool, bool, bool, int], _Pool] = {}

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """See `motes.lab.chains.Reader`."""
        known = self._near((before is None, was_right, is_right), round(PARTS * share))
        values = known.logits
        if before is not None:
            middle = (bisect_left(known.befores, before) + bisect_right(known.befores, before)) // 2
            first = max(0, min(middle - NEIGHBOURS // 2, len(values) - NEIGHBOURS))
            values = sorted(values[first : first + NEIGHBOURS])
        return values[min(int(_NORMAL.cdf(normal) * len(values)), len(values) - 1)]

    def with_auroc(self, auroc: float) -> Readings | Better:
        """The same, with so much more said against wrong prefixes that a right one has the larger score with this
        chance, among those that are as far into an answer; itself where that is so already."""
        parts: dict[int, tuple[list[float], list[float]]] = {}
        for (_, _, is_right), pool in self._pools.items():
            for share, _, logit in pool:
                parts.setdefault(round(PARTS * share), ([], []))[is_right].append(logit)
        differences = np.concatenate(
            [np.subtract.outer(_some(right), _some(wrong)).ravel() for wrong, right in parts.values()]
        )
        gap = -float(np.quantile(differences, 1 - auroc)) if len(differences) else 0.0
        return Better(self, gap) if gap > 0 else self

    def _near(self, kind: tuple[bool, bool, bool], part: int) -> _Pool:
        """What was said about so far into an answer. First steps follow nothing: their logits are in order."""
        if (*kind, part) not in self._sorted:
            pool = self._pools.get(kind)
            if pool is None:  # no first step was ever wrong, say: as later ones; or nothing ever was
                others = [pool for other, pool in self._pools.items() if other[2] == kind[2]]
                pool = np.concatenate(others or list(self._pools.values()))
            nearest = np.argsort(np.abs(pool[:, 0] - part / PARTS), kind="stable")
            pool = pool[nearest[: max(NEAREST, len(pool) // (PARTS - 2))]]
            is_first, *_ = kind
            pool = pool[np.argsort(pool[:, 2 if is_first else 1], kind="stable")]
            self._sorted[*kind, part] = _Pool(pool[:, 1].tolist(), pool[:, 2].tolist())
        return self._sorted[*kind, part]


def _some(values: Sequence[float]) -> FloatArray:
    """At most a thousand of them, evenly."""
    found = np.sort(values)
    return found[:: max(1, len(found) // 1000)]


@dataclass(frozen=True)
class Better:
    """A reader that says less of wrong prefixes, by a constant on the logit.

    Args:
        gap: that constant.
    """

    reader: Readings
    gap: float

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """See `motes.lab.chains.Reader`."""
        said = before if before is None or was_right else before + self.gap
        logit = self.reader.next(said, was_right, is_right, share, normal)
        return logit if is_right else logit - self.gap


def infer_mistakes(answers: Sequence[ReadAnswer]) -> list[ReadAnswer]:
    """The same with the place of each answer's first mistake, where its scores suggest that it is: drawn with the
    chance that it is there. A right answer may have one, too; a wrong one must.

    A hidden Markov model of two states: right so far, and wrong since. How logits change from step to step while an
    answer is right, at its first mistake, and after it, as histograms; the chance of a mistake at a step; and that of
    an answer with a mistake to be right nevertheless: all are found together with the places of the mistakes, by
    expectation maximisation (Dempster, Laird, Rubin 1977).
    """
    if not any(answer.right for answer in answers) or all(answer.right for answer in answers):
        return [answer if answer.right else replace(answer, mistake=0) for answer in answers]
    changes = [np.diff(np.array((0.0, *answer.logits))) for answer in answers]
    edges = np.quantile(np.concatenate(changes), np.linspace(0, 1, BINS + 1)[1:-1])
    # Steps are of two kinds, the first one and later ones, whose changes are of different sizes.
    seen = [(np.minimum(np.arange(len(each)), 1), np.searchsorted(edges, each)) for each in changes]
    # (T + 1,) the chances of an answer that its first mistake is at each step, and that it has none.
    chances = [
        np.append(np.full(len(each), (0.1 if answer.right else 1.0) / len(each)), 0.9 if answer.right else 0.0)
        for answer, each in zip(answers, changes, strict=True)
    ]
    for _ in range(ROUNDS):
        histograms, mistakes, reached, lucky = np.ones((3, 2, BINS)), 0.0, 0.0, 0.0
        for answer, where, chance in zip(answers, seen, chances, strict=True):
            at, passed = chance[:-1], np.cumsum(chance)[:-1]
            for histogram, share in zip(histograms, (1 - passed, at, passed - at), strict=True):
                np.add.at(histogram, where, share)
            mistakes += passed[-1]
            reached += float(np.sum(1 - passed + at))
            lucky += passed[-1] if answer.right else 0.0
        while_right, at_one, after = np.log(histograms / histograms.sum(axis=2, keepdims=True))
        hazard, luck = mistakes / reached, lucky / mistakes
        for i, (answer, where) in enumerate(zip(answers, seen, strict=True)):
            fine = np.append(0.0, np.cumsum(while_right[where] + math.log1p(-hazard)))
            since = np.append(np.cumsum(after[where][::-1])[::-1], 0.0)[1:]
            outcome = luck if answer.right else 1 - luck
            logs = fine[:-1] + at_one[where] + math.log(hazard) + since + math.log(max(outcome, TINY))
            logs = np.append(logs, fine[-1] if answer.right else -math.inf)
            chances[i] = np.exp(logs - logs.max())
            chances[i] /= chances[i].sum()
    rng = np.random.default_rng(0)
    found = []
    for answer, chance in zip(answers, chances, strict=True):
        place = int(rng.choice(len(chance), p=chance))
        found.append(replace(answer, mistake=None if place == len(answer.logits) else place))
    return found
