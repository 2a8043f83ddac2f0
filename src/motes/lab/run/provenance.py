"""Where an evaluation's numbers come from: each call of `motes eval` appends a line about itself to a file.

`config.json` identifies the evaluation. A line of `provenance.jsonl` lists what one call worked with: the version and
commit of motes, the date, the command, names and digests of the models and of the task, the packages, the machine. An
evaluation may be resumed on another day, with another version or on another machine, and may be merged from parts; its
directory then has a line for each call. The files may come from strangers: nothing that they name is opened.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from motes import files
from motes.lab.run import identity
from motes.lab.run.appending import AppendOnlyLines
from motes.lab.run.damage import Damage, Damaged, Rule, broken, is_count, is_text, or_none, parse_json, refuse
from motes.lab.run.evaluation import PROVENANCE, Evaluation, Shard, read_configuration
from motes.lab.run.keys import without_keys_in
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.protocols import TaskTraits
from motes.text import counted, json_line

MAX_LINE_BYTES, MAX_LINES = 1 << 16, 2_000
"""Limits of what is read from a file."""
MAX_COMMAND = 8_000
"""Characters of a command that are recorded."""
MAX_METADATA = 1 << 18
"""Characters of a picture's metadata: some programs refuse more than a million."""
REMEDY = "delete it there; the provenance of those runs is then unknown"
ROLES = {"lm": "language model", "reward": "reward model", "outcome_reward": "outcome reward model"}
UNRECORDED = "not recorded"
CSV_METADATA = "csv-metadata.json"
"""The file beside CSV files that describes them; the name is from W3C, "Model for Tabular Data and Metadata"."""
IDENTIFYING = ("digest", "weights", "config", "tokenizer", "source", "calibration", "rubric_digest", "root")
"""Parts of identities that differ if two things of one name are not the same."""
HIDDEN = ("kind", "weights", "config", "tokenizer")
"""Parts of a model's identity that tables leave out."""
VARIED = ("methods", "budgets", "num_problems", "num_runs")
SETUP = ("motes", "models", "task", "methods", "packages", "machine")
MAX_ROWS = 8
"""Rows of one name in a table."""


class Setup(NamedTuple):
    """What a worker carries out runs with: its models by role, its packages, its machine."""

    models: dict[str, identity.Identity]
    packages: identity.Identity
    machine: identity.Identity

    @classmethod
    def of(cls, **models: object) -> Setup:
        """The setup of this process with the given models (None: no model). Reads files: not for the event loop."""
        identities = {role: identity.of_model(model) for role, model in models.items() if model is not None}
        return cls(identities, identity.of_packages(), identity.of_machine())


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether a value is a text, a number, true, false, null, or an object of such values, a few levels deep."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value.values())
    return value is None or isinstance(value, (str, bool, float)) or (type(value) is int and abs(value) < 1 << 63)


