"""From a weighted population to one answer: the posterior over answers, and four ways to choose.

Answers are grouped by the task's equivalence; a group is named by its first member. Trajectories without an answer
keep their weight, so the posterior may sum to less than 1, but no selector chooses them while another has an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from motes.methods.population import Aggregation, Population, Run
from motes.protocols import AnswerRule
from motes.smc import Weights
from motes.types import Result

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The trajectories that gave an answer; none that was dropped.

    Attributes:
        index: (M,) their places in the population.
        answers: (M,) their answers, each named by the first of its equivalence class.
        weights: (M,) their normalised weights (over the whole population: the sum may be less than 1).
        scores: (M,) their final scores, −inf where there is none.
    """

    index: list[int]
    answers: list[str]
    weights: FloatArray
    scores: FloatArray

    @classmethod
    def of(cls, population: Population, weights: Weights, rule: AnswerRule, aggregation: Aggregation) -> Candidates:
        index: list[int] = []
        answers: list[str] = []
        names: list[str] = []
        canonical: dict[str, str] = {}
        for i, trajectory in enumerate(population.trajectories):
            if trajectory.finished == "failed" or (answer := rule.answer(trajectory.text)) is None:
                continue
            if answer not in canonical:
                canonical[answer] = next((name for name in names if rule.equivalent(name, answer)), answer)
                if canonical[answer] == answer:
                    names.append(answer)
            index.append(i)
            answers.append(canonical[answer])
        scores = np.nan_to_num(population.aggregate(aggregation), nan=-np.inf)
        return cls(index, answers, weights.normalized[index], scores[index])

    def posterior(self) -> dict[str, float]:
        """Total weight of each distinct answer, largest first; ties in order of appearance."""
        return self._totals(self.weights)

    def counts(self) -> dict[str, float]:
        """Number of trajectories with each distinct answer, largest first; ties in order of appearance."""
        return self._totals(np.ones(len(self.index)))

    def _totals(self, values: FloatArray) -> dict[str, float]:
        totals: dict[str, float] = {}
        for answer, value in zip(self.answers, values, strict=True):
            totals[answer] = totals.get(answer, 0.0) + float(value)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def mean_score(self, answer: str) -> float:
        """Of those with `answer` and weight, which there must be, by weight."""
        weights = np.where([other == answer for other in self.answers], self.weights, 0.0)
        return float(np.average(np.where(weights > 0, self.scores, 0.0), weights=weights))

    def best_of(self, answer: str) -> int:
        """Among those with `answer`, the one with the largest score, then weight, then first."""
        members = [m for m, other in enumerate(self.answers) if other == answer]
        return max(members, key=lambda m: (self.scores[m], self.weights[m], -m))


Selector = Callable[[np.random.Generator, Candidates], int]


def argmax(rng: np.random.Generator, candidates: Candidates) -> int:
    """The largest final score (the paper's choice); the first of equals. Weight zero only where there is no other."""
    alive = candidates.weights > 0
    return int(np.argmax(np.where(alive, candidates.scores, -np.inf) if alive.any() else candidates.scores))


def sample(rng: np.random.Generator, candidates: Candidates) -> int:
    """One at random, in proportion to weight."""
    total = candidates.weights.sum()
    if total == 0:
        return argmax(rng, candidates)
    return int(rng.choice(len(candidates.index), p=candidates.weights / total))


def vote(rng: np.random.Generator, candidates: Candidates) -> int:
    """The answer with the largest total weight."""
    return candidates.best_of(next(iter(candidates.posterior())))


def majority(rng: np.random.Generator, candidates: Candidates) -> int:
    """The most frequent answer, weights aside."""
    return candidates.best_of(next(iter(candidates.counts())))


SELECTORS: Mapping[str, Selector] = MappingProxyType({f.__name__: f for f in (argmax, sample, vote, majority)})
"""The selectors by name. Each takes at least one candidate and returns a position among the candidates."""


def score_weights(population: Population, aggregation: Aggregation = "last") -> Weights:
    """Each trajectory's final score as its weight; zero where it has none."""
    with np.errstate(divide="ignore"):
        return Weights(np.log(np.nan_to_num(population.aggregate(aggregation), nan=0.0)))


def conclude(
    run: Run,
    population: Population,
    weights: Weights,
    selector: str,
    *,
    aggregation: Aggregation = "last",
    log_evidence: float | None = None,
) -> Result:
    """The result of a run whose final weighted population is given.

    Where every weight is zero (scores of 0 in a search; no time to score anything), all count the same, but for
    dropped particles, whose weight is zero.
    """
    weights = population.without_dropped(weights)
    if weights.degenerate:
        weights = population.without_dropped(Weights.uniform(len(population)))
    candidates = Candidates.of(population, weights, run.rule, aggregation)
    answers: list[str | None] = [None] * len(population)
    for i, name in zip(candidates.index, candidates.answers, strict=True):
        answers[i] = name
    answer = None
    text = ""
    if candidates.index:
        chosen = SELECTORS[selector](run.rng, candidates)
        answer = candidates.answers[chosen]
        text = population.trajectories[candidates.index[chosen]].text
    return run.result(
        answer=answer,
        selector=selector,
        text=text,
        posterior=candidates.posterior(),
        answers=tuple(answers),
        trajectories=population.trajectories,
        log_weights=weights.log_weights,
        scores=population.aggregate(aggregation),
        log_evidence=log_evidence,
    )
