"""The records of an evaluation: one JSON line per run, appended once, never rewritten.

A line is written by one call of the operating system, so a killed process leaves at most one torn line, the last;
it is cut off when the file is opened for appending again, and its run is done again. Of several lines of one run
the last one counts: a run that is done again after a failure, or graded again, gets another line.

Files may come from other people: a line that is not a record, or states an impossible result, is reported and skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from motes import files
from motes.core import Usage
from motes.errors import RunDirectoryError
from motes.lab.run.appending import AppendOnlyLines, read_items
from motes.lab.run.damage import Damaged, parse_object, refuse
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.rules import COUNT, POSITIVE, Rule, by_name, is_number, list_of, or_null, read_fields
from motes.text import json_line

Outcome = Literal["correct", "wrong", "no_answer", "grader_timeout", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Key = tuple[str, str, int, int]
"""The name of a run: problem id, method, budget, seed."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one method on one problem.

    Attributes:
        method: the method's spec.
        seed: the evaluation's seed.
        outcome: "correct", "wrong" or "no_answer". "failed": the run is neither right nor wrong, and is done again on
            resume. "grader_timeout": the grader could not grade the answer, in time or at all; `motes grade` tries
            again.
        answer: the selected answer, None if there is none.
        reference: the right answer.
        text: the text of the answer's trajectory.
        level: the problem's level, if its task has levels.
        confidence: posterior mass of the answer, in [0, 1].
        posterior: normalised weight of each distinct answer.
        answers: (N,) the answers of the final population, None for a trajectory without one.
        groups: (N,) for each answer, the place in `posterior` of the answer that means the same; None if there is none.
        right: (N,) whether each answer is right; None if the grader could not say.
        scores: (N,) the reward model's score of each; None if there is none. Like `groups` and `right`, empty in
            records from earlier versions.
        oracle: whether any of the answers is right; its mean over the runs of a cell is pass@N.
        log_evidence: None for methods without one.
        usage: see `motes.core.Usage`.
        is_own_cost: whether `usage` counts this run alone. In records from earlier versions it counts the tokens that
            were computed while other runs shared the models.
        seconds: from the run's start to its end, while up to `concurrency` runs shared the models.
        concurrency: None if the record does not say.
        run_seed: the seed given to `motes.solve` for this run.
        error: why the run failed, or why its answer could not be graded.
        prefixes: its partial answers, including those that were not selected; `prefixes.ends` are the answers' last
            steps. None in records from earlier versions.
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
    is_own_cost: bool = True
    seconds: float = 0.0
    concurrency: int | None = None
    run_seed: int = 0
    error: str | None = None
    posterior: dict[str, float] = field(default_factory=dict)
    answers: tuple[str | None, ...] = ()
    groups: tuple[int | None, ...] = ()
    right: tuple[bool | None, ...] = ()
    scores: tuple[float | None, ...] = ()
    text: str = ""
    prefixes: Prefixes | None = None

    @property
    def key(self) -> Key:
        return self.problem_id, self.method, self.budget, self.seed

    def to_json(self) -> str:
        fields = dataclasses.asdict(dataclasses.replace(self, prefixes=None))
        if self.prefixes is not None:
            fields["prefixes"] = self.prefixes.to_fields()
        return json_line(fields)

    @classmethod
    def from_json(cls, line: str | bytes) -> RunRecord:
        """Read a line; fields that a later version added are left out. A ValueError if it is not a record, or states an
        impossible result."""
        fields = read_fields(cls, parse_object(line), RULES)
        counts = known_counts(fields.get("usage", {}))
        fields["usage"] = Usage(**counts)
        fields.setdefault("is_own_cost", "computed_prefill_tokens" in counts)
        if fields.get("prefixes") is not None:
            fields["prefixes"] = Prefixes.from_fields(fields["prefixes"])
        try:
            record = cls(**fields)
        except TypeError:
            raise ValueError("it does not name its run, or how that ended") from None
        for name in ("groups", "right", "scores"):
            if len(values := getattr(record, name)) not in (0, len(record.answers)):
                raise ValueError(f"`{name}` are {len(values)}, of {len(record.answers)} answers")
        if record.prefixes is not None and len(record.prefixes.ends) != len(record.answers):
            raise ValueError(f"`prefixes` end {len(record.prefixes.ends)} times, for {len(record.answers)} answers")
        if record.groups and not record.right:  # records from earlier versions have `right` alone
            raise ValueError("`groups` go together with `right`")
        if any(group is not None and group >= len(record.posterior) for group in record.groups):
            raise ValueError("`groups` name answers that `posterior` does not have")
        return record