_OBJECT = Rule(lambda value: isinstance(value, dict) and _is_plain(value), "an object of texts and numbers")
_OBJECTS = Rule(
    lambda value: isinstance(value, dict) and _is_plain(value) and all(isinstance(v, dict) for v in value.values()),
    "objects of texts and numbers, by name",
)
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "started": Rule(is_text, "a text"),
        "motes": _OBJECT,
        "command": Rule(or_none(is_text), "a text or null"),
        "models": _OBJECTS,
        "task": _OBJECT,
        "methods": _OBJECTS,
        "packages": _OBJECT,
        "machine": _OBJECT,
        "settings": _OBJECT,
        "runs_before": Rule(is_count, "a whole number from 0"),
    }
)
"""What each field of a line may hold. Unknown fields, which later versions write, are ignored."""


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
        shard: Shard | None,
        **settings: Any,
    ) -> Call:
        """The call that begins now. Reads files and runs git: not for the event loop."""
        problems, part = evaluation.problems(), None if shard is None else str(shard)
        digest = identity.of_problems(problems, TaskTraits(evaluation.opened).key)
        task = {"name": evaluation.task, "problems": len(problems), "digest": digest}
        code = identity.of_code(type(evaluation.opened))
        budget = evaluation.budgets[0]
        own = [spec for spec in evaluation.methods if is_own(spec)]
        return cls(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            motes=identity.of_motes(),
            command=None if command is None else _short(command, MAX_COMMAND),
            models={role: {"name": getattr(evaluation, role), **model} for role, model in setup.models.items()},
            task={**task, **(code if "source" in code else {})},
            methods={spec: identity.of_code(type(method_from_spec(spec, budget))) for spec in own},
            packages=setup.packages,
            machine=setup.machine,
            settings={name: value for name, value in {**settings, "shard": part}.items() if value is not None},
            runs_before=runs_before,
        )

    def to_json(self) -> str:
        """The call as a line of the file, without the line's end and without keys."""
        return json_line(without_keys_in(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, line: str) -> Call:
        """Read a line that `to_json` wrote.

        Raises:
            ValueError: the line is something else.
        """
        fields = parse_json(line)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        for _, reason in broken(RULES.items(), fields):
            raise ValueError(reason)
        if missing := {"started", "motes", "models"} - fields.keys():
            raise ValueError(f"it lacks `{min(missing)}`")
        return cls(**{name: value for name, value in fields.items() if name in RULES})


class ProvenanceStore(AppendOnlyLines):
    """The provenance file of an evaluation, open for appending by this process alone. Damaged lines stay in it.

    Raises: as `AppendOnly`.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / PROVENANCE, _end_of_whole_lines)

    def append(self, *calls: Call) -> None:
        """Write a line for each call: all of them or none.

        Raises:
            RunDirectoryError: the file could not be written; it is unchanged.
        """
        if calls:
            self.write_lines(call.to_json() for call in calls)


def _end_of_whole_lines(path: Path) -> int:
    """Where the last whole line ends, in bytes: a killed process leaves a torn one behind it."""
    end = 0
    for line in files.read_lines(path, MAX_LINE_BYTES):
        if line.whole or _is_call(line):
            end = line.ends
    return end


def _is_call(line: files.Line) -> bool:
    try:
        Call.from_json((line.content or b"").decode())
    except ValueError:
        return False
    return True


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
        for line in files.read_lines(path, MAX_LINE_BYTES):
            if line.number > MAX_LINES:
                damaged(Damage(path, f"line {line.number}", f"there are more than {MAX_LINES:,} lines", REMEDY))
                break
            try:
                if line.content is None:
                    raise ValueError(f"it is longer than {MAX_LINE_BYTES:,} bytes")
                if line.content.strip():
                    calls.append(Call.from_json(line.content.decode()))
            except UnicodeDecodeError:
                damaged(Damage(path, f"line {line.number}", "it is no UTF-8", REMEDY))
            except ValueError as error:
                damaged(Damage(path, f"line {line.number}", str(error), REMEDY, torn=not line.whole))
    except FileNotFoundError:
        pass
    except OSError as error:
        damaged(Damage(path, "", error.strerror or str(error), REMEDY))
    return sorted(calls, key=lambda call: call.started)


def append_call(directory: Path, begin: Callable[[], Call]) -> list[str]:
    """Record in an evaluation's directory the call that continues it. Reads files: not for the event loop.

    Returns:
        warnings about what has changed since earlier calls, see `Provenance.warnings`.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    with ProvenanceStore(directory) as store:
        store.append(begin())
    return Provenance(calls=tuple(read_calls(directory, lambda damage: None))).warnings()


def copy_calls(parts: Sequence[Path], out: Path, damaged: Damaged) -> None:
    """Copy the calls that produced the parts into the merged directory `out`, each once.

    Raises:
        RunDirectoryError: `out` cannot be written, or a part's lines cannot be read, see `damaged`.
    """
    present = {call.to_json() for call in read_calls(out, damaged)}
    calls = {call.to_json(): call for part in parts for call in read_calls(part, damaged)}
    with ProvenanceStore(out) as store:
        store.append(*(call for line, call in calls.items() if line not in present))


class Difference(NamedTuple):
    """A fact that differs between the provenance of two evaluations, each side in words."""

    name: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.name}: {self.first} against {self.second}"


