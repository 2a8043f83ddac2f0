"""Tasks: problems, rules that read answers from texts, and graders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from motes.arguments import parse_options
from motes.errors import ConfigurationError, UnknownNameError
from motes.protocols import AnswerRule, Task
from motes.tasks.arithmetic import Arithmetic
from motes.tasks.benchmark import DECLARED, Benchmark
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.code import CodeAnswers
from motes.tasks.maths import MathAnswers
from motes.tasks.olympiad import ListedAnswers
from motes.tasks.words import Choices, ExactMatch, WholeText

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({"arithmetic": Arithmetic})
"""The tasks that are code. The tasks that are data are declared in `motes.tasks.benchmark`."""

FIELDS = ("question", "answer", "id", "level", "choices")
"""Options that name the fields of a file."""


def task(spec: str) -> Task:
    """The task that a spec names: NAME, FILE.jsonl, or NAME:FILE.jsonl, and options.

    "arithmetic"; "math-500", from the hub; "math-500:math500.jsonl", the same from a file; "problems.jsonl",
    mathematics of your own; "multiple-choice:quiz.jsonl?answer=key"; "gsm8k?revision=main".

    Raises:
        UnknownNameError: there is no such task or option.
        ConfigurationError: the task needs a file.
        MissingExtraError: grading needs a package that is not installed.
    """
    source, _, query = spec.partition("?")
    options = parse_options(query)
    name, _, file = source.partition(":")
    if source.endswith(".jsonl") and name not in (*TASKS, *DECLARED):
        name, file = "math", source
    if name in TASKS:
        if source != name or options:
            raise ConfigurationError(f"the task {name!r} takes neither a file nor options")
        return TASKS[name]()
    if name not in DECLARED:
        raise UnknownNameError("task", source, (*TASKS, *DECLARED, "FILE.jsonl"))
    declaration = DECLARED[name]
    fields: dict[str, Any] = {option: (value,) for option, value in options.items() if option in FIELDS}
    valid = (*FIELDS, "revision", *(("sandbox",) if declaration.rule is CodeAnswers else ()))
    for option in options:
        if option not in valid:
            raise UnknownNameError("option of a task", option, valid)
    return Benchmark(
        Path(file).stem or name,
        dataclasses.replace(declaration, fields=dataclasses.replace(declaration.fields, **fields)),
        path=Path(file) if file else None,
        revision=options.get("revision"),
        options={option: value for option, value in options.items() if option == "sandbox"},
    )


def answer_rule(spec: str) -> AnswerRule:
    """The answer rule of the task that a spec names. A spec without a file is enough for the rule alone: "math",
    "exact-match", "multiple-choice".

    Raises: see `task`.
    """
    return DECLARED[spec].rule() if spec in DECLARED else task(spec)


__all__ = [
    "DECLARED",
    "TASKS",
    "Arithmetic",
    "Benchmark",
    "BoxedAnswers",
    "Choices",
    "CodeAnswers",
    "ExactMatch",
    "ListedAnswers",
    "MathAnswers",
    "WholeText",
    "answer_rule",
    "task",
]
