"""Parallel tempering: particle Gibbs chains at several inverse temperatures that exchange their references."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np

from motes.arguments import fit, whole_number
from motes.core import Result
from motes.errors import ConfigurationError
from motes.methods.particle_filter import FilterSettings
from motes.methods.particle_gibbs import ParticleGibbs
from motes.methods.population import Population
from motes.methods.run import Run
from motes.methods.sweep import Sweep, share


@dataclass(frozen=True)
class ParallelTempering(FilterSettings):
    """K particle Gibbs chains; after each sweep neighbouring chains may exchange their references.

        ladder             1 = β_1 > β_2 > … > β_K ≥ 0
        target of chain k  π_k(x) ∝ p(x) · Φ(x)^β_k
        swap k, k+1        with probability min(1, exp((β_k − β_{k+1}) · (log Φ(x^{k+1}) − log Φ(x^k))))

    Pairs (1, 2), (3, 4), … may swap after even sweeps, (2, 3), (4, 5), … after odd ones. Every move leaves the product
    of the π_k invariant. The posterior is that of the chain at β = 1; hotter chains, for which the reward is flatter,
    find other answers for it. Φ is the accumulated potential of a complete answer, as for `ParticleGibbs`; with
    "absolute", H is the number of rounds of the first sweep at β = 1. `Result.swap_rates` has the share of accepted
    swaps; records have the chain's number.

    Source: arXiv 2502.01618 (stated there, never run); Geyer (1991) for the swap.

    Args:
        num_particles: N of each sweep of each chain.
        num_sweeps: of each chain.
        ladder: the β_k, multiplied by `beta`.
        burn_in: number of first sweeps of the chain at β = 1 that the posterior leaves out.
        others: see `FilterSettings`, errors as there; `resampling` is multinomial.
    """

    num_particles: int
    num_sweeps: int = 4
    ladder: tuple[float, ...] = field(default=(1.0, 0.5), kw_only=True)
    burn_in: int = field(default=0, kw_only=True)
    resampling: str = field(default="multinomial", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        ladder = self.ladder
        steps = all(hot < cold for cold, hot in itertools.pairwise(ladder))
        if not ladder or ladder[0] != 1.0 or not steps or not ladder[-1] >= 0.0:
            raise ConfigurationError(f"the ladder must begin with 1, fall strictly and end at 0 or above, not {ladder}")
        self.chain(1.0)  # checks the other settings

    def chain(self, beta: float) -> ParticleGibbs:
        """The chain at β = `beta`."""
        settings = {**self.settings, "beta": self.beta * beta}
        return ParticleGibbs(self.num_particles, self.num_sweeps, burn_in=self.burn_in, **settings)

    @classmethod
    def of_budget(
        cls, budget: int, *, num_sweeps: int = 4, ladder: tuple[float, ...] = (1.0, 0.5), **settings: Any
    ) -> Self:
        """Chains of `num_sweeps` sweeps of budget/(num_sweeps·K) particles.

        Raises:
            ConfigurationError: the budget is not a multiple of num_sweeps·K, or leaves fewer than 2 particles.
        """
        num_sweeps, ladder = whole_number("num_sweeps", num_sweeps), fit("ladder", ladder, tuple[float, ...])
        num_particles = share(budget, "num_sweeps or ladder", num_sweeps * len(ladder))
        return cls(num_particles, num_sweeps, ladder=ladder, **settings)

    @property
    def budget(self) -> int:
        return self.num_particles * self.num_sweeps * len(self.ladder)

    async def run(self, run: Run) -> Result:
        chains = [self.chain(beta) for beta in self.ladder]
        references: Sequence[Population | None] = [None] * len(chains)
        horizon = None
        sweeps: list[Sweep] = []  # of the chain at β = 1
        swaps: list[list[bool]] = [[] for _ in chains[1:]]  # whether proposals between k and k + 1 were accepted
        for number in range(self.num_sweeps):
            moves = [
                partial(chain.filter.sweep, number=number, reference=reference, horizon=horizon)
                for chain, reference in zip(chains, references, strict=True)
            ]
            latest = await run.side_by_side(moves)
            if number and run.limits.stopped is not None:  # during this sweep, which is incomplete
                break
            sweeps.append(latest[0])
            if run.limits.stopped is not None or (number + 1 < self.num_sweeps and run.exhausted()):
                break
            horizon = sweeps[0].num_rounds
            drawn = [sweep.draw(run.rng) for sweep in latest]
            for k in range(number % 2, len(chains) - 1, 2):
                swaps[k].append(self._swaps(run.rng, drawn[k], drawn[k + 1], k, horizon))
                if swaps[k][-1]:
                    drawn[k], drawn[k + 1] = drawn[k + 1], drawn[k]
            references = drawn
        result = await chains[0].conclude_chain(run, sweeps)
        rates = tuple(sum(accepted) / len(accepted) if accepted else math.nan for accepted in swaps)
        return replace(result, swap_rates=rates)

    def _swaps(self, rng: np.random.Generator, cold: Population, hot: Population, k: int, horizon: int) -> bool:
        """Whether chains k and k + 1, whose references are `cold` and `hot`, exchange them."""
        log_phi = self.log_weights_of(Population.concatenate([cold, hot]), horizon)
        log_ratio = (self.ladder[k] - self.ladder[k + 1]) * (log_phi[1] - log_phi[0])
        return bool(rng.random() < math.exp(min(0.0, log_ratio)))
