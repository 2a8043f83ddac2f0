"""Methods whose samples never meet: greedy decoding, majority vote, best-of-N and its weighted form.

They differ in the weights they give to N complete answers and in how they choose among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import FloatArray, Result, Sampling
from motes.errors import ConfigurationError
from motes.methods.population import Aggregation, Population
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

    n: int
    aggregation: Aggregation = "last"

    def __post_init__(self) -> None:
        whole_number("n", self.n, least=1)
        fit_fields(self)

    @property
    def budget(self) -> int:
        return self.n

    async def _draw(self, run: Run, sampling: Sampling | None = None, *, score: bool) -> Population:
        return await run.complete(run.start(self.n), score=score, sampling=sampling)

    async def _conclude(self, run: Run, population: Population, weights: Weights, selector: str) -> Result:
        run.record(
            population,
            ancestors=np.arange(self.n),
            weights=weights,
            resampled=False,
            aggregation=self.aggregation,
        )
        return await conclude(run, population, weights, selector, aggregation=self.aggregation)


@dataclass(frozen=True)
class Greedy(_Independent):
    """One answer at temperature 0: the baseline called pass@1 in the paper."""

    needs_reward: ClassVar[bool] = False

    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n != 1:
            raise ConfigurationError("greedy decoding draws one answer: n must be 1")

    @classmethod
    def of_budget(cls, budget: int, **settings: Any) -> Self:
        """One answer, whatever the budget."""
        return cls(**settings)

    async def run(self, run: Run) -> Result:
        population = await self._draw(run, run.sampling.replace(temperature=0.0), score=False)
        return await self._conclude(run, population, Weights.uniform(1), "majority")


@dataclass(frozen=True)
class Majority(_Independent):
    """The most frequent of n answers: self-consistency (arXiv 2203.11171). Needs no reward model."""

    needs_reward: ClassVar[bool] = False

    async def run(self, run: Run) -> Result:
        population = await self._draw(run, score=False)
        return await self._conclude(run, population, Weights.uniform(self.n), "majority")


@dataclass(frozen=True)
class BestOfN(_Independent):
    """The one of n answers with the largest score. Its confidence is the share of samples that agree."""

    async def run(self, run: Run) -> Result:
        population = await self._draw(run, score=True)
        return await self._conclude(run, population, Weights.uniform(self.n), "argmax")


@dataclass(frozen=True)
class WeightedBestOfN(_Independent):
    """The answer with the largest sum of weights over n samples: of their scores, as they come (arXiv 2206.02336).

    Args:
        n, aggregation: as for the others.
        link, beta: a sample's weight is link(r)^beta, see `motes.methods.potential`.
    """

    link: Link = "probability"
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta >= 0.0 and np.isfinite(self.beta)):
            raise ConfigurationError(f"beta must be finite and at least 0, not {self.beta}")

    async def run(self, run: Run) -> Result:
        population = await self._draw(run, score=True)
        return await self._conclude(run, population, self.weights(population.aggregate(self.aggregation)), "vote")

    def weights(self, scores: FloatArray) -> Weights:
        """Of answers with these scores, (N,): zero where there is none, NaN."""
        logs = log_potential(scores, self.link, self.beta)
        return Weights(np.nan_to_num(logs, nan=-np.inf, neginf=-np.inf))
