"""Answers without the reward model, where a virtual model allows them: better than no answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from motes.core import Failure, Trajectory
from motes.errors import MotesError, chain_of
from motes.protocols import RewardModel

ErrorT = TypeVar("ErrorT", bound=MotesError)


class TaggedReward:
    """A reward model whose errors are tagged as a reward model's, so that a run that fails because of it can be told
    from one whose language model failed: the former may be answered without the reward model."""

    def __init__(self, reward: RewardModel) -> None:
        self._reward = reward

    async def score(self, trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        try:
            scores = await self._reward.score(trajectories)
        except MotesError as error:
            tag(error)
            raise
        for outcome in scores:
            if isinstance(outcome, Failure):
                tag(outcome.error)
        return scores

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __repr__(self) -> str:
        return repr(self._reward)


def tag(error: ErrorT) -> ErrorT:
    """The error, tagged as a reward model's."""
    error.is_of_reward_model = True  # type: ignore[attr-defined]
    return error


def is_of_reward_model(error: BaseException) -> bool:
    """Whether an error, or one of its causes, is tagged as a reward model's."""
    return any(getattr(link, "is_of_reward_model", False) for link in chain_of(error))
