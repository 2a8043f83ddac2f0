"""Calls to models, with their results checked against the contract."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from motes.core import Failure, Sampling, Step, Trajectory
from motes.errors import ContractError, RewardError
from motes.protocols import LanguageModel, RewardModel


async def request_steps(
    lm: LanguageModel, parents: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
) -> list[Step | Failure]:
    """The next step of each trajectory, or the reason why there is none. Raises a `ContractError` if the model returns
    anything else."""
    steps = await _as_list(lm.extend(parents, sampling, seeds), "the language model's `extend`")
    if len(steps) != len(parents):
        raise ContractError(f"the language model returned {len(steps)} steps for {len(parents)} trajectories")
    for step in steps:
        if not isinstance(step, (Step, Failure)):
            raise ContractError(f"the language model returned {step!r}, which is neither a Step nor a Failure")
    return steps


async def request_scores(reward: RewardModel, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
    """The scores of each trajectory, one for each step, or the reason why there are none. Raises a `ContractError` if
    the model returns anything else, a `RewardError` if a score lies outside [0, 1]."""
    scores = await _as_list(reward.score(trajectories), "the reward model's `score`")
    if len(scores) != len(trajectories):
        raise ContractError(f"the reward model scored {len(scores)} of {len(trajectories)} trajectories")
    return [_check_scores(values, trajectory, reward) for values, trajectory in zip(scores, trajectories, strict=True)]


def _check_scores(values: Any, trajectory: Trajectory, reward: RewardModel) -> Sequence[float] | Failure:
    """The scores of one trajectory, or the reason why there are none."""
    if isinstance(values, Failure):
        return values
    try:
        numbers: Sequence[Any] = values if isinstance(values, (list, tuple)) else list(values)
    except TypeError:
        numbers = [None]
    if not all(hasattr(number, "__float__") for number in numbers):
        raise ContractError(
            f"{reward!r} gave {values!r}: the scores of a trajectory are a list of numbers, one per step"
        )
    if len(numbers) != trajectory.depth:
        raise ContractError(f"the reward model gave {len(numbers)} scores for {trajectory.depth} steps")
    if not all(0.0 <= value <= 1.0 for value in numbers):
        raise RewardError(f"{reward!r} gave {list(numbers)}: every score must be a number in [0, 1]")
    return numbers


async def _as_list(result: Any, method: str) -> list[Any]:
    """The list that a model's method returns. Raises a `ContractError` if it is not async or returns no list."""
    if not inspect.isawaitable(result):
        raise ContractError(f"{method} must be declared `async def`, and return a list")
    returned = await result
    try:
        return list(returned)
    except TypeError:
        raise ContractError(f"{method} returned {returned!r}: it must return a list, one for each trajectory") from None
