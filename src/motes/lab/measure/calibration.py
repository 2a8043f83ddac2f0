"""Are scores probabilities? Fit a map that makes them so, and measure them before and after on held-out answers.

A labelled file is JSON Lines. A line holds an answer, or the beginning of one, as text, or its score:

    {"question": "What is 2+2?", "steps": ["2+2 is two twos.", "So \\boxed{4}."], "label": 1}
    {"question": "What is 2+2?", "text": "2+2 is two twos.\n\nSo \\boxed{5}.", "label": 0}
    {"question": "What is 2+2?", "score": 0.31, "label": 0}

`label` says whether the answer is right up to and including the last step: 1 or 0. `score` is the reward model's score
of the last step; a question beside a score only tells which answers belong together.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from motes.core import Failure, Problem, Scores, Step, Trajectory, Usage
from motes.errors import ConfigurationError, MotesError, RewardError, UnreadableFileError
from motes.lab.measure.reliability import brier_score, expected_calibration_error
from motes.lab.measure.statistics import FloatArray, numbered
from motes.protocols import RewardModel
from motes.rewards.calibration import Calibration
from motes.text import parse_json, read_text

BATCH = 256
"""Number of answers in one call of the reward model."""


@dataclass(frozen=True)
class Labelled:
    """A labelled answer: its steps, or its score, or both."""

    label: int
    question: str | None = None
    steps: tuple[str, ...] = ()
    score: float | None = None

    @property
    def trajectory(self) -> Trajectory:
        """The answer, finished."""
        node = Trajectory(Problem(self.question))
        for step in self.steps[:-1]:
            node = node.extend(Step(step if step.endswith("\n") else step + "\n\n", "step"))
        return node.extend(Step(self.steps[-1], "eos"))


@dataclass(frozen=True)
class HeldOut:
    """How far scores are from probabilities, before and after calibration by maps fitted to other answers.

    Attributes:
        folds: number of parts of the answers; all answers to one question are in the same part.
        ece: expected calibration error (before, after), see `expected_calibration_error`.
        brier: mean squared difference between probability and label (before, after).
    """

    folds: int
    ece: tuple[float, float]
    brier: tuple[float, float]


def read_labelled(path: Path) -> list[Labelled]:
    """The labelled answers of a file.

    Raises:
        ConfigurationError: the file cannot be read, or a line does not have the format of the module's docstring.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(path, error) from error
    answers = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                answers.append(_labelled_from_json(parse_json(line)))
            except ValueError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from error
    return answers


def _labelled_from_json(line: Any) -> Labelled:
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    label, score = line.get("label"), line.get("score")
    if label not in (0, 1):
        raise ValueError(f"`label` must be 0 or 1, not {label!r}")
    if score is not None and not (isinstance(score, (int, float)) and 0 <= score <= 1):
        raise ValueError(f"`score` must be a number in [0, 1], not {score!r}")
    question, steps, text = line.get("question"), line.get("steps"), line.get("text")
    if steps is None and isinstance(text, str):
        steps = re.findall(r".+?(?:\n{2,}|\Z)", text, re.DOTALL)
    if score is None:
        if not (isinstance(question, str) and question.strip()):
            raise ValueError("it needs a `question`, or a `score`")
        if not (isinstance(steps, list) and steps and all(isinstance(step, str) for step in steps)):
            raise ValueError("it needs `steps`, a list of texts, or a `text`, or a `score`")
    return Labelled(int(label), question, tuple(steps or ()), None if score is None else float(score))


async def score_labelled(reward: RewardModel, answers: Sequence[Labelled]) -> tuple[list[Labelled], Usage]:
    """The answers, each with its own score or else with that of `reward`; and the cost. Answers that cannot be scored
    are left out.

    Raises:
        RewardError: no answer could be scored.
    """
    scored = [answer for answer in answers if answer.score is not None]
    new = [answer for answer in answers if answer.score is None]
    usage = Usage()
    failure: MotesError | None = None
    for start in range(0, len(new), BATCH):
        batch = new[start : start + BATCH]
        outcomes = await reward.score([answer.trajectory for answer in batch])
        for answer, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Failure):
                failure = failure or outcome.error
                continue
            usage += outcome.usage if isinstance(outcome, Scores) else Usage()
            scored.append(replace(answer, score=float(outcome[-1])))
    if not scored and failure is not None:
        raise RewardError(f"none of {len(new)} answers could be scored; the first: {failure}") from failure
    return scored, usage


