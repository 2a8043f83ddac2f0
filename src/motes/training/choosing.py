"""Choose the partial answers whose completions say most.

The probability to end right changes little along most steps of an answer, and much at a few: a mistake, or the step
that settles the matter. Between two prefixes of an answer that are known to be equally good, nothing is to be learnt.
So the next prefix to complete is the one halfway between two neighbours that differ most. For a wrong answer that is
the bisection of OmegaPRM (arXiv 2406.06592), which finds the first mistake.
"""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Literal, get_args

from motes.training.outcomes import Answer, Labels, Prefix

How = Literal["uncertain", "bisect", "uniform"]
"""How prefixes are chosen: "uncertain", as above; "bisect": the same, in wrong answers alone; "uniform": at random."""
WAYS: tuple[How, ...] = get_args(How)

KNOWN = 3
"""Number of completions from which on a prefix counts as known."""


def choose(labels: Labels, number: int, how: How, rng: random.Random) -> list[tuple[str, Prefix]]:
    """The next prefixes to complete, at most `number`, all different, and at most one of each answer.

    Returns:
        problems' ids and prefixes; fewer than `number` if no more are worth it.
    """
    answers = list(labels.answers)
    rng.shuffle(answers)
    if how == "uniform":
        candidates = [(1.0, answer.problem, prefix) for answer in answers if (prefix := _any(labels, answer, rng))]
    else:
        candidates = [
            (gap, answer.problem, prefix)
            for answer in answers
            if how == "uncertain" or not answer.right
            for gap, prefix in [_widest_gap(labels, answer)]
            if gap > 0
        ]
    best = sorted(candidates, key=lambda candidate: -candidate[0])
    return list(dict.fromkeys((problem, prefix) for _, problem, prefix in best))[:number]


def _known(labels: Labels, answer: Answer) -> list[int]:
    """The depths of an answer's prefixes whose outcomes are known: its end, and those with enough completions."""
    last = len(answer.steps)
    return [
        depth
        for depth in range(last + 1)
        if depth == last or depth == 0 or labels.of(answer.problem, answer.steps[:depth]).total >= KNOWN
    ]


def _widest_gap(labels: Labels, answer: Answer) -> tuple[float, Prefix]:
    """The largest difference of the means of two known neighbours that are more than a step apart, and the prefix
    halfway between them; 0 if there are none, or none that differ by more than their standard deviation."""
    depths = _known(labels, answer)
    outcomes = [labels.of(answer.problem, answer.steps[:depth]) for depth in depths[:-1]]
    means = [*(each.mean for each in outcomes), float(answer.right)]
    deviations = [*(each.deviation for each in outcomes), 0.0]
    widest: tuple[float, Prefix] = (0.0, ())
    for i, (start, stop) in enumerate(pairwise(depths)):
        gap = abs(means[i + 1] - means[i])
        if stop - start > 1 and gap > max(widest[0], math.hypot(deviations[i], deviations[i + 1])):
            widest = gap, answer.steps[: (start + stop) // 2]
    return widest


def _any(labels: Labels, answer: Answer, rng: random.Random) -> Prefix | None:
    """A prefix between the problem and the whole answer that is not known; None if there is none."""
    known = set(_known(labels, answer))
    rest = [depth for depth in range(1, len(answer.steps)) if depth not in known]
    return answer.steps[: rng.choice(rest)] if rest else None
