"""Mix reward models: fit the weights of `motes.rewards.mixture` to evaluations of the same answers.

Each evaluation has another reward model, and otherwise the same settings and seeds: methods that sample whole answers
draw the same ones then. So a recorded evaluation is enough, also of a reward model that cannot score a text again, such
as the language model's own confidence.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from motes.errors import ConfigurationError
from motes.lab.measure.calibration import Labelled
from motes.lab.measure.reliability import Predictions
from motes.lab.measure.statistics import FloatArray, IntArray, Interval, numbered
from motes.lab.run.evaluation import RECORDS, read_configuration
from motes.lab.run.method_spec import draws_independently
from motes.lab.run.records import RunRecord, read_records
from motes.methods.potential import log_potential
from motes.rewards.mixture import Mixture

PENALTY = 1e-2
"""Of the squared weights, in units of the standard deviation of their logits, beside the mean log-likelihood of all
partial answers: it keeps the weights finite where a reward model separates right from wrong without an error."""

FEW = 10
"""The smallest number of right, and of wrong, partial answers."""


@dataclass(frozen=True, eq=False)
class Scored:
    """The partial answers of evaluations that have the same ones, one reward model each.

    Attributes:
        rewards: (K,) the specs of the reward models.
        scores: (n, K) in [0, 1].
        right: (n,) whether the partial answer is right.
        problems: (n,) the number of its problem.
        groups: (n,) the number of its problem and its number of steps: those that a method compares in one round.
        dropped: number of runs left out, because their answers differ or have no labels.
    """

    rewards: tuple[str, ...]
    scores: FloatArray
    right: npt.NDArray[np.bool_]
    problems: IntArray
    groups: IntArray
    dropped: int

    @classmethod
    def read(cls, directories: Sequence[Path]) -> Scored:
        """Read evaluations.

        Raises:
            ConfigurationError: one has no reward model, or they have no answers in common.
            RunDirectoryError: a directory holds no evaluation.
        """
        rewards = []
        for directory in directories:
            if (reward := read_configuration(directory).get("reward")) is None:
                raise ConfigurationError(f"{directory} has no reward model: there are no scores in it")
            rewards.append(str(reward))
        runs = [_by_run(read_records(directory / RECORDS)) for directory in directories]
        common = [key for key in runs[0] if all(key in others for others in runs[1:])]
        rows: list[tuple[tuple[float, ...], bool, str, int]] = []
        dropped = max(map(len, runs)) - len(common)
        for key in common:
            labelled = _labelled_scores([records[key] for records in runs])
            dropped += not labelled
            rows += [(scores, right, key[0], depth) for scores, right, depth in labelled]
        if not rows:
            raise ConfigurationError(
                "these evaluations have no answers in common: give all the same model, task, sampling, seeds, budgets "
                "and a method that samples whole answers (`--methods wbon`), and different reward models"
            )
        return cls(
            tuple(rewards),
            np.array([scores for scores, *_ in rows], dtype=np.float64),
            np.array([right for _, right, *_ in rows], dtype=bool),
            numbered(problem for *_, problem, _ in rows),
            numbered(row[2:] for row in rows),
            dropped,
        )

    def labelled(self) -> list[Labelled]:
        """The partial answers with the scores of the first reward model, for `motes.lab.measure.calibration`."""
        rows = zip(self.right, self.problems, self.scores[:, 0], strict=True)
        return [Labelled(int(right), str(problem), (), float(score)) for right, problem, score in rows]

    def auroc(self, values: FloatArray) -> Interval:
        """The AUROC of values, (n,), over pairs of the same problem with as many steps."""
        return Predictions(values, self.right, self.problems).auroc_within(self.groups)


@dataclass(frozen=True)
class HeldOutMixture:
    """How good a mixture is on problems that its weights were not fitted to.

    Attributes:
        folds: number of parts of the problems, each of which was held out once.
        members: (K,) the AUROC of each reward model, over pairs of the same problem with as many steps.
        mixture: that of the mixture.
        ece: expected calibration error of the mixture.
    """

    folds: int
    members: tuple[Interval, ...]
    mixture: Interval
    ece: float


def fit_mixture(scored: Scored, folds: int = 5) -> tuple[Mixture, HeldOutMixture]:
    """Fit the weights by logistic regression, and measure the mixture on held-out problems.

    Raises:
        ConfigurationError: there are fewer than two reward models, too few answers, or only one problem.
    """
    if len(scored.rewards) < 2:
        raise ConfigurationError("a mixture needs the evaluations of two reward models or more")
    num_right, num_problems = int(scored.right.sum()), int(scored.problems.max()) + 1
    if min(num_right, len(scored.right) - num_right) < FEW or num_problems < 2:
        raise ConfigurationError(
            f"{len(scored.right)} partial answers to {num_problems} problems, {num_right} of them right: at least "
            f"{FEW} right and {FEW} wrong ones to several problems are needed (hundreds, for weights to be trusted)"
        )
    logits = log_potential(scored.scores, "odds", beta=1.0)
    folds = min(folds, num_problems)
    fold = np.random.default_rng(0).permutation(num_problems)[scored.problems] % folds  # (n,)
    held_out = np.empty(len(scored.right))
    for k in range(folds):
        weights, bias = _regress(logits[fold != k], scored.right[fold != k])
        held_out[fold == k] = _sigmoid(logits[fold == k] @ weights + bias)
    weights, bias = _regress(logits, scored.right)
    quality = HeldOutMixture(
        folds,
        tuple(scored.auroc(column) for column in scored.scores.T),
        scored.auroc(held_out),
        Predictions(held_out, scored.right, scored.problems).expected_calibration_error(),
    )
    provenance: Mapping[str, object] = {
        "date": datetime.date.today().isoformat(),
        "labels": len(scored.right),
        "right": num_right,
        "questions": num_problems,
        "held_out": {"folds": folds, "auroc": quality.mixture.value, "ece": quality.ece},
    }
    mixture = Mixture(scored.rewards, tuple(map(float, weights)), float(bias))
    return replace(mixture, provenance=MappingProxyType(dict(provenance))), quality


def _by_run(records: Sequence[RunRecord]) -> dict[tuple[str, int, int], RunRecord]:
    """The records with scores of methods whose answers do not depend on them, by problem, budget and seed."""
    return {
        (record.problem_id, record.budget, record.seed): record
        for record in records
        if draws_independently(record.method) and record.outcome != "failed" and _has_scores(record)
    }


def _has_scores(record: RunRecord) -> bool:
    return record.prefixes is not None and any(score is not None for score in record.prefixes.scores)


def _labelled_scores(records: Sequence[RunRecord]) -> list[tuple[tuple[float, ...], bool, int]]:
    """For each partial answer of a run that has a label and all scores: the scores, (K,), the label, and its number of
    steps. Empty if the answers in the records differ."""
    trees = [record.prefixes for record in records if record.prefixes is not None]
    first, answers = trees[0], records[0].answers
    if any((tree.parents, tree.ends) != (first.parents, first.ends) for tree in trees):
        return []
    if any(record.answers != answers for record in records):
        return []
    labels = first.right or first.lead_to(records[0].right)
    columns = zip(*(tree.scores for tree in trees), strict=True)
    return [
        (tuple(score for score in scores if score is not None), label, depth)
        for scores, label, depth in zip(columns, labels, first.depths, strict=True)
        if label is not None and None not in scores
    ]


def _sigmoid(logits: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -700, 700))))


def _regress(logits: FloatArray, right: npt.NDArray[np.bool_]) -> tuple[FloatArray, float]:
    """The weights, (K,), and the bias of the logistic regression of `right`, (n,), on `logits`, (n, K): Newton's method
    on the standardised logits, with a penalty on the squares of their weights (`PENALTY`)."""
    mean, deviation = logits.mean(axis=0), logits.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    x = np.column_stack([(logits - mean) / deviation, np.ones(len(logits))])  # (n, K + 1)
    penalty = np.array([PENALTY] * (x.shape[1] - 1) + [0.0])
    theta = np.zeros(x.shape[1])
    for _ in range(100):
        p = _sigmoid(x @ theta)
        gradient = x.T @ (p - right) / len(x) + penalty * theta
        curvature = (x.T * (p * (1 - p))) @ x / len(x) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 3.0 / (np.abs(step).max() + 1e-12))  # far from the optimum Newton's step may be too long
        theta -= step
        if np.abs(step).max() < 1e-9:
            break
    weights = theta[:-1] / deviation
    bias = float(theta[-1] - weights @ mean)
    return weights, bias if math.isfinite(bias) else 0.0
