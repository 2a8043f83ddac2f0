"""Models for gateways in processes of their own. The question says how its run goes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from motes import Sampling, Step, Trajectory, Usage


class EndlessLanguageModel:
    """Answers 4 in one step.

    "never": it does not come to it. "partly": every other trajectory never comes to it. "slowly": it takes a second and
    a half. "at length": it takes 6 MB. "deaf": it goes on for seconds after it is cancelled.
    """

    merges_calls = True

    def __init__(self) -> None:
        self.calls = 0

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        question = trajectories[0].problem.question
        self.calls += 1
        if "never" in question or ("partly" in question and self.calls % 2 == 0):
            await asyncio.Event().wait()
        if "deaf" in question:
            await self._ignore_cancellation()
        await asyncio.sleep(1.5 if "slowly" in question else 0)
        text = "It is \\boxed{4}." + " " * (6_000_000 if "at length" in question else 0)
        step = Step(text, "eos", token_ids=(1, 2), usage=Usage(generated_tokens=2))
        return [step for _ in trajectories]

    async def _ignore_cancellation(self) -> None:
        clock, until = asyncio.get_running_loop().time, math.inf
        while clock() < until:
            try:
                await asyncio.sleep(min(until - clock(), 1000.0))
            except asyncio.CancelledError:
                until = min(until, clock() + 8.0)


def language_model() -> EndlessLanguageModel:
    return EndlessLanguageModel()
