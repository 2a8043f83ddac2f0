"""Grade the answers of runs: when a run ends, and again later, without generating anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from motes import api
from motes.core import Problem
from motes.errors import GraderError, RunDirectoryError
from motes.lab.run.damage import Damages, count_or_refuse
from motes.lab.run.evaluation import RECORDS, foreign_to, read_configuration, read_problem_ids
from motes.lab.run.records import Outcome, RecordStore, RunRecord
from motes.methods.answers import Classes
from motes.protocols import Task
from motes.threads import in_thread


class Grade(NamedTuple):
    """The outcome of a run, and the reason if the grader could not grade the answer."""

    outcome: Outcome
    error: str | None = None


def grade(task: Task, problem: Problem, answer: str | None) -> Grade:
    """Grade an answer. If the grader fails, or takes too long, the answer does not count as wrong."""
    if answer is None:
        return Grade("no_answer")
    try:
        return Grade("correct" if task.grade(problem, answer) else "wrong")
    except GraderError as error:
        return Grade("grader_timeout", f"{type(error).__name__}: {error}")


def grade_run(
    task: Task, problem: Problem, answer: str | None, answers: Sequence[str | None]
) -> tuple[Grade, tuple[bool | None, ...]]:
    """The grade of a run's answer; and (N,) whether each answer of its population is right, None if it could not be
    graded. Each distinct answer is graded once."""
    grades = {each: grade(task, problem, each) for each in dict.fromkeys((answer, *answers))}
    right = {each: None if grade.error else grade.outcome == "correct" for each, grade in grades.items()}
    return grades[answer], tuple(right[each] for each in answers)


def groups(task: Task, names: Sequence[str], answers: Sequence[str | None]) -> tuple[int | None, ...]:
    """(N,) for each answer, the index of the one in `names`, a posterior's answers, that means the same; or None."""
    indices: dict[str | None, int | None] = {None: None, **{name: i for i, name in enumerate(names)}}
    classes = Classes(task, names)
    for answer in answers:
        if answer not in indices:
            assert answer is not None
            indices[answer] = indices.get(classes.find(answer))
    return tuple(indices[answer] for answer in answers)


@dataclass(frozen=True)
class Regraded:
    """The result of grading again.

    Attributes:
        graded: number of records graded.
        failed: number of failed runs, which have nothing to grade and stay unchanged.
        ungraded: number of answers at which the grader failed or took too long.
        changed: (before, after) of every record that changed.
    """

    graded: int
    failed: int
    ungraded: int
    changed: tuple[tuple[RunRecord, RunRecord], ...]


async def regrade(
    directory: Path, task: Task | None = None, *, run_code: bool = False, damages: Damages | None = None
) -> Regraded:
    """Grade the recorded answers of an evaluation again, with the present problems and grader.

    Nothing is generated, and no answer is selected again. Changed records are appended, all of them or none: the former
    ones stay readable, and the last one of a run counts.

    Args:
        task: by default the evaluation's.
        run_code: open a task that is code even if only the directory names it. Directories may come from others.
        damages: counts records that cannot be read, which stay unchanged. None: the first one is an error.

    Raises:
        RunDirectoryError: the directory holds no evaluation, another process writes to it, or the task lacks one of
            its problems.
        ConfigurationError: the task cannot be opened, or it is code that only the directory names.
    """
    configuration = read_configuration(directory)
    task = task or api.task(configuration.get("task", ""), run_code=run_code)
    problems = {problem.id: problem for problem in task.problems(configuration.get("split", "test"))}
    foreign = foreign_to(configuration, read_problem_ids(directory, count_or_refuse(damages, "lists of problems")))
    with RecordStore(directory / RECORDS, count_or_refuse(damages, "records"), foreign) as store:
        records = [record for record in store.records if record.outcome != "failed"]
        regraded = [await in_thread(_regrade_record, record, task, problems, directory) for record in records]
        changed = tuple((before, after) for before, after in zip(records, regraded, strict=True) if before != after)
        store.append(*(after for _, after in changed))
    ungraded = sum(record.outcome == "grader_timeout" for record in regraded)
    return Regraded(len(records), len(store.records) - len(records), ungraded, changed)


def _regrade_record(
    record: RunRecord, task: Task, problems: Mapping[str | None, Problem], directory: Path
) -> RunRecord:
    if (problem := problems.get(record.problem_id)) is None:
        raise RunDirectoryError(
            f"the task has no problem {record.problem_id!r}, of which {directory} has runs: name the task that has it"
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
