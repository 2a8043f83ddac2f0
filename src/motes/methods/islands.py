"""Islands: independent particle filters whose particles are pooled at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np

from motes.arguments import whole_number
from motes.core import Result
from motes.methods.particle_filter import FilterSettings
from motes.methods.run import Run
from motes.methods.sweep import pool, share, survivors
from motes.smc.weights import log_sum_exp


@dataclass(frozen=True)
class Islands(FilterSettings):
    """M particle filters that do not interact until the end.

        Ẑ = mean_m Ẑ_m
        combine = "evidence"    posterior = Σ_m Ẑ_m Σ_i W_i^m δ(x_i^m) / Σ_m Ẑ_m      weighted by their evidence
        combine = "equal"       posterior = Σ_m Σ_i W_i^m δ(x_i^m) / M                weighted equally

    Target: that of `ParticleFilter`. Ẑ is unbiased, and so is Ẑ·ΣWf if islands are weighted by their evidence. If they
    are weighted equally, the posterior has the bias of a filter of N particles for any M, and is consistent as N grows.

    A single filter may lose a good answer to one early resampling; islands compete at the end only, and equal ones not
    even then: an island that the reward model overrates has no more weight than another. Each island resamples by its
    own ESS. An island whose weights are all zero counts as Ẑ_m = 0 and has no weight. Under "absolute" finished answers
    of one island wait for those of the others as well.

    Source: Vergé, Dubarry, Del Moral, Moulines, "On parallel implementation of sequential Monte Carlo methods: the
    island particle model" (2015), without interaction.

    Args:
        num_particles: N ≥ 1, of each island.
        num_islands: M ≥ 1.
        combine: "evidence" or "equal".
        others: see `FilterSettings`; errors as there.
    """

    num_particles: int
    num_islands: int = 4
    combine: Literal["evidence", "equal"] = field(default="evidence", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("num_particles", self.num_particles, least=1)
        whole_number("num_islands", self.num_islands, least=1)

    @classmethod
    def of_budget(cls, budget: int, *, num_islands: int = 4, **settings: Any) -> Self:
        """`num_islands` islands of budget/num_islands particles.

        Raises:
            ConfigurationError: the budget is not a multiple of `num_islands`.
        """
        return cls(share(budget, "num_islands", num_islands), num_islands, **settings)

    @property
    def budget(self) -> int:
        return self.num_particles * self.num_islands

    async def run(self, run: Run) -> Result:
        island = self.filter_of(self.num_particles)
        sweeps = self.level(survivors(await run.side_by_side([island.try_sweep] * self.num_islands)))
        log_evidence = [sweep.log_evidence for sweep in sweeps]
        pooled = pool(sweeps, log_evidence if self.combine == "evidence" else None)
        log_mean = log_sum_exp(np.array(log_evidence)) - float(np.log(self.num_islands))
        return await self.conclude(run, *pooled, log_mean)
