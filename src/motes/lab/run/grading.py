"""Grades: how the answers of a run count, when it ends and again later, without generating anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from motes import api
from motes.core import Problem
from motes.errors import GraderError, RunDirectoryError
from motes.lab.run.damage import Damages, told_to
from motes.lab.run.evaluation import RECORDS, foreign_to, read_configuration, read_problem_ids
from motes.lab.run.records import Outcome, RecordStore, RunRecord
from motes.methods.answers import Classes
from motes.protocols import Task
from motes.threads import in_thread


class Grade(NamedTuple):
    """How an answer counts; `error`: why the grader could not say."""

    outcome: Outcome
    error: str | None = None


def grade(task: Task, problem: Problem, answer: str | None) -> Grade:
    """How an answer counts. One that the grader fails at, or finds nothing about in time, is not wrong for that."""
    if answer is None:
        return Grade("no_answer")
    try:
        return Grade("correct" if task.grade(problem, answer) else "wrong")
    except GraderError as error:
        return Grade("grader_timeout", f"{type(error).__name__}: {error}")


def grade_run(
    task: Task, problem: Problem, answer: str | None, answers: Sequence[str | None]
) -> tuple[Grade, tuple[bool | None, ...]]:
    """How a run's answer counts; and (N,) whether each answer of its population is right, None for those that could not
    be graded.

    Each distinct answer is graded once.
    """
    grades = {each: grade(task, problem, each) for each in dict.fromkeys((answer, *answers))}
    right = {each: None if grade.error else grade.outcome == "correct" for each, grade in grades.items()}
    return grades[answer], tuple(right[each] for each in answers)


def groups(task: Task, names: Sequence[str], answers: Sequence[str | None]) -> tuple[int | None, ...]:
    """(N,) the place among `names`, the distinct answers of a posterior, of the one that each answer means."""
    place: dict[str | None, int | None] = {None: None, **{name: i for i, name in enumerate(names)}}
    classes = Classes(task, names)
    for answer in answers:
        if answer not in place:
            assert answer is not None
            place[answer] = place.get(classes.find(answer))
    return tuple(place[answer] for answer in answers)


@dataclass(frozen=True)
class Regraded:
    """What grading again came to.

    Attributes:
        graded: records graded; `failed`: runs without anything to grade, left as they are.
        ungraded: answers that the grader failed at, or said nothing about in time.
        changed: (before, after) of every record that is not as it was.
    """

    graded: int
    failed: int
    ungraded: int
    changed: tuple[tuple[RunRecord, RunRecord], ...]


async def regrade(
    directory: Path, task: Task | None = None, *, run_code: bool = False, damages: Damages | None = None
) -> Regraded:
    """Grade the recorded answers of an evaluation again, with the problems and the grader as they are now.

    Nothing is generated, and no answer is chosen again: those recorded are graded. What changes is appended to the
    records, all of it or nothing, so that what was said before stays readable and the last word counts.

    Args:
        task: by default the evaluation's.
        run_code: open a task that is code also where the directory alone names it. Directories may come from others.
        damages: counts records that cannot be read, which stay as they are. None: the first one is an error.

    Raises:
        RunDirectoryError: the directory holds no evaluation, another process writes to it, or the task lacks one of
            its problems.
        ConfigurationError: the task cannot be opened, or is code that nobody but the directory names.
    """
    configuration = read_configuration(directory)
    task = task or api.task(configuration.get("task", ""), run_code=run_code)
    problems = {problem.id: problem for problem in task.problems(configuration.get("split", "test"))}
    foreign = foreign_to(configuration, read_problem_ids(directory, told_to(damages, "lists of problems")))
    with RecordStore(directory / RECORDS, told_to(damages, "records"), foreign) as store:
        records = [record for record in store.records if record.outcome != "failed"]
        again = [await in_thread(_graded, record, task, problems, directory) for record in records]
        changed = tuple((before, after) for before, after in zip(records, again, strict=True) if before != after)
        store.append(*(after for _, after in changed))
    ungraded = sum(record.outcome == "grader_timeout" for record in again)
    return Regraded(len(records), len(store.records) - len(records), ungraded, changed)


def _graded(record: RunRecord, task: Task, problems: Mapping[str | None, Problem], directory: Path) -> RunRecord:
    if (problem := problems.get(record.problem_id)) is None:
        raise RunDirectoryError(
            f"the task has no problem {record.problem_id!r}, which {directory} has runs of: name the task it is of"
        )
    (outcome, error), right = grade_run(task, problem, record.answer, record.answers)
    return replace(
        record,
        outcome=outcome,
        groups=record.groups or groups(task, list(record.posterior), record.answers),
        right=right,
        oracle=any(right),
        error=error,
        reference=problem.answer,
    )
