"""How often completions of partial answers end right: what reward models learn.

A reward model should say of a partial answer with which probability the language model, going on from there, ends
right. That is the twist of an ideal particle filter. Every complete answer is a completion of each of its prefixes;
more completions of chosen prefixes (`motes.training.choosing`) say more about them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from motes.errors import ConfigurationError
from motes.lab import read_records
from motes.lab.run.evaluation import RECORDS, TRACES
from motes.lab.run.method_spec import draws_independently
from motes.lab.run.traces import read_traces

Prefix = tuple[str, ...]
"""The steps of a partial answer; empty: the problem alone."""


class Outcomes(NamedTuple):
    """Completions of a partial answer.

    Attributes:
        right: number of those that ended right.
        total: number of all.
    """

    right: int = 0
    total: int = 0

    def __add__(self, other: Outcomes) -> Outcomes:  # type: ignore[override]
        return Outcomes(self.right + other.right, self.total + other.total)

    @property
    def mean(self) -> float:
        """The posterior mean of the probability to end right, after a uniform prior."""
        return (self.right + 1) / (self.total + 2)

    @property
    def deviation(self) -> float:
        """The standard deviation of that posterior."""
        return math.sqrt(self.mean * (1 - self.mean) / (self.total + 3))


@dataclass(frozen=True)
class Answer:
    """A complete answer of the language model.

    Attributes:
        problem: id of the problem.
        steps: its steps; together they are the whole text.
        right: whether it is right.
    """

    problem: str
    steps: Prefix
    right: bool

    @property
    def prefixes(self) -> Iterator[Prefix]:
        """The problem alone, the first step, the first two, …, the whole answer."""
        return (self.steps[:depth] for depth in range(len(self.steps) + 1))


@dataclass
class Labels:
    """Answers to problems, and the outcomes of their prefixes.

    Attributes:
        messages: the conversation of each problem, by its id.
        answers: in the order in which they were added.
        outcomes: by problem and prefix. Equal prefixes of different answers have the same.
    """

    messages: dict[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    outcomes: dict[tuple[str, Prefix], Outcomes] = field(default_factory=dict)

    def add(self, answer: Answer) -> None:
        """Add an answer, which is a completion of each of its prefixes."""
        self.answers.append(answer)
        for prefix in answer.prefixes:
            self.count(answer.problem, prefix, Outcomes(int(answer.right), 1))

    def count(self, problem: str, prefix: Prefix, outcomes: Outcomes) -> None:
        """Add completions of a prefix. They are completions of the prefix alone: those of shorter prefixes that were
        drawn to begin with this one are not a fair sample."""
        key = problem, prefix
        self.outcomes[key] = self.outcomes.get(key, Outcomes()) + outcomes

    def of(self, problem: str, prefix: Prefix = ()) -> Outcomes:
        """The outcomes of a prefix; none, if it is unknown."""
        return self.outcomes.get((problem, prefix), Outcomes())


def read_evaluation(directory: Path) -> Iterator[tuple[Answer, tuple[Mapping[str, str], ...]]]:
    """The answers of an evaluation whose methods draw them independently (greedy, majority, bon, wbon), each with the
    conversation that it answers. Others choose the answers that they go on with, so that what becomes of a prefix says
    nothing about the language model alone.

    Raises:
        ConfigurationError: there are no traces, or none of such a method.
        RunDirectoryError: files are damaged.
    """
    right: dict[Any, tuple[bool | None, ...]] = {
        record.key: record.right
        for record in read_records(directory / RECORDS)
        if record.outcome != "failed" and draws_independently(record.method)
    }
    if not right:
        raise ConfigurationError(
            f"{directory} has no run of greedy, majority, bon or wbon, whose answers are drawn independently"
        )
    found = False
    for trace in read_traces(directory / TRACES):
        if trace.key not in right:
            continue
        for node, finished, is_right in zip(trace.final.nodes, trace.final.finished, right[trace.key], strict=True):
            if node is None or is_right is None or finished in ("failed", "deadline", "token_budget"):
                continue
            found = True
            yield Answer(trace.problem_id, tuple(step.text for step in trace.path(node)), is_right), trace.messages
    if not found:
        raise ConfigurationError(f"{directory} has no traces of answers that were graded: evaluate with --traces")
