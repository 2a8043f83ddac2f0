"""Outcome rewards: another reward model selects from the complete trajectories that a method weighted."""

from __future__ import annotations

import dataclasses

import numpy as np

from motes.core import Result
from motes.errors import NoParticlesError
from motes.methods.population import Population
from motes.methods.run import Run
from motes.methods.selectors import conclude
from motes.protocols import RewardModel
from motes.smc import Weights


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
    has_answer = [answer is not None for answer in await run.answers(result.trajectories)]
    population = await run.score(population, np.flatnonzero(has_answer), reward)
    outcomes = population.aggregate()  # (N,), NaN where there is none
    scored = ~np.isnan(outcomes)
    failures = [t.error for t, has in zip(population.trajectories, has_answer, strict=True) if has and t.error]
    if not scored.any():
        if failures:
            raise NoParticlesError(
                f"{reward!r} could score none of {len(failures)} complete answers; the first: {failures[0]}"
            ) from failures[0]
        return dataclasses.replace(result, usage=run.usage, stopped=run.limits.stopped)
    weights = Weights(result.log_weights).normalized
    reweighted = weights * np.where(scored, outcomes, 1.0)
    if (mass := reweighted[scored].sum()) > 0:
        weights = np.where(scored, reweighted * (weights[scored].sum() / mass), reweighted)
    with np.errstate(divide="ignore"):
        chosen = await conclude(run, population, Weights(np.log(weights)), result.selector or "argmax")
    return dataclasses.replace(
        result,
        answer=chosen.answer,
        text=chosen.text,
        posterior=chosen.posterior,
        trajectories=chosen.trajectories,
        log_weights=chosen.log_weights,
        scores=chosen.scores,
        usage=run.usage,
        stopped=run.limits.stopped,
    )
