"""The last word: another reward model chooses among the complete answers that a method weighted."""

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
    """The result with its answer chosen anew, by the method's own selector, after a last reweighting.

        W'_i ∝ W_i · o(x_i)      over the trajectories that state an answer, whose share in the total weight stays

    o(x) in [0, 1] is the score of the whole answer, the last of those that `reward` gives. It takes the place of the
    final score as well: "argmax" takes the largest o among those with weight, "vote" and "sample" go by W'. Each
    answer is read once; those that `reward` cannot score are dropped. Log-evidence and records stay.

    Nothing is asked where "majority" decides, which looks at neither weight nor score, and after a deadline. Where
    every o is 0 the weights stay as they are. Of a method that does not say how it chose, "argmax" is taken.

    Source: reranking by a verifier, Cobbe et al. (arXiv 2110.14168); for "vote" Li et al. (arXiv 2206.02336).

    Raises:
        NoParticlesError: `reward` could score none of the answers.
    """
    if result.selector == "majority":
        return result
    n = len(result.trajectories)
    population = Population(result.trajectories, ((),) * n, np.zeros(n, dtype=bool))
    states = [answer is not None for answer in await run.answers(result.trajectories)]
    population = await run.score(population, np.flatnonzero(states), reward)
    outcomes = population.aggregate()  # (N,), NaN where there is none
    scored = ~np.isnan(outcomes)
    failures = [t.error for t, stated in zip(population.trajectories, states, strict=True) if stated and t.error]
    if not scored.any():
        if failures:
            raise NoParticlesError(
                f"{reward!r} could score none of {len(failures)} complete answers; the first: {failures[0]}"
            ) from failures[0]
        return dataclasses.replace(result, usage=run.usage, stopped=run.limits.stopped)
    weights = Weights(result.log_weights).normalized
    moved = weights * np.where(scored, outcomes, 1.0)
    if (mass := moved[scored].sum()) > 0:
        weights = np.where(scored, moved * (weights[scored].sum() / mass), moved)
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
