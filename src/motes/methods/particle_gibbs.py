"""Particle Gibbs: a Markov chain over answers whose moves are conditional particle filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from motes.arguments import whole_number
from motes.core import Result
from motes.errors import ConfigurationError
from motes.methods.particle_filter import FilterSettings, ParticleFilter
from motes.methods.run import Run
from motes.methods.sweep import Sweep, pool, share


@dataclass(frozen=True)
class ParticleGibbs(FilterSettings):
    """`num_sweeps` particle filters, each except the first conditional on a trajectory drawn from the previous one.

        x^0 ~ PF                          the first sweep: a plain particle filter, its reference drawn by weight
        x^s ~ cPF(· | x^{s−1})            one slot holds x^{s−1}; a new reference is drawn with the final weights
        posterior = mean over s > burn_in of Σ_i W_i^s δ(x_i^s)

    Target: that of the potential (`motes.methods.potential`), p(x) · Φ(x), for any N ≥ 2. Every move leaves it
    invariant, so that the bias of a small filter vanishes as the number of sweeps grows. In round t the reference has
    the weight of its first t steps, and the free slots may resample its prefix.

    With "increment", Φ(x) = φ(x_≤T). With "absolute" the plain filter counts a finished answer's last φ again while it
    waits for others, which defines a target only for a given number of rounds H. H is the first sweep's number of
    rounds; the later sweeps target Φ(x) = Π_{t ≤ max(H, T)} φ(x_≤min(t, T)): an answer shorter than H waits until H,
    and no answer waits for one longer than H.

    `Result.log_evidence` is the first sweep's, the only one whose Ẑ is unbiased. In conditional sweeps that start in
    the target, E[1/Ẑ] = 1/Z; records have their Ẑ.

    Source: Andrieu, Doucet, Holenstein, "Particle Markov chain Monte Carlo methods" (2010); for language models
    arXiv 2502.01618, algorithm 2, but for the reference's weight, which there is not that of its own prefix.

    Args:
        num_particles: N of each sweep, the reference included; at least 2 if there is more than one sweep.
        num_sweeps: at least 1.
        burn_in: number of first sweeps that the posterior leaves out; less than `num_sweeps`.
        others: see `FilterSettings`, errors as there; `resampling` is multinomial, the only scheme that is valid with a
            reference.
    """

    num_particles: int
    num_sweeps: int = 4
    burn_in: int = field(default=0, kw_only=True)
    resampling: str = field(default="multinomial", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("num_particles", self.num_particles, least=1)
        whole_number("num_sweeps", self.num_sweeps, least=1)
        if self.num_sweeps > 1 and self.num_particles < 2:
            raise ConfigurationError("a sweep beside its reference needs num_particles of at least 2, or num_sweeps=1")
        if self.resampling != "multinomial":
            raise ConfigurationError(
                f"{self.resampling} resampling is not valid beside a reference: use resampling='multinomial'"
            )
        if not 0 <= self.burn_in < self.num_sweeps:
            raise ConfigurationError(f"burn_in must be at least 0 and less than num_sweeps, not {self.burn_in}")

    @classmethod
    def of_budget(cls, budget: int, *, num_sweeps: int = 4, **settings: Any) -> Self:
        """`num_sweeps` sweeps of budget/num_sweeps particles.

        Raises:
            ConfigurationError: the budget is not a multiple of `num_sweeps`, or leaves fewer than 2 particles.
        """
        return cls(share(budget, "num_sweeps", num_sweeps), num_sweeps, **settings)

    @property
    def budget(self) -> int:
        return self.num_particles * self.num_sweeps

    @property
    def filter(self) -> ParticleFilter:
        """The filter that makes each sweep."""
        return self.filter_of(self.num_particles)

    async def run(self, run: Run) -> Result:
        sweeps = [await self.filter.sweep(run)]
        while len(sweeps) < self.num_sweeps and not run.exhausted():
            reference = sweeps[-1].draw(run.rng)
            latest = await self.filter.sweep(run, number=len(sweeps), reference=reference, horizon=sweeps[0].num_rounds)
            if run.limits.stopped is not None:  # during the sweep, which is incomplete
                break
            sweeps.append(latest)
        return await self.conclude_chain(run, sweeps)

    async def conclude_chain(self, run: Run, sweeps: Sequence[Sweep]) -> Result:
        """The result of a chain of these sweeps, of which the first `burn_in` do not count."""
        return await self.conclude(run, *pool(sweeps[self.burn_in :] or sweeps[-1:]), sweeps[0].log_evidence)
