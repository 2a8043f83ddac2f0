"""The entropic particle filter: flatter early resampling, guided by a look one step ahead (arXiv 2510.05825)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from motes.core import FloatArray, IntArray
from motes.errors import ConfigurationError
from motes.methods.particle_filter import ParticleFilter
from motes.methods.population import Population
from motes.methods.potential import CLIP
from motes.methods.run import Run
from motes.smc import Weights

ANNEALED_UNTIL = 0.5
"""Annealing ends at this fraction of the expected number of steps, and pauses while ESS/N is at least as large."""

BLIND = 0.1
"""With the correction, the share of ancestors drawn without look-ahead: no offspring then weighs more than ten times
its weight without look-ahead (a defensive mixture, Hesterberg 1995), so that one bad look is not decisive."""


@dataclass(frozen=True)
class EntropicParticleFilter(ParticleFilter):
    """A particle filter that resamples ancestors with probabilities ρ other than their weights W.

        annealing     ρ_i ∝ w_i^(1/τ),  τ = max(1, (N/ESS) · (1 − t/T)),  while ESS/N < 1/2 and t/T < 1/2; else τ = 1
        look-ahead    ρ_i ∝ w_i^(1/τ) · G_{t+1}(x_≤t^i, x̃^i),  x̃^i ~ M(· | x_≤t^i): one more step, which is discarded
                      (with the correction, a tenth of the ancestors is drawn without look-ahead)
        correction    offspring of i start with weight W_i/ρ_i, rather than 1

    Target: with the correction that of `ParticleFilter`, and Ẑ and Ẑ·ΣWf are unbiased as well (the resampling
    probability is divided out again; look-ahead is an auxiliary particle filter, Pitt and Shephard 1999). Without the
    correction, as published, there is no target that can be stated: each annealed or guided round changes it.

    Cost: look-ahead extends and scores all unfinished particles once more in each round that resamples; `usage` counts
    this, the budget does not.

    Args:
        num_particles: N ≥ 1.
        annealing: whether early resampling is flatter.
        look_ahead: whether resampling is guided by one further step.
        correction: whether the target is preserved; False is the published form.
        expected_steps: T, the usual number of steps of answers (not their maximum).
        others: see `FilterSettings`; errors as there.
    """

    annealing: bool = True
    look_ahead: bool = False
    correction: bool = True
    expected_steps: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.expected_steps > 0 and np.isfinite(self.expected_steps)):
            raise ConfigurationError(f"expected_steps must be finite and above 0, not {self.expected_steps}")

    @classmethod
    def paper(cls, num_particles: int) -> Self:
        """As published: annealing over `ParticleFilter.paper`, without the correction."""
        return replace(super().paper(num_particles), correction=False)

    async def _resampling_probabilities(self, run: Run, population: Population, weights: Weights, t: int) -> FloatArray:
        tempered = Weights(weights.log_weights / self._temperature(weights, t))
        if not self.look_ahead:
            return tempered.normalized
        ahead = self._log_increment(await run.extend(population), waiting_counts=True)
        guided = tempered.add(np.maximum(ahead, np.log(CLIP)))  # never all weights zero
        blind = BLIND if self.correction else 0.0
        return (1 - blind) * guided.normalized + blind * tempered.normalized

    def _temperature(self, weights: Weights, t: int) -> float:
        """The temperature τ after t rounds."""
        progress = t / self.expected_steps
        share = weights.ess / len(weights)
        if not self.annealing or share >= ANNEALED_UNTIL or progress >= ANNEALED_UNTIL:
            return 1.0
        return max(1.0, (1.0 - progress) / share)

    def _weights_after_resampling(self, weights: Weights, probabilities: FloatArray, ancestors: IntArray) -> Weights:
        if not self.correction:
            return Weights.uniform(len(ancestors))
        return super()._weights_after_resampling(weights, probabilities, ancestors)
