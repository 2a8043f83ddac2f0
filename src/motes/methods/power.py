"""A particle filter without a reward model, whose target is a power of the language model's distribution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from motes.arguments import fit_fields
from motes.core import FloatArray, Result, Sampling, Step
from motes.errors import ConfigurationError, EngineError
from motes.methods.particle_filter import ParticleFilter
from motes.methods.population import Population
from motes.methods.requirements import draws_from_the_model, require_logprobs, require_steps
from motes.methods.run import Run
from motes.methods.selectors import SELECTORS
from motes.protocols import LanguageModel, LanguageModelTraits


@dataclass(frozen=True)
class PowerFilter:
    """N partial answers, weighted by the language model's own probabilities: power sampling.

        target   π(x) ∝ p(x)^α over complete answers x; p: the model at temperature 1, unfiltered
        G_t      p(x_t | x_<t)^α / q(x_t | x_<t);  q: the proposal, the model at the sampling's temperature, filtered

    For any temperature above 0, `Result.log_evidence` estimates Z = Σ_x p(x)^α without bias, and Ẑ·ΣWf is unbiased as
    well: the increment corrects for the proposal. The sum leaves out answers that top_p, top_k or min_p exclude. A low
    temperature prefers the likeliest next token; a power of the whole sequence prefers prefixes with likely
    continuations. Weights are most even at temperature 1/α; far from it few particles carry all the weight, and the
    fewer the longer the steps.

    Needs no reward model, only log-probabilities: of each step under p (`Step.logprob`) and under q
    (`Step.proposal_logprob`, which may be missing if q is p: at temperature 1, unfiltered).

    Source: Karan, Du, "Reasoning with sampling" (arXiv 2510.14901) for the target; Power-SMC (arXiv 2602.10273) for
    the filter, which weights every token there and every step here.

    Args:
        num_particles: N ≥ 1.
        alpha: the power, above 0; 1 is the model itself.
        ess_threshold, resampling: as for `ParticleFilter`.
        selector: "vote", "sample" or "majority"; "argmax" would need scores.

    Raises:
        ConfigurationError: a value is out of its range or, in a run, the temperature is 0 or the engine lacks these
            log-probabilities. Where it lacks those of single steps, their particles are dropped.
    """

    needs_reward: ClassVar[bool] = False
    one_population: ClassVar[bool] = True

    num_particles: int
    alpha: float = 4.0
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    selector: str = "vote"

    def __post_init__(self) -> None:
        fit_fields(self)
        if not (self.alpha > 0 and np.isfinite(self.alpha)):
            raise ConfigurationError(f"alpha must be finite and greater than 0, not {self.alpha}")
        if self.selector == "argmax":
            known = ", ".join(sorted(SELECTORS.keys() - {"argmax"}))
            raise ConfigurationError(f"without a reward model there are no scores for 'argmax': use one of {known}")
        self._filter(Sampling())  # checks the other settings

    @property
    def budget(self) -> int:
        return self.num_particles

    def require(self, lm: LanguageModel, sampling: Sampling) -> None:
        """See `motes.methods.MethodTraits`. At temperature 0 all draws are the same and do not estimate Σ p(x)^α."""
        if sampling.temperature == 0:
            raise ConfigurationError(
                "the power filter weighs random samples, and at temperature 0 nothing is random: set a temperature "
                "above 0 (1/alpha makes the weights most even), or use greedy"
            )
        require_steps(lm, sampling)
        require_logprobs(lm, sampling)

    async def run(self, run: Run) -> Result:
        self.require(run.lm, run.sampling)
        return await self._filter(run.sampling).run(run)

    def _filter(self, sampling: Sampling) -> _PowerWeighted:
        return _PowerWeighted(**vars(self), sampling=sampling)


@dataclass(frozen=True)
class _PowerWeighted(ParticleFilter):
    """The particle filter with another G_t, which ignores potential, link, beta and aggregation."""

    needs_reward: ClassVar[bool] = False

    alpha: float = 1.0
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)

    async def _extend(self, run: Run, population: Population) -> Population:
        """Drop particles whose new step lacks its log-probability, if the model says that it gives them: llama.cpp has
        none for a character of several tokens. The target is then that of the other answers."""
        grown = await super()._extend(run, population)
        steps = [t.step if extended else None for t, extended in zip(grown.trajectories, grown.extended, strict=True)]
        lacks = np.array([step is not None and step.logprob is None for step in steps])
        if LanguageModelTraits(run.lm).gives_logprobs is None or not lacks.any():
            return grown
        error = EngineError(f"{run.lm!r} gave no log-probability of a step, which its weight needs")
        trajectories = (t.fail(error) if lacking else t for t, lacking in zip(grown.trajectories, lacks, strict=True))
        return replace(grown, trajectories=tuple(trajectories), extended=grown.extended & ~lacks)

    def _log_increment(self, population: Population, waiting_counts: bool) -> FloatArray:
        pairs = zip(population.trajectories, population.extended, strict=True)
        return np.array([self._log_g(t.step) if extended and t.step else 0.0 for t, extended in pairs])

    def _log_g(self, step: Step) -> float:
        target, proposal = step.logprob, step.proposal_logprob
        if proposal is None and draws_from_the_model(self.sampling):
            proposal = target
        if target is None or proposal is None:
            missing = "log-probabilities" if target is None else "log-probabilities at other temperatures than 1"
            remedy = "use another engine" if target is None else "sample at temperature 1, without top_p, top_k, min_p"
            raise ConfigurationError(f"the power filter needs {missing}, which the language model lacks: {remedy}")
        return self.alpha * target - proposal
