"""A reward model with a table of scores: the counterpart of `TabularLanguageModel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from motes.arguments import fit
from motes.core import Trajectory
from motes.errors import ConfigurationError
from motes.text import well_formed

Path = tuple[str, ...]


class TabularReward:
    """A reward model given as a table.

    Args:
        table: the score in [0, 1] of each prefix, as the tuple of its steps' texts.
        default: the score of a prefix that is not in the table.

    Raises:
        ConfigurationError: a score is not in [0, 1].
    """

    def __init__(self, table: Mapping[Path, float], default: float = 0.5) -> None:
        for prefix, score in (*table.items(), ((), default)):
            if not 0 <= fit(f"the score of {prefix!r}", score, float) <= 1:
                raise ConfigurationError(f"the score of {prefix!r} is {score}: it must lie in [0, 1]")
        self.table = {tuple(map(well_formed, prefix)): score for prefix, score in table.items()}
        self.default = default

    @classmethod
    def random(cls, rng: np.random.Generator, prefixes: Sequence[Path]) -> TabularReward:
        """A random score in (0, 1) for each prefix."""
        return cls({prefix: float(rng.uniform(0.02, 0.98)) for prefix in prefixes})

    def __getitem__(self, prefix: Path) -> float:
        return self.table.get(prefix, self.default)

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
        texts = [tuple(step.text for step in trajectory.steps) for trajectory in trajectories]
        return [[self[path[: t + 1]] for t in range(len(path))] for path in texts]

    def __repr__(self) -> str:
        return f"TabularReward({len(self.table)} prefixes)"
