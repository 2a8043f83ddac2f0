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
    stated = [i for i, answer in enumerate(await run.answers(result.trajectories)) if answer is not None]
    population = await run.score(population, stated, reward)
    outcomes = population.aggregate()  # (N,), NaN where there is none
    scored = ~np.isnan(outcomes)
    if not scored.any():
        if errors := [error for i in stated if (error := population.trajectories[i].error) is not None]:
            raise NoParticlesError(
                f"{reward!r} could score none of {len(errors)} complete answers; the first: {errors[0]}"
            ) from errors[0]
        return dataclasses.replace(result, usage=run.usage, stopped=run.limits.stopped)
    weights = Weights(result.log_weights).normalized
    reweighted = weights * np.where(scored, outcomes, 1.0)
    if (mass := reweighted[scored].sum()) > 0:
        weights = np.where(scored, reweighted * (weights[scored].sum() / mass), reweighted)
    with np.errstate(divide="ignore"):
        chosen = await conclude(run, population, Weights(np.log(weights)), result.selector or "argmax")
    new = ("answer", "text", "posterior", "answers", "trajectories", "log_weights", "scores", "usage", "stopped")
    return dataclasses.replace(result, **{name: getattr(chosen, name) for name in new})
