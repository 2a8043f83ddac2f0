"""What an evaluation leaves behind: one JSON line per run, appended once, never rewritten.

A line is written by one call of the operating system, so a killed process leaves at most one torn line, the last;
it is cut off when the file is opened for appending again, and its run is done again. Of several lines of one run
the last one counts: a failed run is done again, an answer is graded again, and gets another line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from motes.errors import RunDirectoryError
from motes.lab.appending import AppendOnly, read_bytes
from motes.types import Usage

Outcome = Literal["correct", "wrong", "no_answer", "grader_timeout", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Key = tuple[str, str, int, int]
"""What names a run: problem id, method, budget, seed."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one method on one problem.

    Attributes:
        problem_id, method, budget, seed: which run. `method` is the method's spec, `seed` the evaluation's.
        outcome: five different ends. A failed run is neither right nor wrong, and is done again on resume; nor is an
            answer that the grader could not grade, in time or at all ("grader_timeout"): `motes grade` tries again.
        answer: the selected one, None without one; `reference`: the right one; `text`: of the answer's trajectory.
        level: of the problem, where its task has levels.
        confidence: posterior mass of the answer, in [0, 1].
        posterior: normalised weight of each distinct answer.
        answers: (N,) of the final population, None where a trajectory gave none.
        groups: (N,) which of the answers in `posterior` each one means, by its place there, None for those that mean
            none. right: (N,) whether each is right, None where the grader could not say. scores: (N,) the reward
            model's of each, None where there is none. All three are empty in records from before there were any.
        oracle: whether any of them is right; over the runs of one cell that is pass@N.
        rounds: number of rounds; `log_evidence`: None for methods that have none.
        usage: see `motes.types.Usage`.
        seconds: from the run's start to its end, while others shared the models.
        run_seed: the seed given to `motes.solve` for this run.
        error: why the run failed, or why its answer could not be graded.
    """

    problem_id: str
    method: str
    budget: int
    seed: int
    outcome: Outcome
    answer: str | None = None
    reference: str | None = None
    level: int | None = None
    confidence: float = 0.0
    oracle: bool = False
    rounds: int = 0
    log_evidence: float | None = None
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    run_seed: int = 0
    error: str | None = None
    posterior: dict[str, float] = field(default_factory=dict)
    answers: tuple[str | None, ...] = ()
    groups: tuple[int | None, ...] = ()
    right: tuple[bool | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    text: str = ""

    @property
    def key(self) -> Key:
        return self.problem_id, self.method, self.budget, self.seed

    @property
    def majority(self) -> bool | None:
        """Whether the most frequent answer is right; the first of those that are equally frequent. None where the
        grader could not say, or the record does not tell."""
        given = [group for group in self.groups if group is not None]
        if not given:
            return False if self.groups else None
        return self.right[self.groups.index(max(dict.fromkeys(given), key=given.count))]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> RunRecord:
        """Read a line; fields that a later version added are left out.

        Raises:
            ValueError: it is not a record.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        try:
            known["usage"] = Usage(**known.get("usage", {}))
            known.update((name, tuple(known.get(name, ()))) for name in ("answers", "groups", "right", "scores"))
            record = cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from error
        if record.outcome not in OUTCOMES:
            raise ValueError(f"unknown outcome {record.outcome!r}")
        return record


def read_records(path: Path) -> list[RunRecord]:
    """The records of a file, one per run (the last line of each counts), in the order they were first written.

    A torn last line is passed over.

    Raises:
        RunDirectoryError: the file cannot be read, or another line than the last is damaged.
    """
    latest: dict[Key, RunRecord] = {}
    for record in _parse(path, read_bytes(path)):
        latest[record.key] = record
    return list(latest.values())


def _parse(path: Path, content: bytes) -> Iterator[RunRecord]:
    lines = content.split(b"\n")[:-1]  # what follows the last newline is torn, or nothing
    for number, line in enumerate(lines, start=1):
        try:
            yield RunRecord.from_json(line.decode())
        except ValueError as error:
            if number == len(lines):
                return
            raise RunDirectoryError(
                f"line {number} of {path} is damaged ({error}): delete that line, its run will be done again"
            ) from error


def whole_lines(path: Path) -> int:
    """Where the last whole record of a file ends, in bytes."""
    content = read_bytes(path)
    end = content.rfind(b"\n") + 1
    last = content[content.rfind(b"\n", 0, max(end - 1, 0)) + 1 : end]
    if last:
        try:
            RunRecord.from_json(last.decode())
        except ValueError:
            end -= len(last)
    return end


class RecordStore(AppendOnly):
    """The record file of an evaluation, open for appending by this process alone.

    Args:
        path: of the file; it and its directory are made if missing.

    Attributes:
        records: what it held when it was opened, one per run.

    Raises:
        DirectoryBusyError: another process has it open.
        RunDirectoryError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, whole_lines)
        try:
            self.records = read_records(path)
        except BaseException:
            self.close()
            raise

    def append(self, *records: RunRecord) -> None:
        """Write a line for each, all of them or none.

        Raises:
            RunDirectoryError: it could not be written; the file is as it was.
        """
        self.write("".join(record.to_json() + "\n" for record in records).encode())
