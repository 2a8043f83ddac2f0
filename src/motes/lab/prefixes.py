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
from typing import TYPE_CHECKING, Any

from motes.lab.damage import MARKS, SCORES, Rule, broken, is_count, is_list, or_none
from motes.protocols import Task
from motes.types import Problem

if TYPE_CHECKING:
    from motes.lab.traces import Node, Trace


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


def prefixes_of(trace: Trace, task: Task, problem: Problem) -> Prefixes:
    """The partial answers of a run, checked step by step where the task can do so, see `motes.protocols.Task`.

    A partial answer is right where all of its steps are; unknown where one is, and none is wrong.
    """
    nodes = trace.nodes
    check = getattr(task, "check_step", None)
    right: list[bool | None] = []
    if check is not None and any(node.score is not None for node in nodes) and _are_paragraphs(nodes):
        for node in nodes:
            before = True if node.parent is None else right[node.parent]
            right.append(False if before is False else _both(before, check(problem, node.text)))
    return Prefixes(
        tuple(node.parent for node in nodes), tuple(node.score for node in nodes), tuple(right), trace.final.nodes
    )


def _are_paragraphs(nodes: Sequence[Node]) -> bool:
    """Whether steps end at blank lines, and nowhere else but where an answer does."""
    continued = {node.parent for node in nodes}
    return all(
        "\n\n" not in node.text.strip("\n") and (place not in continued or node.text.endswith("\n\n"))
        for place, node in enumerate(nodes)
    )


def _both(before: bool | None, step: bool | None) -> bool | None:
    """Whether both hold, as far as that is known."""
    if step is False:
        return False
    return None if before is None or step is None else True
