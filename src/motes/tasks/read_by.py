"""Answer rules and tasks whose answers another rule reads. The rule or task itself compares and grades them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from motes.core import Problem
from motes.protocols import AnswerRule, AnswerRuleTraits, Reading, Task, TaskTraits, canonical_form


class RuleReadBy:
    """An answer rule that compares answers as `base` does, and reads them as `reader` does."""

    def __init__(self, base: AnswerRule, reader: AnswerRule) -> None:
        self.base = base
        self.reader = reader

    def answer(self, text: str) -> str | None:
        return self.reader.answer(text)

    def equivalent(self, first: str, second: str) -> bool:
        return self.base.equivalent(first, second)

    @property
    def canonical(self) -> Callable[[str], str] | None:
        return canonical_form(self.base)

    @property
    def needs_end(self) -> bool:
        return AnswerRuleTraits(self.reader).needs_end

    @property
    def answer_when_cut(self) -> Callable[[str], str | None] | None:
        return AnswerRuleTraits(self.reader).answer_when_cut

    @property
    def read(self) -> Callable[[str, Any], Reading] | None:
        return AnswerRuleTraits(self.reader).read

    @property
    def is_quick(self) -> bool:
        return all("is_quick" in vars(type(rule)) and rule.is_quick for rule in (self.base, self.reader))  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"{self.base!r} read by {self.reader!r}"


class TaskReadBy(RuleReadBy):
    """A task that is `base` in everything except that `reader` reads the answers."""

    base: Task

    @property
    def name(self) -> str:
        return self.base.name

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        return self.base.problems(split, limit)

    def grade(self, problem: Problem, answer: str) -> bool:
        return self.base.grade(problem, answer)

    @property
    def level(self) -> Callable[[Problem], int | None] | None:
        return TaskTraits(self.base).level

    @property
    def check_step(self) -> Callable[[Problem, str], bool | None] | None:
        return TaskTraits(self.base).check_step

    @property
    def key(self) -> Callable[[Problem], object] | None:
        return TaskTraits(self.base).key


def read_by(base: AnswerRule, reader: AnswerRule) -> RuleReadBy:
    """The rule or task `base`, whose answers `reader` reads."""
    return TaskReadBy(base, reader) if isinstance(base, Task) else RuleReadBy(base, reader)