def known_counts(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a recorded usage, without those that a later version added."""
    return {name: count for name, count in usage.items() if name in Usage.__dataclass_fields__}


ROUNDING = 1e-6
"""A share may be below 0 or above 1 by this much."""
_SHARE = Rule(lambda value: is_number(value, -ROUNDING, 1 + ROUNDING), "a number in [0, 1]", "numbers in [0, 1]")
_COUNTS = by_name(COUNT)
USAGE = Rule(lambda value: isinstance(value, dict) and _COUNTS.holds(known_counts(value)), _COUNTS.words)
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "budget": POSITIVE,
        "confidence": _SHARE,
        "usage": USAGE,
        "seconds": Rule(lambda value: is_number(value, 0, 1e12), "a number of seconds"),
        "concurrency": or_null(POSITIVE),
        "posterior": by_name(_SHARE),
        "scores": list_of(or_null(_SHARE)),
    }
)
"""The values that fields may have if their type does not say it."""

Foreign = Callable[[Key], str | None]
"""Returns the reason why a run does not belong to an evaluation; None if it may belong."""


def read_records(path: Path, damaged: Damaged = refuse, foreign: Foreign | None = None) -> list[RunRecord]:
    """The records of a file, one per run (the last line of each counts), in the order they were first written.

    Args:
        damaged: called with each damaged line; by default the first one is an error, except a torn last line.
        foreign: recognises runs that do not belong here: their records count as damaged, too.

    Raises:
        RunDirectoryError: the file, or a line of it, cannot be read, see `damaged`.
    """
    return _read(path, damaged, foreign)[0]


def _read(path: Path, damaged: Damaged, foreign: Foreign | None) -> tuple[list[RunRecord], int]:
    """The records of a file, see `read_records`, and the offset in bytes at which its whole lines end."""

    def parse(line: bytes) -> RunRecord:
        record = RunRecord.from_json(line)
        if foreign is not None and (reason := foreign(record.key)) is not None:
            raise ValueError(reason)
        return record

    latest: dict[Key, RunRecord] = {}
    end = 0
    try:
        for record, line_end in read_items(path, parse, damaged, _is_torn, limit=files.LINE):
            end = line_end
            if record is not None:
                latest[record.key] = record
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    return list(latest.values()), end


def _is_torn(line: files.Line) -> bool:
    """Whether a damaged last line does not name its run, like a torn line, or the remains of a crash."""
    if line.content is None:
        return not line.whole
    try:
        return not {"problem_id", "method", "budget", "seed"} <= parse_object(line.content).keys()
    except ValueError:
        return True


class RecordStore(AppendOnlyLines):
    """The record file of an evaluation, open for appending by this process alone; created if missing.

    Args:
        damaged, foreign: see `read_records`. A torn last line is cut off; other damage stays in the file.

    Attributes:
        records: the records in the file when it was opened, one per run.

    Raises:
        DirectoryBusyError: another process has the file open.
        RunDirectoryError: the file cannot be read or written, or a line is damaged, see `damaged`.
    """

    def __init__(self, path: Path, damaged: Damaged = refuse, foreign: Foreign | None = None) -> None:
        def end_of_whole_lines(path: Path) -> int:
            self.records, end = _read(path, damaged, foreign)
            return end

        super().__init__(path, end_of_whole_lines)

    def append(self, *records: RunRecord) -> None:
        """Write a line for each record: all of them, or none and a RunDirectoryError."""
        self.write_lines(record.to_json() for record in records)
