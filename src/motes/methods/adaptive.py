"""Adaptive budget: further particle filters run while the answer is uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from motes.aliases import renamed_argument
from motes.arguments import whole_number
from motes.core import Result
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.methods.particle_filter import FilterSettings
from motes.methods.run import Run
from motes.methods.selectors import Candidates
from motes.methods.sweep import Sweep, pool, survivors
from motes.smc.weights import log_sum_exp


@renamed_argument("num_particles", "max_particles")
@dataclass(frozen=True)
class AdaptiveFilter(FilterSettings):
    """At most N particles, in waves; the run ends when one answer has most of the posterior and good scores.

        sizes  N/2^{K−1}, N/2^{K−1}, N/2^{K−2}, …, N/2     each wave doubles the number of particles, up to N; first
                                                           waves smaller than `smallest` are merged
        mass of particle i of wave k:  n_k · Ẑ_k · W_i^k
        stop when the answer with the largest share of the mass has at least `decided`, and a mean score of `assured`

    A wave is an independent particle filter; waves are islands of unequal size, weighted by size and evidence. Easy
    problems end after the first wave, at 1/2^{K−1} of the budget.

    Target: that of `ParticleFilter`. If all waves run (`decided` above 1), Ẑ and Ẑ·ΣWf are unbiased. Otherwise stopping
    depends on the answers, and `Result.log_evidence` is an estimate without that guarantee. Under "absolute" finished
    answers of one wave wait for those of the others as well.

    Args:
        max_particles: N ≥ 1, the largest number of particles of all waves together; `sizes` has those of each wave.
        num_waves: K ≥ 1.
        decided: share of the posterior that ends the run; more than 1: never.
        smallest: smallest number of particles of the first wave (N if that is less). Few particles often agree by
            chance; a single one always does.
        assured: weighted mean final score that the particles with that answer must have as well, because few particles
            can agree on an answer with low scores; 0: the share alone decides.
        others: see `FilterSettings`; errors as there.
    """

    max_particles: int
    num_waves: int = 4
    decided: float = 0.8
    smallest: int = 8
    assured: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_particles", "num_waves", "smallest"):
            whole_number(name, getattr(self, name), least=1)
        if not 0 <= self.assured <= 1:
            raise ConfigurationError(f"assured is a score, from 0 to 1, not {self.assured}")
        if not self.decided > 0:
            raise ConfigurationError(f"decided is a share of the posterior, more than 0, not {self.decided}")

    @property
    def budget(self) -> int:
        return self.max_particles

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of particles of each wave. If N is too small for K waves, there are fewer."""
        totals = [-(-self.max_particles // 2**k) for k in reversed(range(self.num_waves))]
        enough = [total for total in totals[:-1] if total >= self.smallest]
        return tuple(int(size) for size in np.diff([0, *enough, self.max_particles]) if size)

    async def run(self, run: Run) -> Result:
        outcomes: list[Sweep | DegenerateWeightsError] = []  # of the waves
        sweeps: list[Sweep] = []
        for number, size in enumerate(self.sizes):
            if (sweeps and await self._is_decided(run, sweeps)) or (number and run.exhausted()):
                break
            outcome = await self.filter_of(size).try_sweep(run, number=number)
            if isinstance(outcome, Sweep):
                if sweeps and run.limits.stopped is not None:  # during the wave, which is incomplete
                    break
                sweeps.append(outcome)
            outcomes.append(outcome)
        sweeps = self.level(survivors(outcomes))
        num_drawn = sum(self.sizes[: len(outcomes)])
        log_evidence = log_sum_exp(np.array(_masses(sweeps))) - float(np.log(num_drawn))
        return await self.conclude(run, *pool(sweeps, _masses(sweeps)), log_evidence)

    async def _is_decided(self, run: Run, sweeps: Sequence[Sweep]) -> bool:
        """Whether one answer has the necessary share of the posterior and the necessary mean score."""
        sweeps = self.level(sweeps)
        population, weights = pool(sweeps, _masses(sweeps))
        if weights.degenerate:  # there was no time to score anything
            return False
        answers = await run.answers(population.trajectories)
        candidates = Candidates.of(population, weights, answers, self.aggregation)
        if not candidates.index:
            return False
        answer, share = next(iter(candidates.posterior().items()))
        return share >= self.decided and candidates.mean_score(answer) >= self.assured


def _masses(sweeps: Sequence[Sweep]) -> list[float]:
    """log(n_k Ẑ_k) of each wave."""
    return [sweep.log_evidence + float(np.log(len(sweep.population))) for sweep in sweeps]
