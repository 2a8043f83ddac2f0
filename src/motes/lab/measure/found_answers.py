"""Findings about answers: whether the task's rule finds them, which other rule would, and whether they are right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from motes.lab.measure.examination import Examination, Finding, Level, Trial, share
from motes.lab.run.grading import grade
from motes.methods.answers import answer_of
from motes.protocols import AnswerRule, Task
from motes.tasks import answer_rule, read_by
from motes.text import shortened
from motes.thoughts import MARKS

CANDIDATES = ("boxed", "answer-is", "multiple-choice", "last-number", "last-line", "whole-text")
"""The rules that are tried beside the task's own, the most explicit first."""
IMPLICIT = ("last-line", "whole-text")
"""Those that find an answer in nearly every text: only right answers show that they fit."""


class Reading(NamedTuple):
    """The answers that a rule reads in all texts: how many it finds, and how many of them are right by the task's
    grader (None: there are no references)."""

    rule: str
    found: int
    right: int | None

    def words(self, trials: Sequence[Trial]) -> str:
        right = "" if self.right is None else f" ({self.right} right)"
        return f"--rule {self.rule} finds one in {share(self.found, trials)}{right}"


def answer_findings(examination: Examination) -> Iterator[Finding]:
    """Whether answers are found and right, and which rule would find more of them, or more right ones."""
    trials, task = examination.answered, examination.evaluation.opened
    found = [trial for trial in trials if trial.answer is not None]
    missing = [trial for trial in trials if trial.answer is None]
    readings = _readings(trials, task)
    text = f"found in {share(len(found), trials)} texts by the task's rule"
    if not missing:
        yield Finding("answers", "fine", text)
    else:
        better = [reading for reading in readings if reading.found > len(found)]
        level: Level = "warning" if found else "broken"
        yield Finding("answers", level, text, "; or ".join(_remedies(missing, trials, better, examination)))
    graded = [trial for trial in found if trial.grade.error is None]
    right = sum(trial.grade.outcome == "correct" for trial in graded)
    if found and (right or any(trial.problem.answer is not None for trial in trials)):
        best = max(readings, key=lambda reading: reading.right or 0, default=None)
        if not missing and best is not None and (best.right or 0) > 2 * right:
            remedy = f"another rule may fit better: {best.words(trials)}"
            yield Finding("answers", "warning", f"right: {share(right, trials)}", remedy)
        elif not right and (wrong := next((trial for trial in graded if trial.problem.answer is not None), None)):
            answer, reference = (shortened(str(text), 60) for text in (wrong.answer, wrong.problem.answer))
            yield Finding(
                "answers",
                "warning",
                f"right: {share(right, trials)}; an answer is {answer!r}, where the reference is {reference!r}",
                "if these mean the same, name another kind of task or another --rule; if the task is too hard for this "
                "model, no method gets far from 0",
            )
        else:
            yield Finding("answers", "fine", f"right: {share(right, trials)}")
    if len(graded) < len(found):
        reason = next(trial.grade.error for trial in found if trial.grade.error is not None)
        yield Finding(
            "answers",
            "warning",
            f"{share(len(found) - len(graded), found)} answers could not be graded: {shortened(str(reason), 200)}",
            "`motes grade` tries again after an evaluation; ask for answers of a simpler form",
        )


def _remedies(
    missing: Sequence[Trial], trials: Sequence[Trial], better: Sequence[Reading], examination: Examination
) -> Iterator[str]:
    """What can be done about texts without an answer."""
    task, prompt = examination.evaluation.opened, examination.evaluation.prompt
    if cut := sum(trial.is_cut for trial in missing):
        yield f"{cut} of the {len(missing)} others were cut off before they ended: see `ends`"
    if inside := sum(_reads(task, MARKS.sub("", trial.text)) and not trial.is_cut for trial in missing):
        yield f"{inside} of the {len(missing)} others state one within the thought only, which is not read"
    if better:
        yield "read answers by another rule: " + ", ".join(reading.words(trials) for reading in better[:2])
    if cut == len(missing):
        return
    if _reads(task, "\\boxed{7}"):
        yield (
            "ask for a box: --prompt boxed, or a prompt of your own, --prompt FILE.toml"
            if prompt is None
            else f"the prompt {prompt.name!r} does not make the model box its answer: ask for \\boxed{{}} more clearly"
        )
    elif _reads(task, "The answer is B."):
        yield "ask for “The answer is …” in a prompt of your own: --prompt FILE.toml, its `question`"
    else:
        yield "ask for the form that the rule reads, in a prompt of your own: --prompt FILE.toml, its `question`"


def _reads(rule: AnswerRule, text: str) -> bool:
    try:
        return rule.answer(text) is not None
    except Exception:  # of a user's rule, or a search that takes too long
        return False


def _readings(trials: Sequence[Trial], task: Task) -> list[Reading]:
    """The readings by other rules, the best first: by right answers, then by found ones, then the most explicit. Rules
    that find an answer in every text are left out unless some are right."""
    has_letters = all(re.fullmatch(r"\W*[A-Za-z]\W*", trial.problem.answer or "") for trial in trials)
    has_references = any(trial.problem.answer is not None for trial in trials)
    readings = []
    for name in CANDIDATES:
        if name == "multiple-choice" and not has_letters:
            continue
        reader = answer_rule(name)
        rereading = cast(Task, read_by(task, reader))
        answers = [None if trial.trajectory is None else answer_of(trial.trajectory, reader) for trial in trials]
        pairs = zip(trials, answers, strict=True)
        right = sum(grade(rereading, trial.problem, answer).outcome == "correct" for trial, answer in pairs)
        if right or name not in IMPLICIT:
            found = sum(answer is not None for answer in answers)
            readings.append(Reading(name, found, right if has_references else None))
    return sorted(readings, key=lambda each: (-(each.right or 0), -each.found, CANDIDATES.index(each.rule)))


def reference_findings(examination: Examination) -> Iterator[Finding]:
    """Whether the task's grader accepts the reference answers."""
    known = [trial for trial in examination.trials if trial.reference is not None]
    refused = [trial for trial in known if not trial.reference]
    if refused:
        example = shortened(str(refused[0].problem.answer), 60)
        yield Finding(
            "references",
            "broken" if len(refused) == len(known) else "warning",
            f"the task's own grader finds {share(len(refused), known)} reference answers wrong, such as {example!r}",
            "the references and the task do not fit: name the kind of task, such as exact-match:FILE.jsonl, or correct "
            "the file",
        )
