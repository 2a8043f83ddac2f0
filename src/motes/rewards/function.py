"""A plain function as a reward model: a unit test, an exact checker, a heuristic."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from weakref import WeakKeyDictionary

from motes.types import Problem, Trajectory


class FunctionReward:
    """Scores each prefix with `fn`, once.

    Args:
        fn: (problem, text of the answer up to and including a step) → score in [0, 1]; may be async.
    """

    def __init__(self, fn: Callable[[Problem, str], float | Awaitable[float]]) -> None:
        self.fn = fn
        self._known: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        return [[await self._of(node) for node in trajectory.path] for trajectory in trajectories]

    async def _of(self, node: Trajectory) -> float:
        if node not in self._known:
            value = self.fn(node.problem, node.text)
            self._known[node] = float(await value if inspect.isawaitable(value) else value)
        return self._known[node]

    def __repr__(self) -> str:
        return f"FunctionReward({getattr(self.fn, '__name__', self.fn)})"
