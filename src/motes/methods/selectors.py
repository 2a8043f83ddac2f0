"""From a weighted population to one answer: the posterior over answers, four selectors, a last reweighting.

Answers are grouped by the task's equivalence; a group is named by its first member. Trajectories without an answer
keep their weight, so the posterior may sum to less than 1, but no selector chooses them while another has an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from motes.core import FloatArray, Result, Trajectory
from motes.errors import NoParticlesError
from motes.methods.population import Aggregation, Population
from motes.methods.run import Run
from motes.protocols import RewardModel
from motes.smc import Weights


@dataclass(frozen=True, eq=False)
class Candidates:
    """The trajectories that state an answer, without dropped ones.

    Attributes:
        index: (M,) their places in the population.
        answers: (M,) their answers, each named by the first one of its equivalence class.
        weights: (M,) their weights, normalised over the whole population: the sum may be less than 1.
        scores: (M,) their final scores; −inf if there is none.
    """

    index: list[int]
    answers: list[str]
    weights: FloatArray
    scores: FloatArray

    @classmethod
    def of(
        cls, population: Population, weights: Weights, answers: Sequence[str | None], aggregation: Aggregation
    ) -> Candidates:
        """The candidates of a population with these `answers`, (N,), see `Run.answers`."""
        stated = {i: answer for i, answer in enumerate(answers) if answer is not None}
        index = list(stated)
        scores = np.nan_to_num(population.aggregate(aggregation), nan=-np.inf)
        return cls(index, list(stated.values()), weights.normalized[index], scores[index])

    def posterior(self) -> dict[str, float]:
        """Total weight of each distinct answer, largest first; ties in order of appearance."""
        return self.totals(self.weights)

    def totals(self, values: FloatArray) -> dict[str, float]:
        """Sum of `values`, (M,), over each distinct answer, as for `posterior`."""
        totals: dict[str, float] = {}
        for answer, value in zip(self.answers, values, strict=True):
            totals[answer] = totals.get(answer, 0.0) + float(value)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def mean_score(self, answer: str) -> float:
        """The weighted mean score of the candidates with `answer`, of which one must have weight."""
        weights = np.where([other == answer for other in self.answers], self.weights, 0.0)
        return float(np.average(np.where(weights > 0, self.scores, 0.0), weights=weights))

    def best_of(self, answer: str) -> int:
        """The candidate with `answer` that has the largest score; of equal ones the largest weight, then the first."""
        members = [m for m, other in enumerate(self.answers) if other == answer]
        return max(members, key=lambda m: (self.scores[m], self.weights[m], -m))


Selector = Callable[[np.random.Generator, Candidates], int]


def argmax(rng: np.random.Generator, candidates: Candidates) -> int:
    """The candidate with the largest final score (the paper's choice), the first of equal ones. A candidate of weight
    zero only if there is no other."""
    alive = candidates.weights > 0
    return int(np.argmax(np.where(alive, candidates.scores, -np.inf) if alive.any() else candidates.scores))


def sample(rng: np.random.Generator, candidates: Candidates) -> int:
    """A candidate at random, in proportion to its weight."""
    total = candidates.weights.sum()
    if total == 0:
        return argmax(rng, candidates)
    return int(rng.choice(len(candidates.index), p=candidates.weights / total))


def vote(rng: np.random.Generator, candidates: Candidates) -> int:
    """A candidate with the answer of the largest total weight, see `Candidates.best_of`."""
    return candidates.best_of(next(iter(candidates.posterior())))


def majority(rng: np.random.Generator, candidates: Candidates) -> int:
    """A candidate with the most frequent answer, whatever the weights."""
    return candidates.best_of(next(iter(candidates.totals(np.ones(len(candidates.index))))))


SELECTORS: Mapping[str, Selector] = MappingProxyType({f.__name__: f for f in (argmax, sample, vote, majority)})
"""The selectors by name. Each takes at least one candidate and returns a position among the candidates."""


def likeliest_texts(trajectories: Sequence[Trajectory], weights: Weights, scores: FloatArray) -> list[int]:
    """The places of trajectories with distinct texts, the likeliest text first, without dropped ones and empty texts.

    A text has the total weight of all trajectories with this text. Of equally likely texts, one that the model ended
    comes before one that was cut off, then the one with the better score, then the first.

    Args:
        trajectories: (N,)
        weights, scores: (N,) of the trajectories.
    """
    best = np.nan_to_num(scores, nan=-np.inf)

    def rank(i: int) -> tuple[bool, float]:
        return trajectories[i].finished in ("eos", "answer"), float(best[i])

    places: dict[str, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        if trajectory.finished != "failed" and (text := trajectory.text):
            places.setdefault(text, []).append(i)
    likeliest = sorted(
        places.values(), key=lambda same: (weights.normalized[same].sum(), *max(map(rank, same))), reverse=True
    )
    return [max(same, key=rank) for same in likeliest]


def score_weights(population: Population, aggregation: Aggregation = "last") -> Weights:
    """Each trajectory's final score as its weight; zero if it has none."""
    with np.errstate(divide="ignore"):
        return Weights(np.log(np.nan_to_num(population.aggregate(aggregation), nan=0.0)))


async def conclude(
    run: Run,
    population: Population,
    weights: Weights,
    selector: str,
    *,
    aggregation: Aggregation = "last",
    log_evidence: float | None = None,
) -> Result:
    """The result of a run with this final weighted population.

    If every weight is zero (a search with scores of 0; no time to score anything), all particles count the same, except
    dropped ones, whose weight stays zero. After the run's deadline answers are not compared: those with different texts
    count as different (`motes.methods.answers`).
    """
    weights = population.without_dropped(weights)
    if weights.degenerate:
        weights = population.without_dropped(Weights.uniform(len(population)))
    answers = await run.answers(population.trajectories)
    candidates = Candidates.of(population, weights, answers, aggregation)
    scores = population.aggregate(aggregation)
    answer, text = None, ""
    if candidates.index:
        chosen = candidates.index[SELECTORS[selector](run.rng, candidates)]
        answer, text = answers[chosen], population.trajectories[chosen].text
    elif likeliest := likeliest_texts(population.trajectories, weights, scores):  # a text is better than none
        text = population.trajectories[likeliest[0]].text
    return run.result(
        answer=answer,
        selector=selector,
        text=text,
        posterior=candidates.posterior(),
        answers=tuple(answers),
        trajectories=population.trajectories,
        log_weights=weights.log_weights,
        scores=scores,
        log_evidence=log_evidence,
    )


async def select_by_outcome(run: Run, result: Result, reward: RewardModel) -> Result:
    """The result with a new answer, selected by the method's own selector after a last reweighting.

        W'_i ∝ W_i · o(x_i)      over the trajectories that state an answer; their total weight does not change

    o(x) in [0, 1] is the score of the complete trajectory, the last score that `reward` returns. It also replaces the
    final score: "argmax" takes the largest o among trajectories with weight, "vote" and "sample" use W'. Each
    trajectory is scored once; those that `reward` cannot score are dropped. Log-evidence and records do not change.

    `reward` is not called for the selector "majority", which uses neither weights nor scores, or after a deadline. If
    every o is 0 the weights do not change. For a result without a selector, "argmax" is used.

    Source: reranking by a verifier, Cobbe et al. (arXiv 2110.14168); for "vote" Li et al. (arXiv 2206.02336).

    Raises:
        NoParticlesError: `reward` could score none of the answers.
    """
    if result.selector == "majority":
        return result
    n = len(result.trajectories)
    population = Population(result.trajectories, ((),) * n, np.zeros(n, dtype=bool))
    stated = [i for i, answer in enumerate(await run.answers(result.trajectories)) if answer is not None]
    population = await run.score(population, stated, reward)
    outcomes = population.aggregate()  # (N,), NaN where there is none
    scored = ~np.isnan(outcomes)
    if not scored.any():
        if errors := [error for i in stated if (error := population.trajectories[i].error) is not None]:
            raise NoParticlesError(
                f"{reward!r} could score none of {len(errors)} complete answers; the first: {errors[0]}"
            ) from errors[0]
        return replace(result, usage=run.usage, stopped=run.limits.stopped)
    weights = Weights(result.log_weights).normalized
    reweighted = weights * np.where(scored, outcomes, 1.0)
    if (mass := reweighted[scored].sum()) > 0:
        weights = np.where(scored, reweighted * (weights[scored].sum() / mass), reweighted)
    with np.errstate(divide="ignore"):
        chosen = await conclude(run, population, Weights(np.log(weights)), result.selector or "argmax")
    new = ("answer", "text", "posterior", "answers", "trajectories", "log_weights", "scores", "usage", "stopped")
    return replace(result, **{name: getattr(chosen, name) for name in new})
