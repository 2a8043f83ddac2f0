"""Open tasks and answer rules by name."""

from __future__ import annotations

import shlex
from typing import cast

from motes.errors import ConfigurationError
from motes.opening.specs import make_own, names_attribute, parse_spec
from motes.protocols import AnswerRule, Task
from motes.tasks import DECLARED, Benchmark, BoxedAnswers, read_by, split_rule
from motes.tasks import answer_rule as answer_rule_named
from motes.tasks import task as task_named


def task(spec: str | Task, *, run_code: bool = True) -> Task:
    """Open a task.

    Args:
        spec: NAME, FILE.jsonl or NAME:FILE.jsonl with options, see `motes.tasks.task`; "MODULE:ATTRIBUTE" (your own
            task, or a function that makes one from the options), or a task, which is returned as is. With the option
            `rule`, as in "FILE.jsonl?rule=last-number", another rule reads the answers, see `answer_rule`; the task
            compares and grades them.
        run_code: False for a spec from somebody else: then only motes's own tasks and files of problems are opened, no
            code, and of the hub's data sets only what their authors published.

    Raises:
        ConfigurationError: the spec is not understood, there is no such task, or it may not be opened.
        MissingExtraError: grading needs a package that is not installed.
    """
    if not isinstance(spec, str):
        return spec
    source, rule = split_rule(spec)
    name, options = parse_spec(source, {})
    is_code = _is_code(name)
    if not run_code and (is_code or _is_code(rule or "") or "revision" in options or "sandbox" in options):
        if "sandbox" in options:
            risk = "says how programs are confined"
        elif is_code:
            risk = "is code"
        elif _is_code(rule or ""):
            risk = f"has the rule {rule!r}, which is code"
        else:
            risk = "is a revision that anybody may have written"
        raise ConfigurationError(
            f"the task {spec!r} {risk}, and only the directory names it: if you know what it does, name it yourself, "
            f"`--task {shlex.quote(spec)}`, or allow it by `--run-code`"
        )
    if rule is not None:
        return cast(Task, read_by(task(source, run_code=run_code), answer_rule(rule)))
    if is_code:
        own: Task = make_own(name, Task, options)
        return own
    named = task_named(spec)
    if not run_code and isinstance(named, Benchmark) and named.path is not None and not named.path.is_file():
        raise ConfigurationError(f"the task {spec!r}: {named.path} is not a file: name the task yourself, `--task …`")
    return named


def _is_code(spec: str) -> bool:
    """Whether the spec of a task or a rule names a user's own."""
    name = spec.strip().partition("?")[0]
    return names_attribute(name) and name.partition(":")[0] not in DECLARED


def answer_rule(spec: str | AnswerRule | None, rule: str | AnswerRule | None = None) -> AnswerRule:
    r"""Open the rule by which answers are read and compared.

    Args:
        spec: the name of a rule: "boxed", "answer-is", "last-number", "last-line", "whole-text",
            r"regex?pattern=A: (\d+)", "exact-match", "multiple-choice", "math"; the name of a task, see `task`, whose
            rule it is; "MODULE:ATTRIBUTE" (your own rule, which needs no problems); a rule, which is returned as is; or
            None, the last box of a text.
        rule: another rule, which reads the answers that the first one compares.

    Raises:
        ConfigurationError, MissingExtraError: as for `task`.
    """
    if rule is not None:
        return answer_rule(rule) if spec is None else read_by(answer_rule(spec), answer_rule(rule))
    if spec is None:
        return BoxedAnswers()
    if not isinstance(spec, str):
        return spec
    spec, reader = split_rule(spec)
    if reader is not None:
        return answer_rule(spec, reader)
    name, options = parse_spec(spec, {})
    if _is_code(name):
        own: AnswerRule = make_own(name, AnswerRule, options)
        return own
    return answer_rule_named(spec)
