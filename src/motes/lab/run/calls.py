"""The calls of `motes eval` that produced an evaluation: each appends a line about itself to `provenance.jsonl`.

A line lists what one call worked with: the version and commit of motes, the date, the command, names and digests of the
models and of the task, the packages, the machine. An evaluation may be resumed on another day, with another version or
on another machine, and may be merged from parts; its directory then has a line for each call. The files may come from
strangers: nothing that they name is opened.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from motes.lab.run import identity
from motes.lab.run.appending import AppendOnlyLines, read_items
from motes.lab.run.damage import Damage, Damaged, parse_object, refuse
from motes.lab.run.evaluation import PROVENANCE, Evaluation
from motes.lab.run.keys import without_keys_in
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.lab.run.rules import read_fields
from motes.protocols import TaskTraits
from motes.tasks.read_by import TaskReadBy
from motes.text import json_line, shortened

MAX_LINE_BYTES, MAX_LINES = 1 << 16, 2_000
"""Maximum number of bytes of a line, and of lines of a file, that are read."""
MAX_COMMAND = 8_000
"""Maximum number of characters of a command that are recorded."""
REMEDY = "delete it there; the provenance of those runs is then unknown"


class Setup(NamedTuple):
    """The setup of a worker: the identities of its models, by role, of its packages and of its machine."""

    models: dict[str, identity.Identity]
    packages: identity.Identity
    machine: identity.Identity

    @classmethod
    def of(cls, **models: object) -> Setup:
        """The setup of this process with the given models (None: no model). Reads files: not for the event loop."""
        identities = {role: identity.of_model(model) for role, model in models.items() if model is not None}
        return cls(identities, identity.of_packages(), identity.of_machine())


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `motes eval`, or of `motes.lab.evaluate`, that did runs.

    Attributes:
        started: date and time, UTC, ISO 8601.
        motes: version, commit, whether the sources have changed since that commit, and their digest.
        command: the command line as typed, without keys; None if the call came from Python.
        models: for each role ("lm", "reward", "outcome_reward"), the name in the evaluation and the model's identity,
            see `motes.lab.run.identity`.
        task: its name, the number and the digest of all its problems; for a user's own task, also the identity of its
            code.
        methods: for each method that is a user's own, the identity of its code.
        packages: their versions.
        machine: system, processor, Python, GPUs.
        settings: settings that do not change results: concurrency, the shard, where the runs were carried out.
        runs_before: number of runs in the directory when the call began.
    """

    started: str = ""
    motes: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packages: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs_before: int = 0

    @classmethod
    def begin(
        cls,
        evaluation: Evaluation,
        setup: Setup,
        *,
        command: str | None,
        runs_before: int,
        **settings: Any,
    ) -> Call:
        """The call that begins now. Reads files and runs git: not for the event loop."""
        problems = evaluation.problems()
        digest = identity.of_problems(problems, TaskTraits(evaluation.opened).key)
        task = {"name": evaluation.task, "problems": len(problems), "digest": digest}
        opened = evaluation.opened
        code = identity.of_code(type(opened.base if isinstance(opened, TaskReadBy) else opened))
        budget = evaluation.budgets[0]
        own = [spec for spec in evaluation.methods if is_own(spec)]
        return cls(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            motes=identity.of_motes(),
            command=None if command is None else shortened(command, MAX_COMMAND),
            models={role: {"name": getattr(evaluation, role), **model} for role, model in setup.models.items()},
            task={**task, **(code if "source" in code else {})},
            methods={spec: identity.of_code(type(method_from_spec(spec, budget))) for spec in own},
            packages=setup.packages,
            machine=setup.machine,
            settings={name: value for name, value in settings.items() if value is not None},
            runs_before=runs_before,
        )

    def to_json(self) -> str:
        """The call as a line of the file, without the line's end and without keys."""
        return json_line(without_keys_in(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, line: str | bytes) -> Call:
        """Read a line that `to_json` wrote; a ValueError if it is something else."""
        fields = read_fields(cls, parse_object(line))
        if missing := {"started", "motes", "models"} - fields.keys():
            raise ValueError(f"it lacks `{min(missing)}`")
        return cls(**fields)


def read_calls(directory: Path, damaged: Damaged = refuse) -> list[Call]:
    """The calls that produced a directory, the earliest first; none if the directory is older than their record.

    Args:
        damaged: called with each line that cannot be read; by default the first one is an error, unless it is torn.

    Raises:
        RunDirectoryError: a line cannot be read, see `damaged`.
    """
    path = directory / PROVENANCE
    calls: list[Call] = []
    try:
        for number, (call, _) in enumerate(_read(path, damaged), start=1):
            if number > MAX_LINES:
                damaged(Damage(path, f"line {number}", f"there are more than {MAX_LINES:,} lines", REMEDY))
                break
            if call is not None:
                calls.append(call)
    except OSError as error:
        damaged(Damage(path, "", error.strerror or str(error), REMEDY))
    return sorted(calls, key=lambda call: call.started)


def _read(path: Path, damaged: Damaged) -> Iterator[tuple[Call | None, int]]:
    return read_items(path, Call.from_json, damaged, lambda line: not line.whole, limit=MAX_LINE_BYTES, remedy=REMEDY)


def write_calls(directory: Path, calls: Iterable[Call]) -> None:
    """Append a line for each call to an evaluation's provenance file; errors as `AppendOnly`. Damaged lines stay."""

    def end_of_whole_lines(path: Path) -> int:
        return max((end for _, end in _read(path, lambda damage: None)), default=0)

    with AppendOnlyLines(directory / PROVENANCE, end_of_whole_lines) as file:
        file.write_lines(call.to_json() for call in calls)


def copy_calls(parts: Sequence[Path], out: Path, damaged: Damaged) -> None:
    """Copy the calls that produced the parts into the merged directory `out`, each once; errors as `read_calls` and
    `write_calls`."""
    present = {call.to_json() for call in read_calls(out, damaged)}
    calls = {call.to_json(): call for part in parts for call in read_calls(part, damaged)}
    write_calls(out, [call for line, call in calls.items() if line not in present])