@dataclass(frozen=True)
class Provenance:
    """Everything known about how an evaluation was made.

    Attributes:
        configuration: the evaluation's configuration.
        calls: the calls that produced it; none if it is older than their record.
        others: the configurations of other evaluations whose numbers are in the same table, see `together`.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    others: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, directory: Path, damaged: Damaged = refuse) -> Provenance:
        """Read the provenance from an evaluation's directory; see `read_calls`.

        Raises:
            RunDirectoryError: the directory holds no evaluation.
        """
        return cls(read_configuration(directory, damaged), tuple(read_calls(directory, damaged)))

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.configuration or self.calls)

    @cached_property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """Everything that results may depend on: for each name, the distinct values in the calls."""
        facts: dict[str, dict[str, None]] = {}
        for configuration in (self.configuration, *self.others):
            for name, value in _facts_of_configuration(configuration):
                facts.setdefault(name, {})[value] = None
        for call in self.calls:
            for name, value in _facts_of_call(call):
                facts.setdefault(name, {})[value] = None
        return {name: tuple(values) for name, values in facts.items()}

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) pairs that describe how the evaluation was made, a row for each distinct value of a name."""
        rows: dict[tuple[str, str], None] = {}

        def add(name: str, *values: str) -> None:
            distinct = list(dict.fromkeys(filter(None, values)))
            rows.update({(name, value): None for value in distinct[:MAX_ROWS]})
            if len(distinct) > MAX_ROWS:
                rows[name, f"and {len(distinct) - MAX_ROWS} others"] = None

        calls, configurations = self.calls, (self.configuration, *self.others)
        add("motes", *(_format_motes(call.motes) for call in calls))
        if calls:
            ends = dict.fromkeys(call.started[:16].replace("T", " ") for call in (calls[0], calls[-1]))
            add("date", f"{' – '.join(ends)} UTC, {counted(len(calls), 'call')}")
        add("command", *(_short(call.command or "from Python", 1000) for call in calls))
        for role, words in ROLES.items():
            models = [_format_named(call.models[role], HIDDEN) for call in calls if role in call.models]
            add(words, *(models or [_text(each.get(role) or "") for each in configurations]))
        tasks = [_format_named(call.task) for call in calls if call.task]
        add("task", *(tasks or [_text(each.get("task") or "") for each in configurations]))
        add("sampling", *(_format_fields(each.get("sampling")) for each in configurations))
        add("prompt", *(_format_fields(each.get("prompt")) or "as the problems stand" for each in configurations))
        add("seeds", *(", ".join(map(_text, each.get("seeds") or ())) for each in configurations))
        add("packages", *(_format_fields(call.packages) for call in calls))
        add("machine", *(", ".join(_machine_parts(call.machine)) for call in calls))
        return list(rows)

    def warnings(self) -> list[str]:
        """A warning for each model or task that was not the same in all calls although its name was."""
        parts: dict[tuple[str, str, str], dict[str, None]] = {}
        for call in self.calls:
            models = ((ROLES.get(role, role), model) for role, model in call.models.items())
            for kind, fields in [*models, ("task", call.task)]:
                name = f"{_text(fields.get('name'))} {_text(fields.get('problems', ''))}"
                for part, value in _flatten("", fields):
                    if part.rpartition(".")[2] in IDENTIFYING:
                        parts.setdefault((kind, name, part), {})[value] = None
        return [
            f"not all runs were made with the same {kind}: {_readable_name(part[1:])} {', '.join(map(_short, values))}"
            for (kind, name, part), values in parts.items()
            if len(values) > 1 and (part != ".digest" or (kind, name, ".weights") not in parts)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The provenance as JSON can hold it. Calls with the same setup are one entry."""
        entries: dict[str, dict[str, Any]] = {}
        for call in self.calls:
            setup = {name: getattr(call, name) for name in SETUP}
            entry = entries.setdefault(json.dumps(setup), {"first": call.started, "commands": {}, **setup})
            entry |= {"last": call.started, "calls": entry.get("calls", 0) + 1}
            entry["commands"][call.command] = None
        configurations = [
            {name: value for name, value in each.items() if name not in ("num_problems", "num_runs")}
            for each in (self.configuration, *self.others)
        ]
        return {
            **({"configuration": configurations[0]} if not self.others else {"configurations": configurations}),
            "made_with": [{**entry, "commands": list(entry["commands"])} for entry in entries.values()],
        }

    def csv_metadata(self, title: str, names: Sequence[str]) -> str:
        """Metadata that says where CSV files come from, in the format "CSV on the Web"."""
        metadata = {
            "@context": "http://www.w3.org/ns/csvw",
            "dc:title": title,
            "dc:provenance": [f"{name}: {value}" for name, value in self.rows()],
            "dc:source": self.to_json(),
            "tables": [{"url": name} for name in names],
        }
        return json.dumps(metadata, ensure_ascii=False, indent=2) + "\n"

    def to_json(self) -> str:
        """`to_dict` in one line of ASCII, which the metadata of a picture can hold. Entries for which there is no room
        are counted in `left_out`."""
        fields, left_out = self.to_dict(), 0
        while len(text := json.dumps(fields, separators=(",", ":"))) > MAX_METADATA and (calls := fields["made_with"]):
            left_out += len(calls) - len(calls) // 2
            fields |= {"made_with": calls[: len(calls) // 2], "left_out": left_out}
        return text if len(text) <= MAX_METADATA else json.dumps({"left_out": "it is too long"})


def differences(first: Provenance | Path, second: Provenance | Path) -> list[Difference]:
    """The differences in how two evaluations were made: models, problems, sampling, prompt, seeds, versions, machine.

    Methods, budgets, dates and commands are not compared. A fact that only one of the two recorded counts as a
    difference, since it may be one.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or a damaged one.
    """
    a, b = (one if isinstance(one, Provenance) else Provenance.read(one) for one in (first, second))
    names = list(dict.fromkeys([*a.facts, *b.facts]))
    different = [name for name in names if set(a.facts.get(name, ())) != set(b.facts.get(name, ()))]
    if "motes.source" in names and "motes.source" not in different:  # the same sources from two commits
        different = [name for name in different if not name.startswith("motes.")]
    return [
        Difference(_readable_name(name), *(", ".join(map(_short, p.facts.get(name, (UNRECORDED,)))) for p in (a, b)))
        for name in different
        if not (name.endswith(".digest") and name.rpartition(".")[0] + ".weights" in names)  # its parts say more
    ]


def _facts_of_configuration(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that results depend on."""
    for name in ("task", "split", "limit", *ROLES):
        yield (f"{name}.name" if name in (*ROLES, "task") else name), _text(configuration.get(name))
    yield "seeds", ", ".join(map(_text, configuration.get("seeds", ())))
    for name in ("sampling", "prompt"):
        yield from _flatten(name, configuration.get(name))


def _facts_of_call(call: Call) -> Iterator[tuple[str, str]]:
    """The parts of a call that results depend on."""
    yield from _flatten("motes", {name: call.motes.get(name) for name in ("version", "commit", "source")})
    for role, model in call.models.items():
        yield from _flatten(role, {name: value for name, value in model.items() if name != "name"})
    yield from _flatten("task", {name: value for name, value in call.task.items() if name != "name"})
    for part in ("methods", "packages", "machine"):
        yield from _flatten(part, getattr(call, part))


def _flatten(name: str, value: Any, depth: int = 5) -> Iterator[tuple[str, str]]:
    """The leaves of a nested value, each with its dotted name."""
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            yield from _flatten(f"{name}.{key}", item, depth - 1)
    else:
        yield name, _text(value)


def _readable_name(name: str) -> str:
    """A fact's name for readers: "lm.weights" → "language model: weights"."""
    head, _, rest = name.partition(".")
    return f"{ROLES.get(head, head)}{f': {rest}' if rest else ''}".replace("_", " ")


def _text(value: Any) -> str:
    """A value as text; a configuration may hold anything that JSON can."""
    try:
        return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"


def _short(text: str, most: int = 160) -> str:
    """The first characters of a digest, or of a long text."""
    if text.startswith("sha256:"):
        return text[: len("sha256:") + 12]
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _format_motes(motes: Mapping[str, Any]) -> str:
    parts = [_text(motes.get("version", "?"))]
    if "commit" in motes:
        parts.append(f"commit {_text(motes['commit'])[:12]}{', changed since' if motes.get('modified') else ''}")
    if "source" in motes:
        parts.append(f"sources {_short(_text(motes['source']))}")
    return ", ".join(parts)


def _format_named(fields: Mapping[str, Any], hidden: Sequence[str] = ()) -> str:
    """A model or a task in words: its name, then its other fields, except the hidden ones."""
    rest = {key: value for key, value in fields.items() if key not in ("name", *hidden)}
    return ", ".join(filter(None, [_short(_text(fields.get("name", "?"))), _format_fields(rest)]))


def _machine_parts(machine: Mapping[str, Any]) -> Iterator[str]:
    cores, usable = machine.get("cores"), machine.get("usable_cores")
    for name in ("system", "processor"):
        if name in machine:
            yield _short(_text(machine[name]))
    if cores is not None:
        yield f"{_text(usable)} of {_text(cores)} cores" if usable not in (None, cores) else f"{_text(cores)} cores"
    if "python" in machine:
        yield _short(_text(machine["python"]))
    yield _short(_text(machine.get("gpus", "no GPU")))


def _format_fields(fields: Any) -> str:
    """Names and values in one line; "" if it is no mapping."""
    if not isinstance(fields, Mapping):
        return ""
    leaves = _flatten("", fields)
    return ", ".join(f"{name.removeprefix('.').replace('_', ' ')} {_short(_quoted(value))}" for name, value in leaves)


def _quoted(value: str) -> str:
    return value if value.strip() == value != "" and "\n" not in value else json.dumps(value, ensure_ascii=False)


def together(parts: Sequence[Provenance]) -> Provenance:
    """The provenance of several evaluations whose numbers are in one table: all their calls, and each distinct
    configuration once, without methods, budgets and counts."""
    calls = {call.to_json(): call for part in parts for call in part.calls}
    configurations: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        shared = {name: value for name, value in part.configuration.items() if name not in VARIED}
        configurations.setdefault(_text(shared), shared)
    first, *others = configurations.values() or ({},)
    return Provenance(first, tuple(sorted(calls.values(), key=lambda call: call.started)), tuple(others))
