"""The examples that reward models are trained and tested on, and whether they are enough."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from motes.core import Problem, Step, Trajectory
from motes.errors import ConfigurationError
from motes.lab.measure.labelled_steps import LabelledSteps
from motes.lab.measure.reliability import Predictions
from motes.lab.measure.statistics import Interval, numbered
from motes.training.outcomes import Labels, Outcomes, Prefix

LEAST_TRAINED, LEAST_HELD_OUT = 30, 10
"""Number of problems with both right and wrong completions that are needed to train, and to test."""


@dataclass(frozen=True, eq=False)
class Example:
    """An answer, with the outcomes of its prefixes.

    Attributes:
        problem: a name that answers to the same problem have in common.
        path: (T,) the partial answers, of one step, of two, …; each continues the one before.
        outcomes: (T,) of each; without a completion if nothing is known, or another example has them.
    """

    problem: str
    path: tuple[Trajectory, ...]
    outcomes: tuple[Outcomes, ...]

    @property
    def answer(self) -> Trajectory:
        """The whole answer."""
        return self.path[-1]

    @property
    def counts(self) -> np.ndarray:
        """(T, 2) completions of each prefix that ended wrong, and right."""
        return np.array([(total - right, right) for right, total in self.outcomes], dtype=np.float32)


def examples_of_labels(labels: Labels, problem_of: Callable[[str], Problem]) -> list[Example]:
    """The examples of answers to problems. The outcomes of a prefix that several answers share are those of the first.

    Args:
        problem_of: returns a problem by its id.
    """
    roots: dict[str, Trajectory] = {}
    seen: set[tuple[str, Prefix]] = set()
    examples = []
    for answer in labels.answers:
        if not answer.steps:
            continue
        root = roots.setdefault(answer.problem, Trajectory(problem_of(answer.problem)))
        last = len(answer.steps) - 1
        steps = [Step(text, "eos" if place == last else "step") for place, text in enumerate(answer.steps)]
        path = tuple(accumulate(steps, Trajectory.extend, initial=root))[1:]
        outcomes = []
        for node in path:
            key = answer.problem, answer.steps[: node.depth]
            outcomes.append(Outcomes() if key in seen else labels.of(*key))
            seen.add(key)
        examples.append(Example(answer.problem, path, tuple(outcomes)))
    return examples


def examples_of_steps(rows: Iterable[LabelledSteps]) -> list[Example]:
    """The examples of labelled answers from a file of others. Each label counts as one completion."""
    examples = []
    for row in rows:
        nodes = row.trajectories()
        right = dict(zip(nodes, row.right, strict=True))
        for leaf in row.leaves:
            path = nodes[leaf].path
            known = [right.pop(node, None) for node in path]
            outcomes = tuple(Outcomes() if each is None else Outcomes(int(each), 1) for each in known)
            examples.append(Example(row.problem, path, outcomes))
    return examples


def split(examples: Sequence[Example], held_out: float) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those to test on: a share of the problems, chosen by their names, so that further
    problems leave it as it is."""
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        digest = hashlib.sha256(example.problem.encode()).digest()
        sides[int.from_bytes(digest[:4], "big") < held_out * 2**32].append(example)
    return sides


def require_enough(trained: Sequence[Example], held_out: Sequence[Example]) -> None:
    """Refuse data that cannot carry a reward model.

    Raises:
        ConfigurationError: too few problems have both right and wrong completions. The message says how many more
            problems are needed.
    """
    for examples, least, what in ((trained, LEAST_TRAINED, "train on"), (held_out, LEAST_HELD_OUT, "test on")):
        totals: dict[str, Outcomes] = defaultdict(Outcomes)
        for example in examples:
            totals[example.problem] = sum(example.outcomes, totals[example.problem])
        mixed = sum(0 < outcomes.right < outcomes.total for outcomes in totals.values())
        if mixed >= least:
            continue
        right, total = sum(totals.values(), Outcomes())
        more = f", about {round(len(totals) * (least - mixed) / mixed):,} problems more" if mixed else ""
        raise ConfigurationError(
            "a reward model learns from problems that are answered rightly at one time and wrongly at another: "
            f"{least} of them are needed to {what}, and {mixed} of {len(totals)} problems are such{more}. {right:,} "
            f"of {total:,} completions are right: take {'easier' if 2 * right < total else 'harder'} problems, or draw "
            "more answers to each"
        )


@dataclass(frozen=True)
class Quality:
    """How well scores predict the outcomes of held-out examples.

    Attributes:
        overall: AUROC over all pairs of prefixes.
        within: over pairs of prefixes of the same problem.
        abreast: over pairs of prefixes of the same problem with as many steps: what particles are chosen by.
        by_depth: `abreast` for each number of steps, from 1, with pairs.
        loss: mean negative log-likelihood of an outcome, in nats.
        calibration: expected calibration error.
    """

    overall: Interval
    within: Interval
    abreast: Interval
    by_depth: dict[int, Interval]
    loss: float
    calibration: float


def measure(examples: Sequence[Example], scores: Sequence[Sequence[float]]) -> Quality:
    """The quality of scores, (T,) for each of the examples. A prefix counts once for each of its completions."""
    rows = [
        (score, is_right, example.problem, node.depth)
        for example, values in zip(examples, scores, strict=True)
        for node, outcomes, score in zip(example.path, example.outcomes, values, strict=True)
        for is_right, times in ((True, outcomes.right), (False, outcomes.total - outcomes.right))
        for _ in range(times)
    ]
    predictions = Predictions.of([row[:3] for row in rows])
    overall, within = predictions.auroc()
    abreast = predictions.auroc_within(numbered(row[2:] for row in rows))
    by_depth = {}
    for depth in sorted({row[3] for row in rows}):
        at_depth = Predictions.of([row[:3] for row in rows if row[3] == depth])
        interval = at_depth.auroc_within(at_depth.problems)
        if np.isfinite(interval.value):
            by_depth[depth] = interval
    clipped = np.clip(predictions.values, 1e-6, 1 - 1e-6)
    loss = -np.mean(np.where(predictions.right, np.log(clipped), np.log1p(-clipped)))
    return Quality(overall, within, abreast, by_depth, float(loss), predictions.expected_calibration_error())
