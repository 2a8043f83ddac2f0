"""A reward model that changes the scores of another one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from motes.core import Failure, Scores, Trajectory
from motes.protocols import RequestObserver, RewardModel, RewardModelTraits

CLIP = 1e-7
"""Scores are clipped to [CLIP, 1 − CLIP] before their logit is taken."""


def logit_of(score: float) -> float:
    """The logit of a score in [0, 1], which is clipped."""
    clipped = min(max(score, CLIP), 1 - CLIP)
    return math.log(clipped / (1 - clipped))


def score_of_logit(logit: float) -> float:
    """The score in [0, 1] with this logit."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


class MappedReward:
    """Has the costs and failures of `reward`, and its scores, each changed by `change`.

    A subclass has a field `reward` and a method `change`, whose result may depend on the prefix.
    """

    reward: RewardModel

    def change(self, node: Trajectory, score: float) -> float:
        """The changed score, in [0, 1], of a prefix with a score in [0, 1]."""
        raise NotImplementedError

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        outcomes: list[Sequence[float] | Failure] = []
        for trajectory, scores in zip(trajectories, await self.reward.score(trajectories), strict=True):
            outcome = scores
            if not isinstance(scores, Failure):
                outcome = [self.change(node, score) for node, score in zip(trajectory.path, scores, strict=True)]
                if isinstance(scores, Scores):
                    outcome = Scores(outcome, scores.usage, scores.reads)
            outcomes.append(outcome)
        return outcomes

    # The optional attributes are those of the inner model, see `motes.protocols.RewardModelTraits`.

    def forget(self) -> None:
        if (forget := RewardModelTraits(self.reward).forget) is not None:
            forget()

    def critique(self, trajectory: Trajectory) -> str | None:
        critique = RewardModelTraits(self.reward).critique
        return None if critique is None else critique(trajectory)

    async def ready(self) -> None:
        if (ready := RewardModelTraits(self.reward).ready) is not None:
            await ready()

    def watch_requests(self, observe: RequestObserver) -> None:
        if (watch := RewardModelTraits(self.reward).watch_requests) is not None:
            watch(observe)

    @property
    def num_parameters(self) -> int | None:
        return RewardModelTraits(self.reward).num_parameters

    @property
    def top_logprobs(self) -> int:
        return RewardModelTraits(self.reward).top_logprobs

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        return RewardModelTraits(self.reward).hidden_layers

    @property
    def outcome(self) -> bool:
        return RewardModelTraits(self.reward).outcome

    @property
    def merges_calls(self) -> bool:
        return RewardModelTraits(self.reward).merges_calls
