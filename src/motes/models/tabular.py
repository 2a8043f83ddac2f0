"""A finite language model, whose paths can all be enumerated: exact results for tests, no downloads."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from motes.core import Certainty, Sampling, Step, StepEnd, Trajectory
from motes.errors import ConfigurationError
from motes.text import well_formed

Path = tuple[str, ...]


class _Row(NamedTuple):
    """A distribution over steps, in the form that sampling needs."""

    texts: tuple[str, ...]
    cumulative: list[float]
    logprobs: list[float]
    likeliest: int

    @classmethod
    def of(cls, row: Mapping[str, float]) -> _Row:
        probabilities = np.array(list(row.values()))
        with np.errstate(divide="ignore"):
            logprobs = np.log(probabilities).tolist()
        return cls(tuple(row), np.cumsum(probabilities).tolist(), logprobs, int(probabilities.argmax()))


class TabularLanguageModel:
    """A language model given as a table.

    Args:
        table: for each prefix, as the tuple of its steps' texts, the probability of each next step. A step that leads
            to a prefix without an entry ends the answer.

    Sampling: temperature 0 takes the likeliest step; any other temperature samples from the table as it is. Steps are
    those of the table, whatever the delimiter. Other fields are ignored.

    Raises:
        ConfigurationError: there is no entry for the empty prefix, or a row is not a distribution. While extending: the
            sampling has a pattern or a stop text, which the table's steps cannot follow.
    """

    def __init__(self, table: Mapping[Path, Mapping[str, float]]) -> None:
        table = {
            tuple(map(well_formed, prefix)): {well_formed(text): p for text, p in row.items()}
            for prefix, row in table.items()
        }
        if () not in table:
            raise ConfigurationError("the table needs a row for the empty prefix ()")
        for prefix, row in table.items():
            if not row or min(row.values()) < 0 or abs(sum(row.values()) - 1) > 1e-9:
                raise ConfigurationError(f"the row of {prefix!r} is not a distribution: {dict(row)!r}")
        self.table = table
        self._rows: dict[Path, _Row] = {}

    @classmethod
    def random(
        cls, rng: np.random.Generator, *, steps: Sequence[str] = ("a", "b", "c"), depth: int = 3
    ) -> TabularLanguageModel:
        """A random table over `steps`, at most `depth` steps deep, with answers of every length."""
        table: dict[Path, dict[str, float]] = {}

        def grow(prefix: Path) -> None:
            table[prefix] = dict(zip(steps, rng.dirichlet(np.ones(len(steps))), strict=True))
            for step in steps[:-1]:  # the last step always ends the answer
                if len(prefix) + 1 < depth:
                    grow((*prefix, step))

        grow(())
        return cls(table)

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        """See `motes.protocols.LanguageModel`."""
        if sampling.pattern is not None or sampling.step_entropy is not None or sampling.stops:
            raise ConfigurationError(
                f"{self!r} cannot end steps by a pattern or an entropy, or answers by a stop text: its steps are the "
                "table's own. Write the steps that you want into the table, or use another language model"
            )
        return [self._step(t, sampling, seed) for t, seed in zip(trajectories, seeds, strict=True)]

    def _step(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        prefix = tuple(step.text for step in trajectory.steps)
        row = self._rows.get(prefix) or self._rows.setdefault(prefix, _Row.of(self.table[prefix]))
        if sampling.temperature == 0:
            index, proposal_logprob = row.likeliest, 0.0
        else:
            index = bisect_right(row.cumulative, np.random.default_rng(seed).random() * row.cumulative[-1])
            proposal_logprob = row.logprobs[index]
        certainty = None
        if sampling.top_logprobs:
            k = sampling.top_logprobs  # steps that the row does not have are impossible
            top = [*sorted(row.logprobs, reverse=True), *[-math.inf] * k][:k]
            certainty = Certainty.of([row.logprobs[index]], [top])
        text = row.texts[index]
        end: StepEnd = "step" if (*prefix, text) in self.table else "eos"
        return Step(
            text,
            end,
            token_ids=(index,),
            logprob=row.logprobs[index],
            proposal_logprob=proposal_logprob,
            certainty=certainty,
        )

    def paths(self) -> Iterator[tuple[Path, float]]:
        """All complete answers, each as the tuple of its steps and its probability."""

        def walk(prefix: Path, probability: float) -> Iterator[tuple[Path, float]]:
            for text, p in self.table[prefix].items():
                path = (*prefix, text)
                if path in self.table:
                    yield from walk(path, probability * p)
                else:
                    yield path, probability * p

        yield from walk((), 1.0)

    def __repr__(self) -> str:
        return f"TabularLanguageModel({len(self.table)} prefixes)"
