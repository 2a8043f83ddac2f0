"""Single steps of a language model, for many concurrent callers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from motes.concurrency import CallBatcher, gather
from motes.core import Failure, Sampling, Step, Trajectory
from motes.errors import ContextLengthError
from motes.protocols import LanguageModel, LanguageModelTraits


class _Request(NamedTuple):
    trajectory: Trajectory
    sampling: Sampling
    seed: int


class StepSource:
    """Extends trajectories one at a time. Concurrent calls with the same sampling become one call of the language
    model, unless it merges them itself."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._merges = LanguageModelTraits(lm).merges_calls
        self._batcher: CallBatcher[_Request, Step | Failure] = CallBatcher(self._extend_all)

    async def extend(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step | Failure:
        """A step, or the failure of this trajectory.

        Raises:
            EngineError: the model cannot go on.
        """
        request = _Request(trajectory, sampling, seed)
        (outcome,) = await (self._extend([request]) if self._merges else self._batcher([request]))
        return outcome

    async def _extend_all(self, requests: list[_Request]) -> Sequence[Step | Failure]:
        groups: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.sampling, []).append(i)
        outcomes = await gather(self._extend([requests[i] for i in group]) for group in groups.values())
        outcome_of = dict(zip(chain(*groups.values()), chain(*outcomes), strict=True))
        return [outcome_of[i] for i in range(len(requests))]

    async def _extend(self, requests: Sequence[_Request]) -> Sequence[Step | Failure]:
        """Steps for requests with the same sampling."""
        trajectories, seeds = [r.trajectory for r in requests], [r.seed for r in requests]
        try:
            return await self.lm.extend(trajectories, requests[0].sampling, seeds)
        except ContextLengthError as error:  # one prompt is too long, but the others shall not fail with it
            if len(requests) == 1:
                return [Failure(error)]
            results = await gather(self._extend([request]) for request in requests)
            return [outcome for outcomes in results for outcome in outcomes]
