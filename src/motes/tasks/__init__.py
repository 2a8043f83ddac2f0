"""Tasks: problems, rules that read answers from texts, and graders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from motes.arguments import make_spec, parse_options
from motes.errors import ConfigurationError, UnknownNameError
from motes.protocols import AnswerRule, Task
from motes.tasks.arithmetic import Arithmetic
from motes.tasks.benchmark import DECLARED, Benchmark
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.code import CodeAnswers
from motes.tasks.maths import MathAnswers
from motes.tasks.olympiad import ListedAnswers
from motes.tasks.patterns import RegexAnswers
from motes.tasks.plain import AnswerIs, LastLine, LastNumber
from motes.tasks.read_by import read_by
from motes.tasks.words import Choices, ExactMatch, WholeText

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({"arithmetic": Arithmetic})
"""The tasks that are code. The tasks that are data are declared in `motes.tasks.benchmark`."""

RULES = (
    "boxed",
    "answer-is",
    "last-number",
    "last-line",
    "whole-text",
    "regex?pattern=…",
    "exact-match",
    "multiple-choice",
    "math",
    "code",
)
"""The rules by name, for lists: those of `DECLARED` that need no data set."""

FIELDS = ("question", "answer", "id", "level", "choices")
"""Options that name the fields of a file."""


def task(spec: str) -> Task:
    """The task that a spec names: NAME, FILE.jsonl, or NAME:FILE.jsonl, and options.

    "arithmetic"; "math-500", from the hub; "math-500:math500.jsonl", the same from a file; "problems.jsonl",
    mathematics of your own; "multiple-choice:quiz.jsonl?answer=key"; "gsm8k?revision=main"; "gsm8k?rule=last-number",
    whose answers another rule reads, see `answer_rule`.

    Raises:
        UnknownNameError: there is no such task or option.
        ConfigurationError: the task needs a file, or an option cannot work.
        MissingExtraError: grading needs a package that is not installed.
    """
    spec, rule = split_rule(spec)
    if rule is not None:
        return cast(Task, read_by(task(spec), answer_rule(rule)))
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
    others = (*declaration.options, *(("sandbox",) if declaration.rule is CodeAnswers else ()))
    valid = (*FIELDS, "revision", "rule", *others)
    for option in options:
        if option not in valid:
            raise UnknownNameError("option of a task", option, valid)
    return Benchmark(
        Path(file).stem or name,
        dataclasses.replace(declaration, fields=dataclasses.replace(declaration.fields, **fields)),
        path=Path(file) if file else None,
        revision=options.get("revision"),
        options={option: value for option, value in options.items() if option in others},
    )


def answer_rule(spec: str) -> AnswerRule:
    r"""The answer rule that a spec names, or that of the task which it names. A rule needs no file: "boxed",
    "answer-is", "last-number", "last-line", "whole-text", r"regex?pattern=A: (\d+)", "exact-match", "multiple-choice",
    "math", "code". "math?rule=answer-is" compares answers as "math" does, and reads them as "answer-is" does.

    Raises: see `task`.
    """
    spec, reader = split_rule(spec)
    if reader is not None:
        return read_by(answer_rule(spec), answer_rule(reader))
    name, _, query = spec.partition("?")
    options = parse_options(query)
    if name in DECLARED and set(options) <= set(DECLARED[name].options):
        return DECLARED[name].make_rule(options)
    if name not in (*TASKS, *DECLARED) and ":" not in name and not name.endswith(".jsonl"):
        raise UnknownNameError("answer rule", name, (*TASKS, *DECLARED))
    return task(spec)


def split_rule(spec: str) -> tuple[str, str | None]:
    """The spec of a task without its option `rule`, and the spec of that rule; None: it has no such option.

    The rule's own options may stand beside it, "gsm8k?rule=regex&pattern=…", or after it, "gsm8k?rule=regex?pattern=…".
    """
    source, _, query = spec.partition("?")
    options = parse_options(query)
    if (rule := options.pop("rule", None)) is None:
        return spec, None
    own = DECLARED[rule].options if rule in DECLARED else ()
    rule_options = {name: options.pop(name) for name in own if name in options}
    return make_spec(source, options), make_spec(rule, rule_options)


def with_rule(spec: str, rule: str | None) -> str:
    """The spec of a task whose answers a rule reads, see `split_rule`. None: the task's own rule.

    Raises:
        ConfigurationError: the task's spec names a rule already.
    """
    if rule is None:
        return spec
    source, _, query = spec.partition("?")
    options = parse_options(query)
    if "rule" in options:
        raise ConfigurationError(f"the task {spec!r} names the rule that reads its answers: give one rule")
    name, _, rule_query = rule.partition("?")
    rule_options = parse_options(rule_query)
    if (
        name in DECLARED
        and set(rule_options) <= set(DECLARED[name].options)
        and rule_options.keys().isdisjoint(options)
    ):
        return make_spec(source, {**options, "rule": name, **rule_options})
    return make_spec(source, {**options, "rule": rule})


__all__ = [
    "DECLARED",
    "RULES",
    "TASKS",
    "AnswerIs",
    "Arithmetic",
    "Benchmark",
    "BoxedAnswers",
    "Choices",
    "CodeAnswers",
    "ExactMatch",
    "LastLine",
    "LastNumber",
    "ListedAnswers",
    "MathAnswers",
    "RegexAnswers",
    "WholeText",
    "answer_rule",
    "read_by",
    "split_rule",
    "task",
    "with_rule",
]
