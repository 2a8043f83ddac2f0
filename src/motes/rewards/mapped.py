"""A reward model whose scores are another's, each of them changed."""

from __future__ import annotations

from collections.abc import Sequence

from motes.core import Failure, Scores, Trajectory
from motes.protocols import RewardModel, RewardModelTraits


class MappedReward:
    """Scores, costs and failures of `reward`, every score as `change` makes it.

    A subclass has a field `reward` and says what becomes of a score, which may depend on the prefix it is of.
    """

    reward: RewardModel

    def change(self, node: Trajectory, score: float) -> float:
        """What becomes of the score in [0, 1] of a prefix: a number in [0, 1]."""
        raise NotImplementedError

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        scored = await self.reward.score(trajectories)
        return [
            scores if isinstance(scores, Failure) else self._changed(trajectory, scores)
            for trajectory, scores in zip(trajectories, scored, strict=True)
        ]

    def forget(self) -> None:
        """See `motes.protocols.RewardModel`: of the model inside."""
        if (forget := RewardModelTraits.of(self.reward).forget) is not None:
            forget()

    async def ready(self) -> None:
        """See `motes.protocols.RewardModel`: of the model inside."""
        if (ready := RewardModelTraits.of(self.reward).ready) is not None:
            await ready()

    @property
    def num_parameters(self) -> int | None:
        """Of the model inside, where it says so."""
        return RewardModelTraits.of(self.reward).num_parameters

    @property
    def outcome(self) -> bool:
        """Whether the model inside scores finished answers only."""
        return RewardModelTraits.of(self.reward).outcome

    @property
    def merges_calls(self) -> bool:
        """Whether concurrent calls of the model inside meet in one batch."""
        return RewardModelTraits.of(self.reward).merges_calls

    def _changed(self, trajectory: Trajectory, scores: Sequence[float]) -> Sequence[float]:
        changed = [self.change(node, score) for node, score in zip(trajectory.path, scores, strict=True)]
        return Scores(changed, scores.usage, scores.reads) if isinstance(scores, Scores) else changed
