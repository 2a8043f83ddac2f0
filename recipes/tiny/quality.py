"""What the bundled models can do, measured on the 500 test problems; goes into the model cards."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

import motes
from motes.lab.reliability import auroc
from motes.methods import BestOfN
from motes.tasks import Arithmetic
from motes.tasks.arithmetic import LEVELS, parse

CONCURRENT = 16


def measure(lm_spec: str, reward_spec: str, samples: int, target: Path | None) -> None:
    """Sample answers to each problem at temperature 0.8; print pass@1, pass@n and the reward model's AUROC by level."""
    lm, reward = motes.language_model(lm_spec), motes.reward_model(reward_spec)
    task = Arithmetic()
    limit = asyncio.Semaphore(CONCURRENT)

    async def one(problem: motes.Problem) -> dict[str, Any]:
        async with limit:
            result = await motes.asolve(problem, lm=lm, reward=reward, method=BestOfN(samples), task=task)
            story = parse(problem.question)
            assert story is not None
            right = [task.answer(t.text) == problem.answer for t in result.trajectories]
            labels: list[bool] = []
            own: list[bool] = []
            scores: list[float] = []
            readable = [trajectory for trajectory in result.trajectories if trajectory.error is None]
            for trajectory, values in zip(readable, await reward.score(readable), strict=True):
                steps = [story.check_step(step.text) for step in trajectory.steps]
                own += steps
                labels += np.cumprod(steps).astype(bool).tolist()
                scores += values
            return {"level": story.level, "right": right, "labels": labels, "own": own, "scores": scores}

    async def everything() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(problem) for problem in task.problems()))

    rows = asyncio.run(everything())
    out: dict[str, Any] = {}
    for name, levels in (*((str(level), (level,)) for level in LEVELS), ("all", LEVELS)):
        chosen = [row for row in rows if row["level"] in levels]
        scores = [score for row in chosen for score in row["scores"]]
        out[name] = {
            "pass@1": round(float(np.mean([np.mean(row["right"]) for row in chosen])), 4),
            f"pass@{samples}": round(float(np.mean([any(row["right"]) for row in chosen])), 4),
            "auroc": round(auroc(scores, [label for row in chosen for label in row["labels"]]), 4),
            "auroc_own_step": round(auroc(scores, [label for row in chosen for label in row["own"]]), 4),
        }
        print(name, json.dumps(out[name]), flush=True)
    if target is not None:
        target.write_text(json.dumps(out, indent=2) + "\n")
