"""A world without neural networks: a language model that tells the arithmetic task's reference steps, with mistakes,
and the exact checker as a noisy reward model. Deterministic in (text so far, seed), instant, async.

Opened by name as "worlds:language_model" and "worlds:reward_model". MOTES_WORLD_BLOCKS_AFTER=k makes the language
model wait for ever from its k-th call on, so that a test can kill a process at a known place.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Sequence

from motes import FunctionReward, Problem, Sampling, Step, Trajectory, Usage
from motes.errors import EngineError
from motes.tasks.arithmetic import parse


class StoryLanguageModel:
    """Reference steps, each wrong with probability `error_rate` (a wrong result is carried on by nobody).

    Args:
        merges_calls: what the engine claims about concurrent calls.
        blocks_after: calls after which it never returns; 0 for never.
        fails_on: raise EngineError for questions that contain this.
    """

    def __init__(
        self, error_rate: float = 0.2, *, merges_calls: bool = True, blocks_after: int = 0, fails_on: str | None = None
    ) -> None:
        self.error_rate = error_rate
        self.merges_calls = merges_calls
        self.blocks_after = blocks_after
        self.fails_on = fails_on
        self.calls = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        self.calls += 1
        if self.blocks_after and self.calls > self.blocks_after:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return [self._step(t, sampling, seed) for t, seed in zip(trajectories, seeds, strict=True)]

    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        question = trajectory.problem.question
        if self.fails_on is not None and self.fails_on in question:
            raise EngineError("the fake model fails on this question, as told")
        story = parse(question)
        steps = ("I count about 4.", "The answer is \\boxed{0}.") if story is None else story.steps
        text = steps[min(trajectory.depth, len(steps) - 1)]
        seed = 0 if sampling.temperature == 0 else seed
        chance = random.Random(hashlib.sha256(f"{question}|{trajectory.text}|{seed}".encode()).digest())
        if chance.random() < self.error_rate:
            text = _spoil(text, chance)
        elif trajectory.depth == len(steps) - 1 and story is not None and not _clean(trajectory, story.steps):
            text = _spoil(text, chance)  # who erred before errs at the end
        last = trajectory.depth >= len(steps) - 1
        text += "" if last else "\n\n"
        tokens = tuple(text.encode())[::2]
        usage = Usage(generated_tokens=len(tokens), prefill_tokens=0 if trajectory.depth else len(question))
        return Step(text, "eos" if last else "step", token_ids=tokens, logprob=-1.0, usage=usage)


def _clean(trajectory: Trajectory, steps: Sequence[str]) -> bool:
    return all(step.text.strip() == steps[i] for i, step in enumerate(trajectory.steps))


def _spoil(text: str, chance: random.Random) -> str:
    """The last number of the step, a little off."""
    end = max(i for i, c in enumerate(text) if c.isdigit()) + 1 if any(c.isdigit() for c in text) else 0
    start = end
    while start and text[start - 1].isdigit():
        start -= 1
    return text if not end else text[:start] + str(int(text[start:end]) + chance.choice((1, 2, 10))) + text[end:]


def _score(problem: Problem, text: str, noise: float) -> float:
    """High where every step so far is right, with noise drawn from the text."""
    story = parse(problem.question)
    right = story is not None and all(story.check_step(step) for step in text.split("\n\n") if step.strip())
    drawn = random.Random(hashlib.sha256(text.encode()).digest()).gauss(0.0, noise)
    return min(0.99, max(0.01, (0.75 if right else 0.35) + drawn))


def language_model() -> StoryLanguageModel:
    return StoryLanguageModel(blocks_after=int(os.environ.get("MOTES_WORLD_BLOCKS_AFTER", "0")))


def failing() -> StoryLanguageModel:
    return StoryLanguageModel(fails_on=" ")


def reward_model(noise: float = 0.15) -> FunctionReward:
    return FunctionReward(lambda problem, text: _score(problem, text, noise))


def contrary() -> FunctionReward:
    """An outcome reward model that believes what `reward_model` does not."""
    return FunctionReward(lambda problem, text: 0.01 if _score(problem, text, 0.0) > 0.5 else 0.99, outcome=True)


class Evens:
    """A task that needs code: any even number is right."""

    name = "evens"

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        return [Problem("Name an even number.", id="evens/0")][:limit]

    def answer(self, text: str) -> str | None:
        return text.split()[-1] if text.split() else None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second

    def grade(self, problem: Problem, answer: str) -> bool:
        return answer.isdigit() and int(answer) % 2 == 0
