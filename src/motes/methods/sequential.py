"""Complete answers drawn one after the other, several at once, until a method has seen enough of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from motes.core import Sampling, Trajectory
from motes.ledger import Call
from motes.methods.population import Population
from motes.methods.run import Run
from motes.protocols import LanguageModelTraits


class Draws:
    """The complete answers of a run, in order: the i-th is that of `Majority` and of `BestOfN` with the same seed.

    Args:
        num_samples: N, number of answers at most.
        num_in_flight: number of answers that are drawn at once. Under a token budget they are drawn one by one, so that
            which of them it cuts off does not depend on their speed.
    """

    def __init__(self, run: Run, num_samples: int, num_in_flight: int, sampling: Sampling) -> None:
        self._run = run
        self._streams = [np.random.default_rng(seed) for seed in run.rng.integers(2**63, size=num_samples)]
        self._num_in_flight = 1 if run.limits.token_budget is not None else num_in_flight
        whole = not LanguageModelTraits(run.lm).continues_prefixes
        self._sampling = sampling.whole() if whole else sampling
        self._before = run.usage
        self._calls: list[list[Call]] = [[] for _ in range(num_samples)]
        self._partial: dict[int, Trajectory] = {}  # as far as each has grown
        self.trajectories: list[Trajectory] = []
        """The answers so far."""

    async def draw(
        self,
        until: int,
        *,
        is_enough: Callable[[Sequence[Trajectory]], Awaitable[bool]] | None = None,
        check: Callable[[Trajectory], Trajectory] | None = None,
    ) -> None:
        """Draw answers until there are `until` of them, or enough, or a limit on the run is reached. There is at least
        one, however early the limit.

        Which answers there are in the end depends on nothing but their order. How many others have begun by then
        depends on their speed: they are cancelled, and their requests with them. The tokens of their complete steps
        count as failed.

        Args:
            is_enough: called with all answers so far after each one.
            check: called after each step with the partial answer, which it returns; finished, if it is to be stopped.
        """
        tasks: dict[int, asyncio.Task[Trajectory]] = {}
        begun = len(self.trajectories)
        try:
            for i in range(begun, until):
                while begun < min(until, i + self._num_in_flight) and not (begun and self._run.exhausted()):
                    tasks[begun] = asyncio.ensure_future(self._finish(begun, check))
                    begun += 1
                if i not in tasks:  # a limit is reached
                    return
                self.trajectories.append(await tasks.pop(i))
                if is_enough is not None and await is_enough(self.trajectories):
                    return
        finally:
            for task in tasks.values():
                task.cancel()
            if tasks:
                await asyncio.gather(*tasks.values(), return_exceptions=True)
                kept = chain.from_iterable(self._calls[: len(self.trajectories)])
                self._run.count_cancelled(self._before, kept)

    async def _finish(self, i: int, check: Callable[[Trajectory], Trajectory] | None) -> Trajectory:
        run, streams = self._run.part(self._calls[i]), [self._streams[i]]
        population = run.start(1)
        self._partial[i] = population.trajectories[0]
        while population.alive:
            population = await run.extend(population, score=False, sampling=self._sampling, streams=streams)
            if check is not None:
                population = replace(population, trajectories=tuple(map(check, population.trajectories)))
            self._partial[i] = population.trajectories[0]
            if run.on_progress is not None:
                run.on_progress(tuple(self._partial.values()))
        return self._partial[i]


def population_of(trajectories: Sequence[Trajectory], scores: Sequence[Sequence[float]] | None = None) -> Population:
    """A population of complete answers with these scores of their steps, or without scores."""
    n = len(trajectories)
    return Population(tuple(trajectories), tuple(scores or [()] * n), np.ones(n, dtype=bool))