def calibrate(
    answers: Sequence[Labelled], *, slope: float = 0.01, folds: int = 5, reward: str | None = None
) -> tuple[Calibration, HeldOut]:
    """Fit a calibration, with its provenance, to scored answers, and measure it on held-out ones.

    Args:
        slope: see `Calibration`; 0 is the isotonic regression itself.
        folds: number of parts for cross-validation, at least 2.
        reward: name of the reward model.

    Raises:
        ConfigurationError: there are too few answers or questions, no right answers, or no wrong ones.
    """
    if folds < 2:
        raise ConfigurationError(f"folds must be at least 2, not {folds}")
    labels = np.array([answer.label for answer in answers], dtype=np.float64)  # (n,)
    scores = np.array([answer.score for answer in answers], dtype=np.float64)
    if len(answers) < 10 or not 0 < labels.sum() < len(labels):
        raise ConfigurationError(
            f"{len(answers)} labelled answers, {int(labels.sum())} of them right: at least 10 are needed, some right "
            "and some wrong (hundreds, for a map to be trusted)"
        )
    # (n,) the number of each answer's question; an answer without a question has a number of its own
    questions = numbered(answer.question or (i,) for i, answer in enumerate(answers))
    num_questions = int(questions.max()) + 1
    folds = min(folds, num_questions)
    if folds < 2:
        raise ConfigurationError("all answers are to one question: give answers to several")
    fold = np.random.default_rng(0).permutation(num_questions)[questions] % folds  # (n,)
    after = np.empty_like(scores)
    for k in range(folds):
        calibration = _fit(scores[fold != k], labels[fold != k], slope)
        after[fold == k] = [calibration(score) for score in scores[fold == k]]
    held_out = HeldOut(
        folds,
        (expected_calibration_error(scores, labels), expected_calibration_error(after, labels)),
        (brier_score(scores, labels), brier_score(after, labels)),
    )
    provenance = {
        "reward": reward,
        "date": datetime.date.today().isoformat(),
        "labels": len(answers),
        "right": int(labels.sum()),
        "questions": num_questions,
        "held_out": asdict(held_out),
    }
    return replace(_fit(scores, labels, slope), provenance=MappingProxyType(provenance)), held_out


def _fit(scores: FloatArray, labels: FloatArray, slope: float) -> Calibration:
    """Isotonic regression, joined by straight lines. No probability is closer to 0 or 1 than n labels can show: 1/(n+2)
    by Laplace's rule."""
    levels = isotonic_regression(scores, labels)  # (n,)
    edge = 1 / (len(labels) + 2)
    order = np.argsort(scores, kind="stable")
    knots: dict[float, float] = {}
    for block in np.split(order, np.flatnonzero(np.diff(levels[order])) + 1):  # the scores at each level
        level = float(np.clip(levels[block[0]], edge, 1 - edge))
        knots[float(scores[block[0]])] = knots[float(scores[block[-1]])] = level
    return Calibration(tuple(knots), tuple(knots.values()), slope)


def isotonic_regression(scores: FloatArray, labels: FloatArray) -> FloatArray:
    """(n,) the least-squares fit to the labels that never decreases in the scores; equal scores have equal levels.

    Pool adjacent violators: as long as a level is not above the level before, both become their mean (Ayer et al., "An
    empirical distribution function for sampling with incomplete information", 1955). Both arguments have the shape
    (n,).
    """
    _, place = np.unique(scores, return_inverse=True)
    blocks: list[tuple[float, int, int]] = []  # sum of labels, number of labels, number of scores
    for total, size in zip(np.bincount(place, labels).tolist(), np.bincount(place).tolist(), strict=True):
        count = 1
        while blocks and blocks[-1][0] * size >= total * blocks[-1][1]:
            before = blocks.pop()
            total, size, count = total + before[0], size + before[1], count + before[2]
        blocks.append((total, size, count))
    levels = np.repeat([total / size for total, size, _ in blocks], [count for *_, count in blocks])
    return np.asarray(levels[place])
