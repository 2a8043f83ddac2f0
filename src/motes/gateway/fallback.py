"""Answers without the reward model, where a virtual model allows them: better than no answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motes.core import Failure, Trajectory
from motes.errors import MotesError, chain_of
from motes.protocols import RewardModel


class WatchedReward:
    """A reward model whose errors can be told from those of the language model, see `is_of_reward_model`."""

    def __init__(self, reward: RewardModel) -> None:
        self._reward = reward

    async def score(self, trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        try:
            scores = await self._reward.score(trajectories)
        except MotesError as error:
            error.is_of_reward_model = True  # type: ignore[attr-defined]
            raise
        for outcome in scores:
            if isinstance(outcome, Failure):
                outcome.error.is_of_reward_model = True  # type: ignore[attr-defined]
        return scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __repr__(self) -> str:
        return repr(self._reward)


def is_of_reward_model(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is a watched reward model's."""
    return any(getattr(link, "is_of_reward_model", False) for link in chain_of(error))
