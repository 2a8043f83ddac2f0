"""What any server of the bundled models must have in common with the local engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

import motes
from motes import Trajectory
from motes.methods.method import Method
from motes.tasks import Arithmetic

GREEDY = motes.Sampling(temperature=0.0)


def problems(count: int) -> Sequence[motes.Problem]:
    return Arithmetic().problems()[:count]


def answers(lm: motes.LanguageModel, count: int, sampling: motes.Sampling = GREEDY) -> list[Trajectory]:
    """The answers to so many problems, all finished, step by step."""

    async def all_steps() -> list[Trajectory]:
        trajectories = [Trajectory(problem) for problem in problems(count)]
        while unfinished := [i for i, trajectory in enumerate(trajectories) if trajectory.finished is None]:
            seeds = [1000 * trajectories[i].depth + i for i in unfinished]
            steps = await lm.extend([trajectories[i] for i in unfinished], sampling, seeds)
            for i, step in zip(unfinished, steps, strict=True):
                trajectories[i] = trajectories[i].extend(step)
        return trajectories

    return asyncio.run(all_steps())


def scores(reward: motes.RewardModel, trajectories: Sequence[Trajectory]) -> np.ndarray:
    """(steps of all trajectories,)"""
    return np.concatenate(asyncio.run(reward.score(trajectories)))


def right(lm: motes.LanguageModel, reward: motes.RewardModel, method: Method, count: int) -> list[bool]:
    """Which of so many problems are answered right, all at once; a run that fails fails the test."""
    task = Arithmetic()

    async def solved(problem: motes.Problem) -> bool:
        result = await motes.asolve(problem, lm=lm, reward=reward, method=method, task=task, seed=0)
        return result.answer is not None and task.grade(problem, result.answer)

    async def all_solved() -> list[bool]:
        return list(await asyncio.gather(*map(solved, problems(count))))

    return asyncio.run(all_solved())
