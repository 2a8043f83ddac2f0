"""The particle filter over partial answers (arXiv 2502.01618, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import FloatArray, IntArray, Result, Sampling
from motes.errors import ConfigurationError, DegenerateWeightsError, UnknownNameError
from motes.methods.population import Aggregation, Population
from motes.methods.potential import Link, Potential, log_increment
from motes.methods.requirements import require_steps
from motes.methods.run import Run
from motes.methods.selectors import SELECTORS, conclude
from motes.methods.sweep import Sweep
from motes.protocols import LanguageModel
from motes.smc import RESAMPLING, Weights, resample


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """A particle filter's settings, which every method that runs particle filters has as well. They are given by name.

    Args:
        potential: "absolute", "increment" or a number in [0, 1]: G_t, and with it the target. See
            `motes.methods.potential`.
        link: "odds", "probability" or "exponential".
        beta: inverse temperature of the weights, φ = link(r)^beta; 0 ignores the reward model.
        ess_threshold: resample when ESS falls below this fraction of N; 1 always, 0 never.
        resampling: "multinomial", "stratified", "systematic" or "residual".
        selector: "argmax", "sample", "vote" or "majority".
        aggregation: how the step scores of a prefix become r: "last", "min", "prod" or "mean".
        copies: "count": every particle is resampled by its weight. "share": particles with the same text share the
            probability of one of them (in the spirit of DORA, arXiv 2506.15707) and carry the rest of their weight on,
            so that the target does not change.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    needs_reward: ClassVar[bool] = True

    potential: Potential | float = "absolute"
    link: Link = "odds"
    beta: float = 0.5
    ess_threshold: float = 1.0
    resampling: str = "systematic"
    selector: str = "vote"
    aggregation: Aggregation = "last"
    copies: Literal["count", "share"] = "count"

    def __post_init__(self) -> None:
        fit_fields(self)
        if not isinstance(self.potential, str) and not 0.0 <= self.potential <= 1.0:
            raise ConfigurationError(
                f"potential is 'absolute', 'increment' or a number in [0, 1], not {self.potential}"
            )
        if not 0.0 <= self.ess_threshold <= 1.0:
            raise ConfigurationError(f"ess_threshold is a fraction of N in [0, 1], not {self.ess_threshold}")
        if not (self.beta >= 0.0 and np.isfinite(self.beta)):
            raise ConfigurationError(f"beta must be finite and at least 0, not {self.beta}")
        if self.resampling not in RESAMPLING:
            raise UnknownNameError("resampling scheme", self.resampling, RESAMPLING)
        if self.selector not in SELECTORS:
            raise UnknownNameError("selector", self.selector, SELECTORS)

    @classmethod
    def paper(cls, num_particles: int) -> Self:
        """The configuration of the paper's experiments (arXiv 2502.01618): softmax over logits, multinomial
        resampling after every step, the answer with the largest last score.

        The paper's reward model reads the whole prefix as one step: open it with `prefix="whole"`. The rest of its
        setting is the default of `Sampling`.

        Args:
            num_particles: the method's first argument, its number of particles.
        """
        make: Callable[..., Self] = cls
        return make(
            num_particles,
            potential="absolute",
            link="odds",
            beta=1.0,
            ess_threshold=1.0,
            resampling="multinomial",
            selector="argmax",
        )

    def filter_of(self, num_particles: int) -> ParticleFilter:
        """A particle filter with these settings and this number of particles."""
        return ParticleFilter(num_particles, **self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """These settings by name, without those that a particular method adds."""
        return {field.name: getattr(self, field.name) for field in fields(FilterSettings)}

    def require(self, lm: LanguageModel, sampling: Sampling) -> None:
        """See `motes.methods.MethodTraits`."""
        require_steps(lm, sampling)

    def level(self, sweeps: Sequence[Sweep]) -> list[Sweep]:
        """The sweeps, each prolonged to the longest one's number of rounds, so that their evidences can be compared:
        finished answers wait for those of other sweeps as well. This changes weights under "absolute" only."""
        num_rounds = max(sweep.num_rounds for sweep in sweeps)
        return [self._prolonged(sweep, num_rounds - sweep.num_rounds) for sweep in sweeps]

    def _prolonged(self, sweep: Sweep, more: int) -> Sweep:
        if not more or sweep.weights.degenerate:
            return sweep
        waiting = replace(sweep.population, extended=np.zeros(len(sweep.population), dtype=bool))
        weights = sweep.weights.add(more * self._log_increment(waiting, waiting_counts=True))
        log_evidence = sweep.log_evidence - sweep.weights.log_mean + weights.log_mean
        return Sweep(sweep.population, weights, log_evidence, sweep.num_rounds + more)

    def log_weights_of(self, complete: Population, horizon: int) -> FloatArray:
        """log Φ of complete answers, (N,): their log-weights after a sweep without resampling."""
        rounds = max(horizon, *(trajectory.depth for trajectory in complete.trajectories))
        increments = [self._log_increment(complete.until(t), t <= horizon) for t in range(1, rounds + 1)]
        return np.asarray(np.sum(increments, axis=0))

    def _log_increment(self, population: Population, waiting_counts: bool) -> FloatArray:
        increment = log_increment(population, self.potential, self.link, self.beta, self.aggregation)
        if waiting_counts:
            return increment
        return np.where(population.extended | np.isneginf(increment), increment, 0.0)

    async def conclude(self, run: Run, population: Population, weights: Weights, log_evidence: float) -> Result:
        """The result of a run with this final weighted population."""
        return await conclude(
            run, population, weights, self.selector, aggregation=self.aggregation, log_evidence=log_evidence
        )


@dataclass(frozen=True)
class ParticleFilter(FilterSettings):
    """N partial answers, extended by the language model, weighted by the reward model, resampled in proportion.

        a_t ~ resample(W_{t−1})  if ESS < ess_threshold · N     x_t ~ M(· | x_<t^{a_t})     w_t = w_{t−1} · G_t

    `Result.log_evidence` estimates log Z, Z = E_M[Π G]: the product of the mean weights at the end of each interval
    between resamplings is an unbiased estimate of Z. The self-normalised posterior is consistent, and biased for finite
    N. Under "absolute" a finished answer counts again while others are unfinished, so that Z depends on their lengths.

    Target: see `motes.methods.potential`.

    Args:
        num_particles: N ≥ 1.
        others: see `FilterSettings`; errors as there.
    """

    one_population: ClassVar[bool] = True

    num_particles: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("num_particles", self.num_particles, least=1)

    @property
    def budget(self) -> int:
        return self.num_particles

    async def run(self, run: Run) -> Result:
        sweep = await self.sweep(run)
        return await self.conclude(run, sweep.population, sweep.weights, sweep.log_evidence)

    async def sweep(
        self, run: Run, *, number: int = 0, reference: Population | None = None, horizon: int | None = None
    ) -> Sweep:
        """Resample, extend and reweight until every particle is finished.

        With a reference this is a conditional filter (Andrieu, Doucet, Holenstein, "Particle Markov chain Monte Carlo
        methods", 2010): in round t the last slot holds the first t steps of the reference, weighted like any other
        particle; the free slots resample from all N. If the reference is an exact draw from the target, so is a draw
        from the final weights, provided that resampling is multinomial. That holds for adaptive resampling, too:
        whether to resample depends on all N weights regardless of their order, so that each interval contributes its
        mean weight to Ẑ and 1/N to the reference's place, as with resampling in every round.

        Args:
            number: the sweep's number in the records.
            reference: (1,) a finished trajectory of positive weight, with its scores.
            horizon: number of rounds in which a finished answer's last φ counts again under "absolute"; the sweep has
                at least as many rounds. None: as many rounds as it takes to finish all particles.
        """
        n = self.num_particles
        free = n if reference is None else n - 1
        population = run.start(n)
        weights = Weights.uniform(n)
        text_numbers = np.zeros(n, dtype=np.int64)  # equal numbers for equal texts
        log_evidence = 0.0  # of the intervals that ended with a resampling
        t = 0
        while population.alive or t < (horizon or 0):
            ancestors = np.arange(n)
            # At the beginning all particles are empty: there is nothing to choose between.
            resampled = t > 0 and (self.ess_threshold >= 1.0 or weights.ess < self.ess_threshold * n)
            if resampled:
                probabilities = await self._resampling_probabilities(run, population, weights, t)
                if self.copies == "share":
                    probabilities = shared_among(text_numbers, probabilities)
                ancestors[:free] = resample(run.rng, probabilities, free, self.resampling)
                log_evidence += weights.log_mean
                weights = self._weights_after_resampling(weights, probabilities, ancestors)
            t += 1
            population = await self._extend(run, population.select(ancestors[:free]))
            if reference is not None:
                population = Population.concatenate([population, reference.until(t)])
            if self.copies == "share":
                text_numbers = _number_texts(text_numbers[ancestors], population)
            weights = weights.add(self._log_increment(population, waiting_counts=horizon is None or t <= horizon))
            weights = population.without_dropped(weights)
            run.record(
                population,
                ancestors=ancestors,
                weights=weights,
                resampled=resampled,
                log_evidence=log_evidence + weights.log_mean,
                aggregation=self.aggregation,
                sweep=number,
            )
        return Sweep(population, weights, log_evidence + weights.log_mean, num_rounds=t)

    async def try_sweep(self, run: Run, *, number: int = 0) -> Sweep | DegenerateWeightsError:
        """A sweep; or the error, as a value, if every weight became zero: a sweep whose evidence is zero."""
        try:
            return await self.sweep(run, number=number)
        except DegenerateWeightsError as error:
            return error

    async def _extend(self, run: Run, population: Population) -> Population:
        """x_{t+1} = M_t(x_t)"""
        return await run.extend(population, score=self.needs_reward)

    async def _resampling_probabilities(self, run: Run, population: Population, weights: Weights, t: int) -> FloatArray:
        """(N,) the probabilities by which ancestors are resampled after t rounds; positive where the weight is."""
        return weights.normalized

    def _weights_after_resampling(self, weights: Weights, probabilities: FloatArray, ancestors: IntArray) -> Weights:
        """The weights that offspring start with: the ratio of their ancestor's weight to its resampling probability."""
        return Weights(np.log(weights.normalized[ancestors] / probabilities[ancestors]))


def shared_among(groups: IntArray, probabilities: FloatArray) -> FloatArray:
    """The probabilities, (N,), each divided by the number of its group's members that have one above zero, and then
    normalised: a group has the mean probability of its members, however many they are."""
    members = np.bincount(groups, weights=probabilities > 0)[groups]
    shares = probabilities / np.maximum(members, 1.0)
    return np.asarray(shares / shares.sum())


def _number_texts(before: IntArray, population: Population) -> IntArray:
    """Number the trajectories, (N,): equal numbers for equal texts with the same reason for being finished.

    Args:
        before: (N,) the numbers of the prefixes that were extended in this round.
    """
    numbers: dict[tuple[int, str | None, str | None], int] = {}
    texts: list[int] = []
    for number, trajectory, grown in zip(before.tolist(), population.trajectories, population.extended, strict=True):
        added = trajectory.step.text if grown and trajectory.step is not None else None
        texts.append(numbers.setdefault((number, added, trajectory.finished), len(numbers)))
    return np.array(texts)
