"""Several reward models as one: the weighted sum of the logits of their scores."""

from __future__ import annotations

import asyncio
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from motes.concurrency import gather
from motes.core import Failure, Reads, Scores, Trajectory, Usage
from motes.errors import ConfigurationError
from motes.protocols import RequestObserver, RewardModel, RewardModelTraits
from motes.rewards.calibration import LOADERS, load_fitted, save_fitted
from motes.rewards.mapped import logit_of, score_of_logit

FORMAT = "motes mixture 1"


@dataclass(frozen=True)
class Mixture:
    """How reward models are mixed: logit r = bias + Σ_k weights_k · logit r_k.

    With the weights of `motes calibrate`, r is the probability that a partial answer is right, given all scores.

    Args:
        rewards: (K,) the specs of the reward models, K ≥ 2.
        weights: (K,) finite.
        bias: finite.
        provenance: the data to which the weights were fitted, as values that JSON can hold.

    Raises:
        ConfigurationError: a number is not finite, or their numbers differ.
    """

    rewards: tuple[str, ...]
    weights: tuple[float, ...]
    bias: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.rewards) < 2 or len(self.weights) != len(self.rewards):
            raise ConfigurationError("a mixture has two reward models or more, and a weight for each")
        if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in (*self.weights, self.bias)):
            raise ConfigurationError("a mixture's weights and bias must be finite numbers")

    def __call__(self, scores: Sequence[float]) -> float:
        """The score of a prefix with these scores, (K,) in [0, 1]."""
        pairs = zip(self.weights, scores, strict=True)
        return score_of_logit(sum((weight * logit_of(score) for weight, score in pairs), self.bias))

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a mixture by its name or file, as `motes.Calibration.load`.

        Raises:
            ConfigurationError: there is none, or the file is damaged.
        """
        return load_fitted(name, FORMAT, "mixture", cls._of_content)

    @classmethod
    def _of_content(cls, content: dict[str, Any]) -> Self:
        return cls(tuple(content.pop("rewards")), tuple(content.pop("weights")), content.pop("bias"), content)

    def save(self, name: str) -> Path:
        """Write the mixture, as `motes.Calibration.save`."""
        content = {"rewards": self.rewards, "weights": self.weights, "bias": self.bias}
        return save_fitted(name, FORMAT, self.provenance, content)


LOADERS[FORMAT] = Mixture.load


class MixedReward:
    """Scores by several reward models, mixed (`Mixture`). The cost is that of all of them.

    A trajectory that one of them cannot score has no score.

    Args:
        rewards: (K,) the reward models.
        mixture: their weights; None: equal weights, whose sum is 1, without a bias.
    """

    def __init__(self, rewards: Sequence[RewardModel], mixture: Mixture | None = None) -> None:
        self.rewards = tuple(rewards)
        names = tuple(map(repr, self.rewards))
        self.mixture = mixture or Mixture(names, (1 / max(1, len(names)),) * len(names))
        if len(self.rewards) != len(self.mixture.weights):
            raise ConfigurationError(f"{len(self.rewards)} reward models and {len(self.mixture.weights)} weights")

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        columns = await gather(reward.score(trajectories) for reward in self.rewards)
        return [self._mix(outcomes) for outcomes in zip(*columns, strict=True)]

    def _mix(self, outcomes: Sequence[Sequence[float] | Failure]) -> Sequence[float] | Failure:
        """One trajectory's scores from those of each reward model."""
        usage = functools.reduce(operator.add, map(_usage_of, outcomes), Usage())
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                return Failure(outcome.error, usage)
        steps = zip(*(outcome for outcome in outcomes if not isinstance(outcome, Failure)), strict=True)
        return Scores(map(self.mixture, steps), usage, _sum_of_reads(outcomes))

    # The optional attributes, see `motes.protocols.RewardModelTraits`.

    @property
    def _traits(self) -> list[RewardModelTraits]:
        return [RewardModelTraits(reward) for reward in self.rewards]

    @property
    def top_logprobs(self) -> int:
        return max(traits.top_logprobs for traits in self._traits)

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return tuple({layer for traits in self._traits for layer in traits.hidden_layers})

    @property
    def outcome(self) -> bool:
        return all(traits.outcome for traits in self._traits)

    @property
    def merges_calls(self) -> bool:
        return all(traits.merges_calls for traits in self._traits)

    @property
    def num_parameters(self) -> int | None:
        """Those of the only model that has any; None if several have, because their tokens are counted together."""
        numbers = [traits.num_parameters for traits in self._traits]
        sizes = [number for number in numbers if number != 0]
        return (sizes or [0])[0] if len(sizes) < 2 else None

    async def ready(self) -> None:
        await asyncio.gather(*(traits.ready() for traits in self._traits if traits.ready is not None))

    def watch_requests(self, observe: RequestObserver) -> None:
        for traits in self._traits:
            if traits.watch_requests is not None:
                traits.watch_requests(observe)

    def critique(self, trajectory: Trajectory) -> str | None:
        """The critiques of the models that have one, one after the other."""
        functions = [traits.critique for traits in self._traits if traits.critique is not None]
        critiques = [critique for function in functions if (critique := function(trajectory))]
        return "\n\n".join(critiques) or None

    def forget(self) -> None:
        for traits in self._traits:
            if traits.forget is not None:
                traits.forget()

    def __repr__(self) -> str:
        return f"MixedReward({', '.join(map(repr, self.rewards))})"


def _usage_of(outcome: Sequence[float] | Failure) -> Usage:
    return outcome.usage if isinstance(outcome, (Failure, Scores)) else Usage()


def _sum_of_reads(outcomes: Sequence[Sequence[float] | Failure]) -> Reads | None:
    """The tokens that all reward models have to read; None if one of them does not know."""
    reads = [outcome.reads if isinstance(outcome, Scores) else None for outcome in outcomes]
    known = [each for each in reads if each is not None]
    if len(known) < len(reads):
        return None
    after = tuple(map(sum, zip(*(each.after for each in known), strict=True)))
    return Reads(sum(each.prompt for each in known), after)
