"""The result of one sweep, and the pooled results of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from motes.arguments import whole_number
from motes.errors import ConfigurationError, DegenerateWeightsError
from motes.methods.population import Population
from motes.smc import Weights
from motes.smc.weights import log_sum_exp


@dataclass(frozen=True, eq=False)
class Sweep:
    """The result of a sweep: N finished particles, their weights since the last resampling, log Ẑ, number of rounds."""

    population: Population
    weights: Weights
    log_evidence: float
    num_rounds: int

    def draw(self, rng: np.random.Generator) -> Population:
        """(1,) a particle, sampled by weight."""
        return self.population.select([rng.choice(len(self.weights), p=self.weights.normalized)])


def pool(sweeps: Sequence[Sweep], log_masses: Sequence[float] | None = None) -> tuple[Population, Weights]:
    """The particles of several sweeps as one population. `log_masses`: log of each sweep's total weight; by default all
    have the same."""
    log_weights = []
    for sweep, mass in zip(sweeps, [0.0] * len(sweeps) if log_masses is None else log_masses, strict=True):
        log_total = 0.0 if sweep.weights.degenerate else log_sum_exp(sweep.weights.log_weights)
        log_weights.append(sweep.weights.log_weights - log_total + mass)
    return Population.concatenate(sweep.population for sweep in sweeps), Weights(np.concatenate(log_weights))


def survivors(outcomes: Sequence[Sweep | DegenerateWeightsError]) -> list[Sweep]:
    """The sweeps whose evidence is not zero. Raises the first error if there is none."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, DegenerateWeightsError)]
    if len(errors) == len(outcomes):
        raise errors[0]
    return [outcome for outcome in outcomes if isinstance(outcome, Sweep)]


def share(budget: int, name: str, parts: int) -> int:
    """The budget of each of `parts` equal parts. Raises a `ConfigurationError` if it is not a multiple of `parts`."""
    budget, parts = whole_number("budget", budget), whole_number(name, parts)
    if parts < 1 or budget < 1 or budget % parts:
        raise ConfigurationError(
            f"a budget of {budget} has no {parts} equal parts: give a multiple of {parts}, or set {name}"
        )
    return budget // parts
