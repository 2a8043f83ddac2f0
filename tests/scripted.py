"""A language model that follows a script, and what methods that ask it again are tested with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import motes
from motes import FunctionReward, Problem, Result, Sampling, Step, Trajectory
from motes.core import Failure

QUESTION = "What is 1 + 1?"


class Scripted:
    """Answers by a function of the prompt's last message and the seed: a text, an error, or a Failure."""

    def __init__(self, answer: Callable[[str, int], Any], *, merges_calls: bool = False) -> None:
        self.answer = answer
        self.merges_calls = merges_calls
        self.prompts: list[Problem] = []

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Any]:
        steps: list[Any] = []
        for trajectory, seed in zip(trajectories, seeds, strict=True):
            self.prompts.append(trajectory.problem)
            answer = self.answer(trajectory.problem.question, seed)
            if isinstance(answer, Exception):
                raise answer
            steps.append(answer if isinstance(answer, (Step, Failure)) else Step(answer, "eos", tuple(answer.encode())))
        return steps

    @property
    def refinements(self) -> list[Problem]:
        return [problem for problem in self.prompts if problem is not self.prompts[0]]


def box(number: int) -> str:
    return f"It is \\boxed{{{number}}}."


def reading(text: str) -> str | None:
    """The proposed solution in a refinement's prompt; None in any other."""
    return text.partition("<solution>\n")[2].partition("\n</solution>")[0] or None


RIGHT = FunctionReward(lambda problem, text: 0.9 if "boxed{2}" in text else 0.3)
CHECKER = FunctionReward(lambda problem, text: "boxed{2}" in text)


def solve(lm: Any, made: Any, reward: Any = RIGHT, problem: Any = QUESTION, **options: Any) -> Result:
    return motes.solve(problem, **{"lm": lm, "reward": reward, "method": made, "seed": 1, **options})


def drafts(*numbers: int) -> Callable[[int], str]:
    """Drafts by seed, each equally likely."""
    return lambda seed: box(numbers[seed % len(numbers)])
