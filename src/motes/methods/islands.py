"""Islands: independent particle filters, combined by their evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.methods.particle_filter import ParticleFilter
from motes.methods.population import Run
from motes.methods.sweep import Sweep, pool, share
from motes.smc.weights import log_sum_exp
from motes.types import Result


@dataclass(frozen=True)
class _Islands:
    """The first fields, before those of `ParticleFilter`."""

    num_particles: int
    num_islands: int = 4


@dataclass(frozen=True)
class Islands(ParticleFilter, _Islands):
    """M particle filters that never meet; each one's particles weigh as much as its evidence says.

        Ẑ = mean_m Ẑ_m        posterior = Σ_m Ẑ_m Σ_i W_i^m δ(x_i^m) / Σ_m Ẑ_m

    Target: that of `ParticleFilter`, where the same is unbiased: Ẑ, and Ẑ·ΣWf. A single filter may lose a good answer
    to one early resampling; islands do not compete before the end. Each resamples when its own ESS falls. An island
    all of whose weights are zero counts as Ẑ_m = 0.

    Source: Vergé, Dubarry, Del Moral, Moulines, "On parallel implementation of sequential Monte Carlo methods: the
    island particle model" (2015), without interaction.

    Args:
        num_particles: N of each island.
        num_islands: M ≥ 1.
        others: as for `ParticleFilter`.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    one_population: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_islands < 1:
            raise ConfigurationError(f"num_islands must be at least 1, not {self.num_islands}")

    @classmethod
    def of_budget(cls, budget: int, *, num_islands: int = 4, **settings: Any) -> Self:
        """`num_islands` islands of budget/num_islands particles.

        Raises:
            ConfigurationError: the budget is no multiple of `num_islands`.
        """
        return cls(share(budget, "num_islands", num_islands), num_islands, **settings)

    @property
    def budget(self) -> int:
        return self.num_particles * self.num_islands

    async def run(self, run: Run) -> Result:
        failures: list[DegenerateWeightsError] = []

        async def island(part: Run) -> Sweep | None:
            try:
                return await self.sweep(part)
            except DegenerateWeightsError as error:
                failures.append(error)
                return None

        sweeps = [sweep for sweep in await run.side_by_side([island] * self.num_islands) if sweep is not None]
        if not sweeps:
            raise failures[0]
        log_evidence = [sweep.log_evidence for sweep in sweeps]
        population, weights = pool(sweeps, log_evidence)
        log_mean = log_sum_exp(np.array(log_evidence)) - float(np.log(self.num_islands))
        return await self._conclude(run, population, weights, log_mean)
