"""Pilots on worlds of chains: independent answers with scores, as records and as the reward model saw them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

import motes
from motes.lab import Evaluation, RunRecord, evaluate, read_records
from motes.lab.chains import RIGHT, ChainWorld, is_right
from motes.lab.measure.readings import ReadAnswer


def measured(directory: Path, world: ChainWorld, methods=("wbon",), budgets=(8,), limit=100) -> list[RunRecord]:
    told = "&".join(
        f"{name}={getattr(world, name)}"
        for name in (
            "num_steps",
            "success",
            "separation",
            "systematic",
            "memory",
            "agreement",
            "luck",
            "spread",
            "num_problems",
        )
    )
    evaluation = Evaluation(
        task=f"motes.lab.chains:ChainWorld?{told}",
        methods=methods,
        budgets=budgets,
        limit=limit,
        lm="its",
        reward="its",
    )
    opened = evaluation.opened
    asyncio.run(evaluate(evaluation, directory, lm=opened.lm, reward=opened.reward, concurrency=4, traces=False))
    return read_records(directory / "records.jsonl")


def pilot_of(world: ChainWorld, count: int = 8) -> list[ReadAnswer]:
    """What the reward model makes of answers, and where they go wrong."""
    found = []
    for seed, problem in enumerate(world.problems()):
        result = motes.solve(
            problem, lm=world.lm, reward=world.reward, method=motes.BestOfN(count), task=world, seed=seed
        )
        scored = asyncio.run(world.reward.score(result.trajectories))
        for trajectory, scores in zip(result.trajectories, scored, strict=True):
            marks = [is_right(step.text) for step in trajectory.steps]
            logits = np.log(np.array(scores) / (1 - np.array(scores)))
            mistake = None if all(marks) else marks.index(False)
            right = world.answer(trajectory.text) == RIGHT
            found.append(ReadAnswer(str(problem.id), tuple(logits.tolist()), mistake, right))
    return found
