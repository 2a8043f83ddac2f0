"""A population: N partial answers with their scores, as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from motes.core import FloatArray, Trajectory
from motes.smc import Weights

BoolArray = npt.NDArray[np.bool_]

Aggregation = Literal["last", "min", "prod", "mean"]
AGGREGATIONS: dict[str, Callable[[FloatArray], float]] = {
    "last": lambda steps: float(steps[-1]),
    "min": lambda steps: float(steps.min()),
    "prod": lambda steps: float(steps.prod()),
    "mean": lambda steps: float(steps.mean()),
}
"""Functions from a trajectory's step scores to one score. (A fifth one in the literature, "model", is a way to *read*
the trajectory: see the option `prefix` of reward models.)"""


@dataclass(frozen=True, eq=False)
class Population:
    """N partial answers.

    Attributes:
        trajectories: (N,)
        scores: (N,) the reward model's scores of each trajectory, one per step; empty if it was not scored.
        extended: (N,) whether the last extension added a step; False for trajectories that were finished before.
    """

    trajectories: tuple[Trajectory, ...]
    scores: tuple[Sequence[float], ...]
    extended: BoolArray

    def __len__(self) -> int:
        return len(self.trajectories)

    def select(self, ancestors: npt.ArrayLike) -> Population:
        """The population of the particles with these indices, repeats allowed."""
        index = np.asarray(ancestors, dtype=np.int64)
        return Population(
            tuple(self.trajectories[i] for i in index), tuple(self.scores[i] for i in index), self.extended[index]
        )

    @classmethod
    def concatenate(cls, parts: Iterable[Population]) -> Population:
        """All populations as one, in order."""
        parts = tuple(parts)
        return cls(
            tuple(trajectory for part in parts for trajectory in part.trajectories),
            tuple(scores for part in parts for scores in part.scores),
            np.concatenate([part.extended for part in parts]),
        )

    def until(self, t: int) -> Population:
        """The prefixes of t ≥ 1 steps with their scores; a shorter trajectory as a whole."""
        paths = [trajectory.path[:t] or (trajectory,) for trajectory in self.trajectories]
        return Population(
            tuple(path[-1] for path in paths),
            tuple(scores[:t] for scores in self.scores),
            np.array([trajectory.depth >= t for trajectory in self.trajectories], dtype=bool),
        )

    @property
    def dropped(self) -> BoolArray:
        """(N,) whether a model could not extend or score the particle. It has no scores, weight zero and no answer."""
        return np.array([trajectory.finished == "failed" for trajectory in self.trajectories], dtype=bool)

    def without_dropped(self, weights: Weights) -> Weights:
        """The weights, (N,), with zero for dropped particles."""
        return weights.add(np.where(self.dropped, -np.inf, 0.0)) if self.dropped.any() else weights

    @property
    def alive(self) -> bool:
        """Whether any trajectory is unfinished."""
        return any(trajectory.finished is None for trajectory in self.trajectories)

    def aggregate(self, how: Aggregation = "last", *, before: bool = False) -> FloatArray:
        """(N,) one score per trajectory, NaN if it has none; `before` leaves out the last step."""
        function = AGGREGATIONS[how]
        used = [steps[:-1] if before else steps for steps in self.scores]
        return np.array([function(np.asarray(steps)) if len(steps) else np.nan for steps in used])
