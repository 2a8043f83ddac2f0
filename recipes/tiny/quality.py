"""Measure the quality of the bundled models on fixed problems, for the model cards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

import motes
from motes.core import Failure
from motes.lab.measure.reliability import Predictions, auroc
from motes.methods import Majority
from motes.tasks import Arithmetic
from motes.tasks.arithmetic import parse

CONCURRENT = 16


@dataclass(frozen=True)
class Samples:
    """The solutions that were sampled for a problem.

    Attributes:
        right: for each solution, whether its answer is right.
        steps: for each solution that the models can read to its end, whether each step is right, by the exact checker.
        scores: for each of these, the reward model's scores of the steps; empty without a reward model.
    """

    problem: str
    level: int
    right: list[bool]
    steps: list[list[bool]]
    scores: list[list[float]]

    @property
    def so_far(self) -> list[list[bool]]:
        """Whether each step and all before it are right."""
        return [np.cumprod(steps).astype(bool).tolist() for steps in self.steps]

    @property
    def tries(self) -> list[list[bool]]:
        """Whether each step is right, up to the first wrong one."""
        return [so_far[: sum(so_far) + 1] for so_far in self.so_far]


async def sample(
    problem: motes.Problem, lm: motes.LanguageModel, reward: motes.RewardModel | None, samples: int
) -> Samples:
    task = Arithmetic()
    story = parse(problem.question)
    assert story is not None
    assert problem.id is not None
    result = await motes.asolve(problem, lm=lm, method=Majority(samples), task=task)
    readable = [trajectory for trajectory in result.trajectories if trajectory.error is None]
    scores: list[list[float]] = []
    if reward is not None:
        pairs = list(zip(readable, await reward.score(readable), strict=True))
        readable = [trajectory for trajectory, values in pairs if not isinstance(values, Failure)]
        scores = [list(values) for _, values in pairs if not isinstance(values, Failure)]
    steps = [[story.check_step(step.text) for step in trajectory.steps] for trajectory in readable]
    right = [task.answer(trajectory.text) == problem.answer for trajectory in result.trajectories]
    return Samples(problem.id, story.level, right, steps, scores)


def success(rows: Sequence[Samples]) -> list[float]:
    """The probability that the first step is right, that the second one is if the first is, and so on."""
    columns = zip_longest(*(tries for row in rows for tries in row.tries))
    return [float(np.mean([right for right in column if right is not None])) for column in columns]


def summary(rows: Sequence[Samples]) -> dict[str, float]:
    """pass@1, pass@n, success of a step, number of steps; and AUROC: over all pairs of steps, over pairs from the same
    problem, over such pairs at the same depth, and for whether a step itself is right."""
    out = {
        "pass@1": np.mean([np.mean(row.right) for row in rows]),
        f"pass@{len(rows[0].right)}": np.mean([any(row.right) for row in rows]),
        "success": np.mean([right for row in rows for tries in row.tries for right in tries]),
        "steps": np.mean([len(steps) for row in rows for steps in row.steps]),
    }
    if rows[0].scores:
        scored = [
            (score, right, own, row.problem, depth)
            for row in rows
            for scores, so_far, steps in zip(row.scores, row.so_far, row.steps, strict=True)
            for depth, (score, right, own) in enumerate(zip(scores, so_far, steps, strict=True))
        ]
        predictions = Predictions.of([(score, right, problem) for score, right, _, problem, _ in scored])
        parts = {part: number for number, part in enumerate(dict.fromkeys(row[3:] for row in scored))}
        overall, within = predictions.auroc()
        out |= {
            "auroc": overall.value,
            "auroc_within": within.value,
            "auroc_abreast": predictions.auroc_within(np.array([parts[row[3:]] for row in scored])).value,
            "auroc_own_step": auroc([row[0] for row in scored], [row[2] for row in scored]),
        }
    return {name: round(float(value), 4) for name, value in out.items()}


def measure(lm_spec: str, reward_spec: str | None, split: str, samples: int, limit: int | None, target: Path) -> None:
    """Sample answers to each problem of a split at temperature 0.8, and print their quality by level."""
    lm = motes.language_model(lm_spec)
    reward = motes.reward_model(reward_spec) if reward_spec is not None else None
    turns = asyncio.Semaphore(CONCURRENT)

    async def one(problem: motes.Problem) -> Samples:
        async with turns:
            return await sample(problem, lm, reward, samples)

    async def everything() -> list[Samples]:
        return await asyncio.gather(*map(one, Arithmetic().problems(split, limit)))

    rows = asyncio.run(everything())
    out = {
        str(level): summary([row for row in rows if row.level == level])
        for level in sorted({row.level for row in rows})
    }
    out["all"] = summary(rows)
    for name, values in out.items():
        print(name, json.dumps(values), flush=True)
    print("success of the first step, the second, …:", " ".join(f"{share:.2f}" for share in success(rows)))
    target.write_text(json.dumps(out, indent=2) + "\n")
