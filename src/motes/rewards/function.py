"""A plain function as a reward model: an exact checker, unit tests of answers that are code, a heuristic."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, overload
from weakref import WeakKeyDictionary

from motes.arguments import fit
from motes.core import NEUTRAL, Failure, Problem, Trajectory
from motes.errors import MotesError, RewardError
from motes.threads import OneAtATime, abandoned, in_thread

Single = Callable[[Problem, str], float | Awaitable[float]]
Batched = Callable[[Sequence[Problem], Sequence[str]], Sequence[float] | Awaitable[Sequence[float]]]


class FunctionReward:
    """Scores each prefix with `fn`, once.

    Args:
        fn: (problem, text of the answer up to and including a step) → score in [0, 1], or True or False. An async
            function is called for all prefixes of a batch at once. Any other is called in a thread, one call at a time,
            so that it may take long. If its run ends during a call, nobody waits for the call.
        batched: `fn` takes all texts that a call has to score at once: (problems, texts), (B,) each → (B,) scores.
        outcome: only finished answers are scored. The score of anything else is `motes.core.NEUTRAL`.

    If `fn` raises one of motes' own errors (`motes.errors.RewardError`, say), it refuses this answer: a run drops the
    particle and goes on with the others. A batched function refuses all answers of its call.

    Raises:
        RewardError: while scoring: `fn` raised any other exception, or did not return a number in [0, 1].
    """

    @overload
    def __init__(self, fn: Single, *, batched: Literal[False] = False, outcome: bool = False) -> None: ...
    @overload
    def __init__(self, fn: Batched, *, batched: Literal[True], outcome: bool = False) -> None: ...
    def __init__(self, fn: Single | Batched, *, batched: bool = False, outcome: bool = False) -> None:
        self.fn: Callable[..., Any] = fit("fn", fn, Callable)
        self.batched: bool = fit("batched", batched, bool)
        self.outcome: bool = fit("outcome", outcome, bool)
        self._is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)
        self._queue = OneAtATime()
        self._scores: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        every_node = dict.fromkeys(node for trajectory in trajectories for node in trajectory.path)
        need_score = (node for node in every_node if node.finished is not None or not self.outcome)
        nodes = [node for node in need_score if node not in self._scores]
        failures: dict[Trajectory, MotesError] = {}
        for node, value in zip(nodes, await self._values(nodes) if nodes else (), strict=True):
            if isinstance(value, MotesError):
                failures[node] = value
            else:
                self._scores[node] = self._to_score(value, node)
        scores: list[Sequence[float] | Failure] = []
        for trajectory in trajectories:
            errors = [failures[node] for node in trajectory.path if node in failures]
            path_scores = [self._scores.get(node, NEUTRAL) for node in trajectory.path]
            scores.append(Failure(errors[0]) if errors else path_scores)
        return scores

    async def _values(self, nodes: Sequence[Trajectory]) -> Sequence[Any]:
        """For each node, the value that `fn` returns or the exception that it raises."""
        if not self.batched:
            return await self._results([(node.problem.plain, node.text) for node in nodes])
        (values,) = await self._results([([node.problem.plain for node in nodes], [node.text for node in nodes])])
        if isinstance(values, BaseException):
            return [values] * len(nodes)
        if len(values) != len(nodes):
            raise RewardError(f"{self!r} gave {len(values)} scores for {len(nodes)} texts: it must return one for each")
        return list(values)

    async def _results(self, calls: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """For the arguments of each call, the value that `fn` returns or the exception that it raises."""
        if self._is_async:
            return await asyncio.gather(*(_resolve(self.fn(*arguments)) for arguments in calls), return_exceptions=True)
        results = await in_thread(self._call_each, calls)
        if any(map(inspect.isawaitable, results)):  # it is not declared async, but returns awaitables
            return await asyncio.gather(*map(_resolve, results), return_exceptions=True)
        return results

    def _call_each(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Like `_results`, in a thread, until nobody waits for the results any more."""
        results: list[Any] = []
        with self._queue.turn():
            for arguments in calls:
                if abandoned():
                    break
                try:
                    results.append(self.fn(*arguments))
                except BaseException as error:  # `sys.exit()` in `fn` only ends this call
                    results.append(error)
        return results

    def _to_score(self, value: Any, node: Trajectory) -> float:
        if isinstance(value, BaseException):
            raise RewardError(f"{self!r} raised {type(value).__name__}: {value}, {_location(node)}") from value
        try:
            score = float(value) if hasattr(value, "__float__") else float("nan")
        except (TypeError, ValueError):
            score = float("nan")
        if not 0.0 <= score <= 1.0:
            raise RewardError(f"{self!r} gave {value!r}, {_location(node)}: a score must be a number in [0, 1]")
        return score

    def __repr__(self) -> str:
        return f"FunctionReward({getattr(self.fn, '__name__', self.fn)})"


async def _resolve(result: Any) -> Any:
    try:
        return await result if inspect.isawaitable(result) else result
    except SystemExit as error:  # it would end the event loop
        return error


def _location(node: Trajectory) -> str:
    return f"for the text that ends with {node.text[-60:]!r}"
