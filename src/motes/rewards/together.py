"""A language model asked for one step at a time, by many at once, and answering them together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from motes.errors import ContextLengthError, MotesError, StepsFailedError
from motes.protocols import LanguageModel
from motes.types import Sampling, Step, Trajectory

Ask = tuple[Trajectory, int]


class Together:
    """Whatever is wanted in one turn of the event loop is one call of the language model, for each kind of sampling.

    A model that merges concurrent calls itself is asked for each step by a call of its own. Use as a context manager:
    calls that are in flight at its end are cancelled.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._merges = bool(getattr(lm, "merges_calls", False))
        self._waiting: dict[Sampling, list[tuple[Ask, asyncio.Future[Step | MotesError]]]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *exception: object) -> None:
        for call in self._calls:
            call.cancel()

    async def extend(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step | MotesError:
        """A step, or why there is none for this trajectory.

        Raises:
            EngineError: the model cannot go on.
        """
        if self._merges:
            return (await self._call([(trajectory, seed)], sampling))[0]
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._start)  # behind everyone who is about to ask
        answer: asyncio.Future[Step | MotesError] = loop.create_future()
        self._waiting.setdefault(sampling, []).append(((trajectory, seed), answer))
        return await answer

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for sampling, group in waiting.items():
            call = asyncio.ensure_future(self._answer(group, sampling))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _answer(self, group: Sequence[tuple[Ask, asyncio.Future[Step | MotesError]]], sampling: Sampling) -> None:
        try:
            outcomes = await self._call([ask for ask, _ in group], sampling)
        except Exception as error:
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), outcome in zip(group, outcomes, strict=True):
            if not answer.done():
                answer.set_result(outcome)

    async def _call(self, asks: Sequence[Ask], sampling: Sampling) -> Sequence[Step | MotesError]:
        trajectories, seeds = [trajectory for trajectory, _ in asks], [seed for _, seed in asks]
        try:
            return await StepsFailedError.outcomes_of(self.lm.extend(trajectories, sampling, seeds))
        except ContextLengthError as error:  # of one of them: the others are asked without it
            if len(asks) == 1:
                return [error]
            alone = await asyncio.gather(*(self._call([ask], sampling) for ask in asks))
            return [outcome for outcomes in alone for outcome in outcomes]
