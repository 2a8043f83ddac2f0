"""The tree of a run's steps, and its population in each round, as values that JSON can hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.core import Finish, Moves, Problem, Record, Result, Step, Trajectory, Usage
from motes.core.thinking import thought_spans

Numbers = tuple[float | None, ...]
"""An array as JSON can hold it: None stands for NaN, and for the logarithm of zero."""


@dataclass(frozen=True)
class Node:
    """A step of one or more partial answers.

    Attributes:
        parent: the node that it continues; None for a first step.
        tokens: its number of tokens.
        logprob: its log-probability, see `motes.Step`.
        score: the reward model's last score of the step; None if it was never scored.
        thought_tokens: how many of its tokens are thought.
        thoughts: the stretches of its text that are thoughts: the offsets of the start and the end of each.
        prompt: the last message of the prompt of a first step, if it is the method's own, such as that of a refinement;
            None: that of the trace's messages.
    """

    parent: int | None
    text: str
    tokens: int
    logprob: float | None = None
    score: float | None = None
    thought_tokens: int = 0
    thoughts: tuple[int, ...] = ()
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Particles:
    """A population.

    Attributes:
        nodes: (N,) the last step of each particle, as its index in the trace's nodes; None if there is no step yet.
        finished: (N,) the reason why each particle is finished; None while it is not.
        log_weights: (N,) unnormalised; None for zero weight.
        scores: (N,) the reward model's scores; None if there is none.
        errors: for each dropped particle, by its index, the reason.
    """

    nodes: tuple[int | None, ...] = ()
    finished: tuple[Finish | None, ...] = ()
    log_weights: Numbers = ()
    scores: Numbers = ()
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RoundMoves:
    """The answers that a round proposed in the place of others; see `motes.core.Moves`.

    Attributes:
        nodes: (N,) the last step of each proposal, as for `Particles`.
        accepted: (N,) whether it has replaced the particle.
        errors: for each proposal that a model could not write or score, by its index, the reason.
    """

    nodes: tuple[int | None, ...] = ()
    accepted: tuple[bool, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Round(Particles):
    """The population after a round; see `motes.core.Record`."""

    ancestors: tuple[int, ...] = ()
    ess: float = 0.0
    resampled: bool = False
    log_evidence: float | None = None
    sweep: int = 0
    chain: int = 0
    usage: Usage = field(default_factory=Usage)
    moves: RoundMoves | None = None


class Tree:
    """Numbers the steps of a run on a problem as nodes while the run goes on. Trajectories that differ only in how they
    ended are one node."""

    def __init__(self, problem: Problem) -> None:
        self._messages = problem.messages
        self._nodes: list[Node] = []
        self._numbers: dict[tuple[int | None, int], int] = {}  # by the parent's number and the step's id
        self._steps: list[Step] = []  # while a step lives, no other one has its id
        self._changed: set[int] = set()

    def round(self, record: Record) -> Round:
        """The population after a round."""
        return Round(
            **self._particles(record.trajectories, record.log_weights, record.scores, record.step_scores),
            ancestors=tuple(record.ancestors.tolist()),
            ess=_round(record.ess) or 0.0,
            resampled=record.resampled,
            log_evidence=_round(record.log_evidence),
            sweep=record.sweep,
            chain=record.chain,
            usage=record.usage,
            moves=None if record.moves is None else self._moves(record.moves),
        )

    def _moves(self, moves: Moves) -> RoundMoves:
        paths = self._paths(moves.trajectories, moves.step_scores)
        return RoundMoves(
            nodes=_ends(paths), accepted=tuple(moves.accepted.tolist()), errors=_errors(moves.trajectories)
        )

    def final(self, result: Result) -> Particles:
        """The population from which the answer was selected."""
        return Particles(**self._particles(result.trajectories, result.log_weights, result.scores))

    def nodes(self) -> tuple[Node, ...]:
        """All nodes so far."""
        return tuple(self._nodes)

    def news(self) -> dict[int, Node]:
        """The nodes that are new, or have a new score, since the last call; by number."""
        changed, self._changed = sorted(self._changed), set()
        return {number: self._nodes[number] for number in changed}

    def _path(self, trajectory: Trajectory) -> list[int]:
        """The numbers of the nodes on a trajectory's path."""
        path: list[int] = []
        for at in trajectory.path:
            step, before = at.step, at.parent
            assert step is not None
            assert before is not None
            parent = path[-1] if path else None
            key = parent, id(step)
            if key not in self._numbers:
                self._changed.add(len(self._nodes))
                self._numbers[key] = len(self._nodes)
                self._steps.append(step)
                prompt = None if path else self._own_prompt(trajectory.problem)
                thought_tokens = at.thought_tokens - (0 if at.thinking.was_unopened else before.thought_tokens)
                self._nodes.append(
                    Node(
                        parent,
                        step.text,
                        step.num_tokens,
                        _round(step.logprob),
                        thought_tokens=min(thought_tokens, step.num_tokens),
                        thoughts=tuple(chain.from_iterable(thought_spans(before.thinking.reading, step.text))),
                        prompt=prompt,
                    )
                )
            path.append(self._numbers[key])
        return path

    def _own_prompt(self, problem: Problem) -> str | None:
        """The last message of a prompt that is not the run's."""
        return None if problem.messages == self._messages else problem.messages[-1]["content"]

    def _paths(self, trajectories: Sequence[Trajectory], step_scores: Sequence[Sequence[float]]) -> list[list[int]]:
        """The numbers of the nodes on the paths of trajectories, whose scores the nodes get."""
        paths = [self._path(trajectory) for trajectory in trajectories]
        for path, path_scores in zip(paths, step_scores, strict=False):
            for number, score in zip(path, map(_round, path_scores), strict=False):
                if self._nodes[number].score != score:
                    self._nodes[number] = dataclasses.replace(self._nodes[number], score=score)
                    self._changed.add(number)
        return paths

    def _particles(
        self,
        trajectories: tuple[Trajectory, ...],
        log_weights: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        step_scores: tuple[Any, ...] = (),
    ) -> dict[str, Any]:
        """The fields of `Particles`."""
        return {
            "nodes": _ends(self._paths(trajectories, step_scores)),
            "finished": tuple(trajectory.finished for trajectory in trajectories),
            "log_weights": tuple(map(_round, log_weights.tolist())),
            "scores": tuple(map(_round, scores.tolist())),
            "errors": _errors(trajectories),
        }


def _ends(paths: Sequence[Sequence[int]]) -> tuple[int | None, ...]:
    return tuple(path[-1] if path else None for path in paths)


def _errors(trajectories: Sequence[Trajectory]) -> dict[str, str]:
    """The reason of each failed trajectory, by its index."""
    return {str(i): str(t.error) for i, t in enumerate(trajectories) if t.error is not None}


def _round(value: float | None) -> float | None:
    """A number with six digits; None if JSON cannot hold it."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
