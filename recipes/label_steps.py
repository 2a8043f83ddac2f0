"""Make a file of labelled steps: samples of a language model on the bundled task, checked by its exact step checker.

    python recipes/label_steps.py steps.jsonl                    # 500 test problems, 8 samples each: 4,000 answers
    motes rate tiny --data steps.jsonl --out runs/rate-tiny

A line is {"question": …, "steps": […], "labels": […]}: the format that `motes rate` calls `steps`. A label is 1 if the
answer is right up to and including the step.

2026-11-29: four minutes on one core; `docs/reward-models.md` has the result of `motes rate tiny`.
"""

from __future__ import annotations

import argparse
import asyncio
from itertools import accumulate
from pathlib import Path

import motes
from motes import files
from motes.methods import Majority
from motes.tasks import Arithmetic
from motes.text import json_line

CONCURRENT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--limit", type=int, help="number of problems, from the first on; levels take turns")
    parser.add_argument("--samples", type=int, default=8, help="number of answers to each problem")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lines = asyncio.run(label(args))
    files.write_text(args.file, "".join(lines))
    print(f"{len(lines)} answers in {args.file}")


async def label(args: argparse.Namespace) -> list[str]:
    """A line for each answer, in the order of the problems."""
    lm, task = motes.language_model(args.model), Arithmetic()
    sampling, room = motes.Sampling(temperature=args.temperature), asyncio.Semaphore(CONCURRENT)

    async def answers(place: int, problem: motes.Problem) -> list[str]:
        async with room:
            method, seed = Majority(args.samples), 1_000_003 * args.seed + place
            result = await motes.asolve(problem, lm=lm, method=method, sampling=sampling, seed=seed, task=task)
        lines = []
        for trajectory in result.trajectories:
            steps = [step.text for step in trajectory.steps]
            right = [task.check_step(problem, step) for step in steps]
            labels = [int(so_far) for so_far in accumulate(right, lambda before, step: before and step)]
            lines.append(json_line({"question": problem.question, "steps": steps, "labels": labels}) + "\n")
        return lines

    problems = task.problems(args.split, args.limit)
    groups = await asyncio.gather(*(answers(place, problem) for place, problem in enumerate(problems)))
    return [line for lines in groups for line in lines]


if __name__ == "__main__":
    main()
