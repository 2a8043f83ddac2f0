"""The records of an evaluation: one JSON line per run, appended once, never rewritten.

A line is written by one call of the operating system, so a killed process leaves at most one torn line, the last;
it is cut off when the file is opened for appending again, and its run is done again. Of several lines of one run
the last one counts: a run that is done again after a failure, or graded again, gets another line.

Files may come from other people: a line that is no record, or states an impossible result, is reported and skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from motes import files
from motes.core import Usage
from motes.errors import RunDirectoryError
from motes.lab.run.appending import AppendOnlyLines
from motes.lab.run.damage import (
    Damage,
    Damaged,
    Rule,
    broken,
    decode,
    is_count,
    is_list,
    is_number,
    is_text,
    or_none,
    parse_json,
    refuse,
)
from motes.lab.run.prefixes import Prefixes
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
    def from_json(cls, line: str) -> RunRecord:
        """Read a line; fields that a later version added are left out.

        Raises:
            ValueError: the line is not a record, or states an impossible result.
        """
        line_fields = parse_json(line)
        if not isinstance(line_fields, dict):
            raise ValueError("it is no object")
        fields = {name: value for name, value in line_fields.items() if name in cls.__dataclass_fields__}
        for _, reason in broken(RULES.items(), fields):
            raise ValueError(reason)
        counts = {name: count for name, count in fields.get("usage", {}).items() if name in Usage.__dataclass_fields__}
        fields["usage"] = Usage(**counts)
        fields.setdefault("is_own_cost", "computed_prefill_tokens" in counts)
        fields.update((name, tuple(fields.get(name, ()))) for name in ("answers", "groups", "right", "scores"))
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


ROUNDING = 1e-6
"""A share may be below 0 or above 1 by so much."""


def _is_share(value: Any) -> bool:
    return is_number(value, -ROUNDING, 1 + ROUNDING)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_TEXT = Rule(or_none(is_text), "a text or null")
_COUNT = Rule(is_count, "a whole number from 0")
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "problem_id": Rule(is_text, "a text"),
        "method": Rule(is_text, "a text"),
        "budget": Rule(lambda value: is_count(value, 1), "a whole number from 1"),
        "seed": _COUNT,
        "outcome": Rule(lambda value: value in OUTCOMES, f"one of {', '.join(OUTCOMES)}"),
        "answer": _TEXT,
        "reference": _TEXT,
        "level": Rule(or_none(is_count), "a whole number from 0, or null"),
        "confidence": Rule(_is_share, "a number in [0, 1]"),
        "oracle": Rule(_is_bool, "true or false"),
        "rounds": _COUNT,
        "log_evidence": Rule(or_none(is_number), "a number or null"),
        "usage": Rule(
            lambda value: (
                isinstance(value, dict)
                and all(is_count(count) for name, count in value.items() if name in Usage.__dataclass_fields__)
            ),
            "whole numbers from 0, by name",
        ),
        "is_own_cost": Rule(_is_bool, "true or false"),
        "seconds": Rule(lambda value: is_number(value, 0, 1e12), "a number of seconds"),
        "concurrency": Rule(or_none(lambda value: is_count(value, 1)), "a whole number from 1, or null"),
        "run_seed": _COUNT,
        "error": _TEXT,
        "posterior": Rule(
            lambda value: isinstance(value, dict) and all(map(_is_share, value.values())),
            "numbers in [0, 1], by answer",
        ),
        "answers": Rule(lambda value: is_list(value, or_none(is_text)), "a list of texts and nulls"),
        "groups": Rule(lambda value: is_list(value, or_none(is_count)), "a list of whole numbers from 0 and nulls"),
        "right": Rule(lambda value: is_list(value, or_none(_is_bool)), "a list of true, false and null"),
        "scores": Rule(lambda value: is_list(value, or_none(_is_share)), "a list of numbers in [0, 1] and nulls"),
        "text": Rule(is_text, "a text"),
        "prefixes": Rule(or_none(lambda value: isinstance(value, dict)), "an object or null"),
    }
)
"""What each field may hold."""

Foreign = Callable[[Key], str | None]
"""Returns the reason why a run does not belong to an evaluation; None if it may belong."""


def read_records(path: Path, damaged: Damaged = refuse, foreign: Foreign | None = None) -> list[RunRecord]:
    """The records of a file, one per run (the last line of each counts), in the order they were first written.

    Args:
        damaged: called with each line that is no record; by default the first one is an error, except a torn last line.
        foreign: recognises runs that do not belong here: their records count as damaged, too.

    Raises:
        RunDirectoryError: the file, or a line of it, cannot be read, see `damaged`.
    """
    latest: dict[Key, RunRecord] = {}
    for record, _ in _parse(path, damaged, foreign):
        if record is not None:
            latest[record.key] = record
    return list(latest.values())


def _parse(path: Path, damaged: Damaged, foreign: Foreign | None) -> Iterator[tuple[RunRecord | None, int]]:
    """For each line its record, None if it has none, and the offset of its end in bytes; a torn last line is skipped.

    A damaged line is held back until the next line shows that it is not torn.
    """
    pending: tuple[Damage, files.Line] | None = None
    try:
        for line in files.read_lines(path, files.LINE):
            if pending is not None:
                damaged(pending[0])
                yield None, pending[1].ends
                pending = None
            try:
                yield _record(line, foreign), line.ends
            except ValueError as error:
                pending = Damage(path, f"line {line.number}", str(error)), line
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}") from error
    if pending is not None:
        damage, line = pending
        torn = not _names_run(line)
        damaged(damage._replace(torn=torn))
        if not torn:
            yield None, line.ends


def _record(line: files.Line, foreign: Foreign | None) -> RunRecord | None:
    """The record of a line; None if the line is blank.

    Raises:
        ValueError: the line is no record, or its run does not belong here.
    """
    text = _decode_line(line)
    if not text.strip():
        return None
    record = RunRecord.from_json(text)
    if foreign is not None and (reason := foreign(record.key)) is not None:
        raise ValueError(reason)
    return record


def _decode_line(line: files.Line) -> str:
    if line.content is None:
        raise ValueError(f"it is longer than {files.LINE:,} bytes")
    return decode(line.content)


def _names_run(line: files.Line) -> bool:
    """Whether a line names its run: a torn line, or the remains of a crash, does not."""
    try:
        fields = parse_json(_decode_line(line))
    except ValueError:
        return line.content is None and line.whole
    return isinstance(fields, dict) and {"problem_id", "method", "budget", "seed"} <= fields.keys()


class RecordStore(AppendOnlyLines):
    """The record file of an evaluation, open for appending by this process alone.

    Args:
        path: the file; it and its directory are created if missing.
        damaged: see `read_records`. A torn last line is cut off; other damage stays in the file.
        foreign: see `read_records`.

    Attributes:
        records: the records in the file when it was opened, one per run.

    Raises:
        DirectoryBusyError: another process has the file open.
        RunDirectoryError: the file cannot be read or written, or a line is damaged, see `damaged`.
    """

    def __init__(self, path: Path, damaged: Damaged = refuse, foreign: Foreign | None = None) -> None:
        latest: dict[Key, RunRecord] = {}

        def end_of_whole_lines(path: Path) -> int:
            end = 0
            for record, ends in _parse(path, damaged, foreign):
                end = ends
                if record is not None:
                    latest[record.key] = record
            return end

        super().__init__(path, end_of_whole_lines)
        self.records = list(latest.values())

    def append(self, *records: RunRecord) -> None:
        """Write a line for each record: all of them or none.

        Raises:
            RunDirectoryError: the file could not be written; it is unchanged.
        """
        self.write_lines(record.to_json() for record in records)
