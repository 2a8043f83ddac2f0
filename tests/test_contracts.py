"""The executable contracts accept a model that keeps them, and name the law that another breaks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from motes import (
    FunctionReward,
    Problem,
    Sampling,
    Step,
    TabularLanguageModel,
    Trajectory,
    check_language_model,
    check_reward_model,
)
from motes.errors import ContractError


class Faithful(TabularLanguageModel):
    """Keeps every law."""

    def __init__(self, delimiter: str = "\n\n") -> None:
        going_on = (f"a{delimiter}", f"b{delimiter}")
        row = dict(zip((*going_on, "\\boxed{1}"), (0.4, 0.3, 0.3), strict=True))
        super().__init__({path: row for k in range(4) for path in itertools.product(going_on, repeat=k)})


class Deaf(Faithful):
    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return await super().extend(trajectories, sampling, [7] * len(seeds))


class Restless(Faithful):
    calls = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.calls += 1
        return await super().extend(trajectories, sampling, [seed + self.calls for seed in seeds])


class Crowded(Faithful):
    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return await super().extend(trajectories, sampling, [seed + len(seeds) for seed in seeds])


class Ordered(Faithful):
    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return await super().extend(trajectories, sampling, seeds if sorted(seeds) == list(seeds) else seeds[::-1])


class Entangled(Faithful):
    in_flight = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.in_flight += 1
        await asyncio.sleep(0)
        steps = await super().extend(trajectories, sampling, [seed + self.in_flight for seed in seeds])
        self.in_flight -= 1
        return steps


class Stateful(Faithful):
    """What it keeps for a node changes what the node becomes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: WeakKeyDictionary[Trajectory, int] = WeakKeyDictionary()
        self.count = itertools.count()

    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        root = trajectory.path[0].parent if trajectory.depth else trajectory
        return super()._step(trajectory, sampling, seed + self.kept.setdefault(root, next(self.count)))


class Forgetful(Faithful):
    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        return (await super().extend(trajectories, sampling, seeds))[1:]


class Unexplained(Faithful):
    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        return replace(super()._step(trajectory, sampling, seed), end="stop")


class Verbose(Faithful):
    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        return replace(super()._step(trajectory, sampling, seed), token_ids=(1,) * (sampling.max_step_tokens + 1))


class Unmarked(Faithful):
    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        step = super()._step(trajectory, sampling, seed)
        return replace(step, text=step.text.strip())


class Overrunning(Faithful):
    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        step = super()._step(trajectory, sampling, seed)
        return replace(step, text=step.text + " and on and on and on")


class Undecided(Faithful):
    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        return super()._step(trajectory, sampling.replace(temperature=1.0), seed)


class Colder(Faithful):
    """Draws from another distribution than its own at temperature 1."""

    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        step = super()._step(trajectory, sampling, seed)
        return replace(step, proposal_logprob=step.logprob / 2) if sampling.temperature else step


def test_a_faithful_language_model_passes():
    check_language_model(Faithful())


def test_a_delimiter_need_not_be_white_space():
    check_language_model(Faithful(";"), sampling=Sampling(delimiter=";"))
    with pytest.raises(ContractError, match="a step contains its delimiter"):
        check_language_model(Faithful(";"), sampling=Sampling(delimiter="."))


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (Deaf, "seeds never collapse particles"),
        (Restless, "same seed = same tokens"),
        (Crowded, "batch = single"),
        (Ordered, "order does not matter"),
        (Entangled, "concurrent = sequential"),
        (Stateful, "fork = fresh"),
        (Forgetful, "one step per trajectory"),
        (Unexplained, "a step ends for a known reason"),
        (Verbose, "max_step_tokens holds"),
        (Unmarked, "a step contains its delimiter"),
        (Overrunning, "a step ends at its delimiter"),
        (Colder, "at temperature 1 proposal = model"),
        (Undecided, "temperature 0 does not depend on the seed"),
    ],
)
def test_the_law_that_a_language_model_breaks_is_named(cls: type[Faithful], law: str):
    with pytest.raises(ContractError, match=f"^{law}: "):
        check_language_model(cls())


def steadily(problem: Problem, text: str) -> float:
    """A score that depends on the text alone."""
    return (len(problem.question) + 7 * len(text)) % 101 / 101


class Reward(FunctionReward):
    """Keeps every law."""

    def __init__(self) -> None:
        super().__init__(steadily)


class OneShort(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        scores = await super().score(trajectories)
        return scores if len(scores) <= 3 else scores[1:]


class LastOnly(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [scores[-1:] for scores in await super().score(trajectories)]


class Unbounded(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [[1.5 * s for s in scores] for scores in await super().score(trajectories)]


class NotANumber(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [[np.nan for _ in scores] for scores in await super().score(trajectories)]


class Padded(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        longest = max(len(trajectory.text) for trajectory in trajectories)
        return [
            [s / (1 + (longest - len(t.text)) / 1000) for s in scores]
            for t, scores in zip(trajectories, await super().score(trajectories), strict=True)
        ]


class Remembering(FunctionReward):
    """Scores a node by when it was first seen, and keeps that."""

    def __init__(self) -> None:
        seen: Iterator[int] = itertools.count()
        super().__init__(lambda problem, text: next(seen) / 100)


class Prophetic(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [[scores[-1]] * len(scores) for scores in await super().score(trajectories)]


class Indifferent(Reward):
    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [[0.5] * trajectory.depth for trajectory in trajectories]


def test_a_faithful_reward_model_passes():
    check_reward_model(Reward())


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (OneShort, "one result per trajectory"),
        (LastOnly, "one score per step"),
        (Unbounded, "scores lie in"),
        (NotANumber, "scores lie in"),
        (Padded, "batch = single"),
        (Remembering, "fork = fresh"),
        (Prophetic, "incremental = whole"),
        (Indifferent, "scores vary"),
    ],
)
def test_the_law_that_a_reward_model_breaks_is_named(cls: type[Reward], law: str):
    with pytest.raises(ContractError, match=f"^{law}"):
        check_reward_model(cls())


def test_the_tolerance_is_an_argument():
    check_reward_model(Padded(), tolerance=0.2)
