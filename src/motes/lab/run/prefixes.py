"""Partial answers as numbers: the tree of the steps that a run drew, each with its score and whether it is right.

    parents   [null, 0, 0, 2]      the third step continues the first, as the second does
    scores    [0.9, 0.2, 0.8, 0.7]
    right     [1, 0, 1, 1]         whether the partial answer that ends with the step is right
    ends      [1, 3]               the run ended with two answers

A step that was drawn once is there once, however many particles went on from it; two draws of the same text are two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from motes.lab.run.damage import MARKS, SCORES, Rule, broken, is_count, is_list, or_none


@dataclass(frozen=True)
class Prefixes:
    """The partial answers of a run, named by their last steps: a parent stands before its children.

    Attributes:
        parents: (S,) the step that each one continues, None where it is a first step.
        scores: (S,) the reward model's of each step, None where it was never scored.
        right: (S,) whether the answer is right up to and including the step, None where that is unknown; empty where
            nobody could say.
        ends: (N,) the last step of each of the answers that the run ended with, None where one has no step.
    """

    parents: tuple[int | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    right: tuple[bool | None, ...] = ()
    ends: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def depths(self) -> list[int]:
        """(S,) the number of steps up to and including each one."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent is None else depths[parent] + 1)
        return depths

    def path(self, end: int | None) -> list[int]:
        """(T,) the steps up to and including one, from the first; none where it is None."""
        found: list[int] = []
        while end is not None:
            found.append(end)
            end = self.parents[end]
        return found[::-1]

    def lead_to(self, right: Sequence[bool | None]) -> tuple[bool | None, ...]:
        """(S,) whether any final answer that continues a step is right; None where none continues it, or it is unknown
        of those that do. (Math-Shepherd's hard estimation, arXiv 2312.08935.)

        Args:
            right: (N,) of the final answers.
        """
        found: list[bool | None] = [None] * len(self)
        for end, is_right in zip(self.ends, right, strict=True):
            if is_right is not None:
                for step in self.path(end):
                    found[step] = found[step] or is_right
        return tuple(found)

    def to_fields(self) -> dict[str, Any]:
        """As JSON has it; truth values are written as 1 and 0, which is shorter."""
        right = [None if is_right is None else int(is_right) for is_right in self.right]
        return {"parents": self.parents, "scores": self.scores, "right": right, "ends": self.ends}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Prefixes:
        """What `to_fields` made; fields that a later version added are left out.

        Raises:
            ValueError: it can be no such thing.
        """
        known = {name: value for name, value in fields.items() if name in RULES}
        for _, reason in broken(RULES.items(), known):
            raise ValueError(f"`prefixes`: {reason}")
        made = cls(**{name: tuple(value) for name, value in known.items()})
        made = cls(made.parents, made.scores, tuple(None if r is None else bool(r) for r in made.right), made.ends)
        if len(made.scores) != len(made) or len(made.right) not in (0, len(made)):
            raise ValueError("`prefixes` are not of one length")
        if any(parent is not None and parent >= place for place, parent in enumerate(made.parents)):
            raise ValueError("`prefixes` have a step that stands before the one that it continues")
        if any(end is not None and end >= len(made) for end in made.ends):
            raise ValueError("`prefixes` end at a step that there is not")
        return made


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "parents": Rule(lambda value: is_list(value, or_none(is_count)), "a list of whole numbers from 0 and nulls"),
        "scores": SCORES,
        "right": MARKS,
        "ends": Rule(lambda value: is_list(value, or_none(is_count)), "a list of whole numbers from 0 and nulls"),
    }
)
"""What each field may hold."""
