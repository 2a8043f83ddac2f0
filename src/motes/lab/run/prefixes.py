"""Partial answers as numbers: the tree of the steps that a run sampled, with their scores and whether they are right.

    parents   [null, 0, 0, 2]      the third step continues the first, as the second does
    scores    [0.9, 0.2, 0.8, 0.7]
    right     [1, 0, 1, 1]         whether the partial answer that ends with the step is right
    ends      [1, 3]               the run ended with two answers

A step that was sampled once is in the tree once, however many particles continue it; if the same text was sampled
twice, that is two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from motes.lab.run.rules import MARKS, SCORES, read_fields


@dataclass(frozen=True)
class Prefixes:
    """The partial answers of a run, each identified by its last step. A parent stands before its children.

    Attributes:
        parents: (S,) for each step, the step that it continues; None for a first step.
        scores: (S,) the reward model's score of each step; None if it was never scored.
        right: (S,) whether the answer is right up to and including the step; None if that is unknown. Empty if steps
            could not be checked.
        ends: (N,) the last step of each final answer; None if the answer has no step.
    """

    parents: tuple[int | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    right: tuple[bool | None, ...] = ()
    ends: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def depths(self) -> list[int]:
        """(S,) for each step, the number of steps up to and including it."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent is None else depths[parent] + 1)
        return depths

    def path(self, end: int | None) -> list[int]:
        """(T,) the steps from the first to `end`; empty if that is None."""
        steps: list[int] = []
        while end is not None:
            steps.append(end)
            end = self.parents[end]
        return steps[::-1]

    def lead_to(self, right: Sequence[bool | None]) -> tuple[bool | None, ...]:
        """(S,) for each step, whether any final answer that continues it is right; None if no answer continues it, or
        if all that do are ungraded. (Math-Shepherd's hard estimation, arXiv 2312.08935.)

        Args:
            right: (N,) whether each final answer is right; None if it could not be graded.
        """
        labels: list[bool | None] = [None] * len(self)
        for end, is_right in zip(self.ends, right, strict=True):
            if is_right is not None:
                for step in self.path(end):
                    labels[step] = labels[step] or is_right
        return tuple(labels)

    def to_fields(self) -> dict[str, Any]:
        """The fields for JSON; truth values become 1 and 0, which is shorter."""
        right = [None if is_right is None else int(is_right) for is_right in self.right]
        return {"parents": self.parents, "scores": self.scores, "right": right, "ends": self.ends}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Prefixes:
        """Read the fields that `to_fields` returns; fields that a later version added are left out. A ValueError if a
        field is not valid."""
        try:
            prefixes = cls(**read_fields(cls, fields, {"scores": SCORES, "right": MARKS}))
        except ValueError as error:
            raise ValueError(f"`prefixes`: {error}") from None
        num_steps = len(prefixes)
        if len(prefixes.scores) != num_steps or len(prefixes.right) not in (0, num_steps):
            raise ValueError("`prefixes` are not of one length")
        if any(parent is not None and parent >= place for place, parent in enumerate(prefixes.parents)):
            raise ValueError("`prefixes` have a step that stands before the one that it continues")
        if any(end is not None and end >= num_steps for end in prefixes.ends):
            raise ValueError("`prefixes` end at a step that does not exist")
        return replace(prefixes, right=tuple(None if mark is None else bool(mark) for mark in prefixes.right))
