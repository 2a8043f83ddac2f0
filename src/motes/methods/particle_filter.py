"""The particle filter over partial answers (arXiv 2502.01618, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from motes.errors import ConfigurationError, UnknownNameError
from motes.methods.population import AGGREGATIONS, Aggregation, Run
from motes.methods.potential import Link, Potential, log_increment
from motes.methods.selectors import SELECTORS, conclude
from motes.smc import RESAMPLING, Weights, resample
from motes.types import Result


@dataclass(frozen=True)
class ParticleFilter:
    """N partial answers, extended by the model, weighted by the reward model, resampled in proportion.

        a_t ~ resample(W_{t−1})  if ESS < ess_threshold · N     x_t ~ M(· | x_<t^{a_t})     w_t = w_{t−1} · G_t

    Z = E_M[Π G] is estimated without bias by the product, over the intervals between resamplings, of the mean weight:
    `Result.log_evidence`. The self-normalised posterior is consistent, and biased for finite N.

    Args:
        num_particles: N ≥ 1.
        potential: "absolute" or "increment": G_t, and with it the target. See `motes.methods.potential`.
        link: "odds" or "probability".
        beta: inverse temperature of the weights, φ = link(r)^beta; 0 ignores the reward model.
        ess_threshold: resample when ESS falls below this fraction of N; 1 always, 0 never.
        resampling: "multinomial", "stratified", "systematic" or "residual".
        selector: "argmax", "sample", "vote" or "majority".
        aggregation: how the step scores of a prefix become r: "last", "min", "prod" or "mean".

    Raises:
        ConfigurationError: a value is out of its range.
    """

    num_particles: int
    potential: Potential = "increment"
    link: Link = "odds"
    beta: float = 1.0
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    selector: str = "vote"
    aggregation: Aggregation = "last"

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ConfigurationError(f"num_particles must be at least 1, not {self.num_particles}")
        if not 0.0 <= self.ess_threshold <= 1.0:
            raise ConfigurationError(f"ess_threshold is a fraction of N in [0, 1], not {self.ess_threshold}")
        if not (self.beta >= 0.0 and np.isfinite(self.beta)):
            raise ConfigurationError(f"beta must be finite and at least 0, not {self.beta}")
        for kind, name, known in (
            ("potential", self.potential, ("absolute", "increment")),
            ("link", self.link, ("odds", "probability")),
            ("resampling scheme", self.resampling, RESAMPLING),
            ("selector", self.selector, SELECTORS),
            ("aggregation", self.aggregation, AGGREGATIONS),
        ):
            if name not in known:
                raise UnknownNameError(kind, name, known)

    @classmethod
    def paper(cls, num_particles: int) -> ParticleFilter:
        """The configuration of the paper's experiments (arXiv 2502.01618): softmax over logits, multinomial
        resampling after every step, the answer with the largest last score.

        The paper's reward model reads the whole prefix as one step: open it with `prefix="whole"`. The rest of its
        setting is the default of `Sampling`.
        """
        return cls(
            num_particles,
            potential="absolute",
            link="odds",
            beta=1.0,
            ess_threshold=1.0,
            resampling="multinomial",
            selector="argmax",
        )

    @property
    def budget(self) -> int:
        return self.num_particles

    async def run(self, run: Run) -> Result:
        n = self.num_particles
        population = run.start(n)
        weights = Weights.uniform(n)
        log_evidence = 0.0  # of the intervals that a resampling has closed
        while population.alive:
            ancestors = np.arange(n)
            if resampled := self._resamples(weights, first=not run.records):
                ancestors = resample(run.rng, weights.normalized, n, self.resampling)
                log_evidence += weights.log_mean
                weights = Weights.uniform(n)
            population = await run.extend(population.select(ancestors))
            weights = weights.add(log_increment(population, self.potential, self.link, self.beta, self.aggregation))
            run.record(
                population,
                ancestors=ancestors,
                weights=weights,
                resampled=resampled,
                log_evidence=log_evidence + weights.log_mean,
                aggregation=self.aggregation,
            )
        return conclude(
            run,
            population,
            weights,
            self.selector,
            aggregation=self.aggregation,
            log_evidence=log_evidence + weights.log_mean,
        )

    def _resamples(self, weights: Weights, first: bool) -> bool:
        if first:  # N empty particles: nothing to choose between
            return False
        return self.ess_threshold >= 1.0 or weights.ess < self.ess_threshold * len(weights)
