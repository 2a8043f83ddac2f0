"""Majority vote that stops by itself: adaptive self-consistency (arXiv 2305.11860)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import Result, Trajectory
from motes.errors import ConfigurationError
from motes.methods.run import Run
from motes.methods.selectors import conclude
from motes.methods.sequential import Draws, population_of
from motes.smc import Weights

Posterior = Literal["beta", "dirichlet"]


@dataclass(frozen=True)
class AdaptiveMajority:
    """The most frequent of at most N answers. It stops when the leading answer will most likely stay ahead.

    The answers are draws from unknown probabilities θ, with a uniform prior. After each answer, with v_1 ≥ v_2 ≥ … the
    numbers of votes:

        "beta"        P(θ_1 > θ_2 | v_1, v_2), θ_1/(θ_1 + θ_2) ~ Beta(v_1 + 1, v_2 + 1): other answers do not count
        "dirichlet"   P(θ_1 is the largest | v), θ ~ Dirichlet(v_1 + 1, v_2 + 1, …, 1), the last for an answer not seen

    It stops where that is at least `decided`, and where the leader cannot be overtaken any more. The answers, in order,
    are those of `Majority` with the same seed; with `decided` above 1, so is the result.

    Source: Aggarwal, Madaan, Yang, Mausam, "Let's sample step by step" (arXiv 2305.11860), whose default is "beta".

    Args:
        n: N, number of answers at most.
        decided: probability at which it stops; more than 1: only where the leader cannot be overtaken.
        posterior: "beta" or "dirichlet".
        num_in_flight: number of answers that are drawn at once. More are faster, and waste more tokens at the end; the
            answer does not depend on it.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    needs_reward: ClassVar[bool] = False

    n: int
    decided: float = 0.95
    posterior: Posterior = "beta"
    num_in_flight: int = 8

    def __post_init__(self) -> None:
        fit_fields(self)
        whole_number("n", self.n, least=1)
        whole_number("num_in_flight", self.num_in_flight, least=1)
        if not self.decided > 0.5:
            raise ConfigurationError(f"decided is a probability of more than 0.5, not {self.decided}")

    @property
    def budget(self) -> int:
        return self.n

    async def run(self, run: Run) -> Result:
        draws = Draws(run, self.n, self.num_in_flight, run.sampling)

        async def is_decided(trajectories: Sequence[Trajectory]) -> bool:
            return self._is_decided(await run.answers(trajectories))

        await draws.draw(self.n, is_enough=is_decided)
        trajectories = draws.trajectories
        population = population_of(trajectories)
        weights = Weights.uniform(len(trajectories))
        run.record(population, ancestors=np.arange(len(trajectories)), weights=weights, resampled=False)
        return await conclude(run, population, weights, "majority")

    def _is_decided(self, answers: Sequence[str | None]) -> bool:
        votes = sorted(Counter(answer for answer in answers if answer is not None).values(), reverse=True)
        if not votes:
            return False
        runner_up = votes[1] if len(votes) > 1 else 0
        if votes[0] - runner_up > self.n - len(answers):
            return True
        probability = beta_lead(votes) if self.posterior == "beta" else dirichlet_lead(votes)
        return probability >= self.decided


def beta_lead(votes: Sequence[int]) -> float:
    """P(θ_1 > θ_2) with a uniform prior for two answers, given their votes, the most first. Other votes do not count.

    P(Beta(v_1 + 1, v_2 + 1) > 1/2) = P(Binomial(v_1 + v_2 + 1, 1/2) > v_2), exactly.
    """
    first, second = votes[0], votes[1] if len(votes) > 1 else 0
    m = first + second + 1
    return float(sum(math.comb(m, j) for j in range(second + 1, m + 1)) / 2**m)


def dirichlet_lead(votes: Sequence[int]) -> float:
    """P(θ_1 is the largest) with a uniform prior for the answers seen and one that was not, given their votes, the most
    first.

    θ_i is proportional to independent Gamma(v_i + 1) numbers, so this is ∫ f_1(x) Π_{i>1} F_i(x) dx, with the density
    f_1 and the distribution functions F_i. F of Gamma(v + 1) at x is P(Poisson(x) > v). Integrated by the trapezoidal
    rule; the error is less than 1e−6.
    """
    shape = votes[0] + 1
    x = np.linspace(1e-9, shape + 12 * math.sqrt(shape) + 12, 4001)  # (points,)
    terms = np.cumsum([-x, *(np.log(x) - math.log(j) for j in range(1, votes[0] + 1))], axis=0)  # log e^−x x^j/j!
    poisson = np.exp(terms)  # (v_1 + 1, points): P(Poisson(x) = j)
    below = np.cumsum(poisson, axis=0)  # P(Poisson(x) ≤ j)
    integrand = poisson[-1] * np.prod([np.clip(1 - below[v], 0, 1) for v in (*votes[1:], 0)], axis=0)
    return float(min(1.0, np.trapezoid(integrand, x)))
