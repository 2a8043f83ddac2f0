"""Methods that sample complete answers independently: greedy decoding, majority vote, best-of-N, weighted best-of-N.

They differ in the weights of the N answers and in the choice among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import FloatArray, Result
from motes.errors import ConfigurationError
from motes.methods.population import Aggregation
from motes.methods.potential import Link, log_potential
from motes.methods.run import Run
from motes.methods.selectors import conclude
from motes.smc import Weights


@dataclass(frozen=True)
class _Independent:
    """n complete answers, drawn independently.

    Args:
        n: number of answers, at least 1.
        aggregation: how the step scores of an answer become its score.
    """

    independent: ClassVar[bool] = True
    needs_reward: ClassVar[bool] = True
    selector: ClassVar[str]
    temperature: ClassVar[float | None] = None  # None: that of the sampling

    n: int
    aggregation: Aggregation = "last"

    def __post_init__(self) -> None:
        whole_number("n", self.n, least=1)
        fit_fields(self)

    @property
    def budget(self) -> int:
        return self.n

    async def run(self, run: Run) -> Result:
        sampling = run.sampling if self.temperature is None else run.sampling.replace(temperature=self.temperature)
        population = await run.complete(run.start(self.n), score=self.needs_reward, sampling=sampling)
        weights = self.weights(population.aggregate(self.aggregation))
        run.record(
            population, ancestors=np.arange(self.n), weights=weights, resampled=False, aggregation=self.aggregation
        )
        return await conclude(run, population, weights, self.selector, aggregation=self.aggregation)

    def weights(self, scores: FloatArray) -> Weights:
        """The weights of answers with these scores, (N,); NaN for an answer without a score."""
        return Weights.uniform(len(scores))


@dataclass(frozen=True)
class Greedy(_Independent):
    """One answer at temperature 0: the baseline called pass@1 in the paper."""

    needs_reward: ClassVar[bool] = False
    selector: ClassVar[str] = "majority"
    temperature: ClassVar[float | None] = 0.0

    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n != 1:
            raise ConfigurationError("greedy decoding draws one answer: n must be 1")

    @classmethod
    def of_budget(cls, budget: int, **settings: Any) -> Self:
        """One answer, whatever the budget."""
        return cls(**settings)


@dataclass(frozen=True)
class Majority(_Independent):
    """The most frequent of n answers: self-consistency (arXiv 2203.11171). Needs no reward model."""

    needs_reward: ClassVar[bool] = False
    selector: ClassVar[str] = "majority"


@dataclass(frozen=True)
class BestOfN(_Independent):
    """The one of n answers with the largest score. Its confidence is the share of samples that agree."""

    selector: ClassVar[str] = "argmax"


@dataclass(frozen=True)
class WeightedBestOfN(_Independent):
    """The answer with the largest total weight over n samples; by default weights are the scores (arXiv 2206.02336).

    Args:
        n, aggregation: as for the others.
        link, beta: a sample's weight is link(r)^beta, see `motes.methods.potential`.
    """

    selector: ClassVar[str] = "vote"

    link: Link = "probability"
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta >= 0.0 and np.isfinite(self.beta)):
            raise ConfigurationError(f"beta must be finite and at least 0, not {self.beta}")

    def weights(self, scores: FloatArray) -> Weights:
        """The weights of answers with these scores, (N,); zero for an answer without a score (NaN)."""
        logs = log_potential(scores, self.link, self.beta)
        return Weights(np.nan_to_num(logs, nan=-np.inf, neginf=-np.inf))
