"""Where an evaluation's numbers come from: each call of `motes eval` leaves a line in its directory that says so.

`config.json` is what identifies the evaluation. A line of `provenance.jsonl` is what one call did it with: motes's
version and commit, date, command, the models' names and digests, the task's, the packages, the machine. A directory may
be resumed on another day, by another version, on another machine, and may be merged of parts: it then has a line of
each. What is read is data of a stranger: nothing that it names is opened.
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

LONGEST, MOST = 1 << 16, 2_000
"""Bytes of a line, and lines, that are read at most."""
COMMAND = 8_000
"""Characters of a command that are kept."""
METADATA = 1 << 18
"""Characters that a picture's metadata holds at most: some programs refuse more than a million."""
REMEDY = "delete it there: how those runs were made is then not known"
ROLES = {"lm": "language model", "reward": "reward model", "outcome_reward": "outcome reward model"}
UNRECORDED = "not recorded"
CSV_METADATA = "csv-metadata.json"
"""The file beside CSV files that describes them; the name is from W3C, "Model for Tabular Data and Metadata"."""
IDENTIFYING = ("digest", "weights", "config", "tokenizer", "source", "calibration", "rubric_digest", "root")
"""Parts of identities that differ where two things of one name are not the same."""
VARIED = ("methods", "budgets", "num_problems", "num_runs")
ROWS = 8
"""Of one name at most, in a table."""


class Made(NamedTuple):
    """What carries out runs, as it tells of itself: its models by role, its packages, its machine."""

    models: dict[str, identity.Identity]
    packages: identity.Identity
    machine: identity.Identity

    @classmethod
    def of(cls, **models: object) -> Made:
        """Of this process and its models; None stands for no model. Reads files: not for the event loop."""
        told = {role: identity.of_model(model) for role, model in models.items() if model is not None}
        return cls(told, identity.of_packages(), identity.of_machine())


def _is_plain(value: Any, depth: int = 4) -> bool:
    """Whether it is a text, a number, true, false, null, or an object of such things, a few levels deep."""
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(one, depth - 1) for one in value.values())
    return value is None or isinstance(value, (str, bool, float)) or (type(value) is int and abs(value) < 1 << 63)


_OBJECT = Rule(lambda value: isinstance(value, dict) and _is_plain(value), "an object of texts and numbers")
_OBJECTS = Rule(
    lambda value: isinstance(value, dict) and _is_plain(value) and all(isinstance(one, dict) for one in value.values()),
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
"""What each field of a line may hold; others, of later versions, are passed over."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of `motes eval`, or of `motes.lab.evaluate`, that did runs.

    Attributes:
        started: date and time, UTC, ISO 8601.
        motes: version, commit, whether its sources were changed since, and their digest.
        command: as it was typed, without keys; None: called from Python.
        models: by role ("lm", "reward", "outcome_reward"): the name that the evaluation gives, and what
            `motes.lab.run.identity` tells.
        task: its name, number and digest of all its problems, and where it is code of one's own that code.
        methods: those that are code of one's own.
        packages: their versions. machine: system, processor, Python, GPUs.
        settings: what does not change results: concurrency, the part that was done, where.
        runs_before: that the directory held when it began.
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
        made: Made,
        *,
        command: str | None,
        runs_before: int,
        shard: Shard | None,
        **settings: Any,
    ) -> Call:
        """The call that begins now. Reads files and asks git: not for the event loop."""
        problems, part = evaluation.problems(), None if shard is None else str(shard)
        digest = identity.of_problems(problems, TaskTraits.of(evaluation.opened).key)
        task = {"name": evaluation.task, "problems": len(problems), "digest": digest}
        code = identity.of_code(type(evaluation.opened))
        budget = evaluation.budgets[0]
        own = [spec for spec in evaluation.methods if is_own(spec)]
        return cls(
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            motes=identity.of_motes(),
            command=None if command is None else _short(command, COMMAND),
            models={role: {"name": getattr(evaluation, role), **told} for role, told in made.models.items()},
            task={**task, **(code if "source" in code else {})},
            methods={spec: identity.of_code(type(method_from_spec(spec, budget))) for spec in own},
            packages=made.packages,
            machine=made.machine,
            settings={name: value for name, value in {**settings, "shard": part}.items() if value is not None},
            runs_before=runs_before,
        )

    def to_json(self) -> str:
        """As a line of the file, without its end and without keys."""
        return json_line(without_keys_in(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, line: str) -> Call:
        """Read what `to_json` gives.

        Raises:
            ValueError: it is something else.
        """
        fields = parse_json(line)
        if not isinstance(fields, dict):
            raise ValueError("it is no object")
        for _, reason in broken(RULES.items(), fields):
            raise ValueError(reason)
        if missing := {"started", "motes", "models"} - fields.keys():
            raise ValueError(f"it does not say `{min(missing)}`")
        return cls(**{name: value for name, value in fields.items() if name in RULES})


class ProvenanceStore(AppendOnlyLines):
    """The provenance file of an evaluation, open for appending by this process alone; what is damaged in it stays.

    Raises: as `AppendOnly`.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / PROVENANCE, _whole)

    def append(self, *calls: Call) -> None:
        """Write a line for each, all of them or none.

        Raises:
            RunDirectoryError: it could not be written; the file is as it was.
        """
        if calls:
            self.write_lines(call.to_json() for call in calls)


def _whole(path: Path) -> int:
    """Where the last line ends that is whole: a killed process leaves a torn one."""
    whole = 0
    for line in files.read_lines(path, LONGEST):
        if line.whole or _call(line) is not None:
            whole = line.ends
    return whole


def _call(line: files.Line) -> Call | None:
    try:
        return Call.from_json((line.content or b"").decode())
    except ValueError:
        return None


def read_calls(directory: Path, damaged: Damaged = refuse) -> list[Call]:
    """The calls that made a directory, the earliest first; none, where it is older than their record.

    Args:
        damaged: told of each line that cannot be read; by default the first one is an error, except a torn last one.

    Raises:
        RunDirectoryError: a line cannot be read, see `damaged`.
    """
    path = directory / PROVENANCE
    calls: list[Call] = []
    try:
        for line in files.read_lines(path, LONGEST):
            if line.number > MOST:
                damaged(Damage(path, f"line {line.number}", f"there are more than {MOST:,} lines", REMEDY))
                break
            try:
                if line.content is None:
                    raise ValueError(f"it is longer than {LONGEST:,} bytes")
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


def sign(directory: Path, begin: Callable[[], Call]) -> list[str]:
    """Write into an evaluation's directory which call goes on with it. Reads files: not for the event loop.

    Returns:
        what is not as it was in earlier calls, see `Provenance.warnings`.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    with ProvenanceStore(directory) as store:
        store.append(begin())
    return Provenance(calls=tuple(read_calls(directory, lambda damage: None))).warnings()


def sign_merged(out: Path, parts: Sequence[Path], damaged: Damaged) -> None:
    """Write into a merged directory which calls made its parts, each once.

    Raises:
        RunDirectoryError: it cannot be written; or a part's lines cannot be read, see `damaged`.
    """
    held = {call.to_json() for call in read_calls(out, damaged)}
    new = {call.to_json(): call for part in parts for call in read_calls(part, damaged)}
    with ProvenanceStore(out) as store:
        store.append(*(call for line, call in new.items() if line not in held))


class Difference(NamedTuple):
    """Something that two evaluations were not made with alike, each side in words."""

    name: str
    first: str
    second: str

    def __str__(self) -> str:
        return f"{self.name}: {self.first} against {self.second}"


@dataclass(frozen=True)
class Provenance:
    """All that is known of how an evaluation was made.

    Attributes:
        configuration: of the evaluation. calls: that made it, see `Call`; none, where it is older than their record.
        others: configurations of others, whose numbers stand in one table with it; see `together`.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    others: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, directory: Path, damaged: Damaged = refuse) -> Provenance:
        """Of an evaluation's directory; see `read_calls`.

        Raises:
            RunDirectoryError: it holds no evaluation.
        """
        return cls(read_configuration(directory, damaged), tuple(read_calls(directory, damaged)))

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.configuration or self.calls)

    @cached_property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """Everything that results may depend on, by name, each with the distinct values that it had in the calls."""
        found: dict[str, dict[str, None]] = {}
        for configuration in (self.configuration, *self.others):
            for name, value in _asked(configuration):
                found.setdefault(name, {})[value] = None
        for call in self.calls:
            for name, value in _used(call):
                found.setdefault(name, {})[value] = None
        return {name: tuple(values) for name, values in found.items()}

    def rows(self) -> list[tuple[str, str]]:
        """For a reader: what was it made with? A name may have several rows, one for each thing that it was."""
        rows: dict[tuple[str, str], None] = {}

        def add(name: str, *values: str) -> None:
            distinct = list(dict.fromkeys(filter(None, values)))
            rows.update({(name, value): None for value in distinct[:ROWS]})
            if len(distinct) > ROWS:
                rows[name, f"and {len(distinct) - ROWS} others"] = None

        calls, configurations = self.calls, (self.configuration, *self.others)
        add("motes", *(_motes(call.motes) for call in calls))
        if calls:
            ends = dict.fromkeys(call.started[:16].replace("T", " ") for call in (calls[0], calls[-1]))
            add("date", f"{' – '.join(ends)} UTC, {counted(len(calls), 'call')}")
        add("command", *(_short(call.command or "from Python", 1000) for call in calls))
        for role, words in ROLES.items():
            told = [_model(call.models[role]) for call in calls if role in call.models]
            add(words, *(told or [_text(asked.get(role) or "") for asked in configurations]))
        tasks = [_task(call.task) for call in calls if call.task]
        add("task", *(tasks or [_text(asked.get("task") or "") for asked in configurations]))
        add("sampling", *(_settings(asked.get("sampling")) for asked in configurations))
        add("prompt", *(_settings(asked.get("prompt")) or "as the problems stand" for asked in configurations))
        add("seeds", *(", ".join(map(_text, asked.get("seeds") or ())) for asked in configurations))
        add("packages", *(_settings(call.packages) for call in calls))
        add("machine", *(", ".join(_machine(call.machine)) for call in calls))
        return list(rows)

    def warnings(self) -> list[str]:
        """What a reader must know: that what has one name, a model or a task, was not the same throughout."""
        found: dict[tuple[str, str, str], dict[str, None]] = {}
        for call in self.calls:
            for what, told in [
                *((ROLES.get(role, role), model) for role, model in call.models.items()),
                ("task", call.task),
            ]:
                name = f"{_text(told.get('name'))} {_text(told.get('problems', ''))}"
                for part, value in _flat("", told):
                    if part.rpartition(".")[2] in IDENTIFYING:
                        found.setdefault((what, name, part), {})[value] = None
        return [
            f"not all runs were made with the same {what}: {_words(part[1:])} {', '.join(map(_short, values))}"
            for (what, name, part), values in found.items()
            if len(values) > 1 and (part != ".digest" or (what, name, ".weights") not in found)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: calls that did runs with the same things are told together."""
        made: dict[str, dict[str, Any]] = {}
        for call in self.calls:
            used = {name: getattr(call, name) for name in ("motes", "models", "task", "methods", "packages", "machine")}
            told = made.setdefault(json.dumps(used), {"first": call.started, "commands": {}, **used})
            told |= {"last": call.started, "calls": told.get("calls", 0) + 1}
            told["commands"][call.command] = None
        configurations = [
            {name: value for name, value in asked.items() if name not in ("num_problems", "num_runs")}
            for asked in (self.configuration, *self.others)
        ]
        return {
            **({"configuration": configurations[0]} if not self.others else {"configurations": configurations}),
            "made_with": [{**told, "commands": list(told["commands"])} for told in made.values()],
        }

    def csv_metadata(self, title: str, names: Sequence[str]) -> str:
        """What says of CSV files where they come from, as "CSV on the Web" has it."""
        told = {
            "@context": "http://www.w3.org/ns/csvw",
            "dc:title": title,
            "dc:provenance": [f"{name}: {value}" for name, value in self.rows()],
            "dc:source": self.to_json(),
            "tables": [{"url": name} for name in names],
        }
        return json.dumps(told, ensure_ascii=False, indent=2) + "\n"

    def to_json(self) -> str:
        """`to_dict` in one line of ASCII, as the metadata of a picture can hold it; what is too much is counted."""
        told, left_out = self.to_dict(), 0
        while len(text := json.dumps(told, separators=(",", ":"))) > METADATA and (made := told["made_with"]):
            left_out += len(made) - len(made) // 2
            told |= {"made_with": made[: len(made) // 2], "left_out": left_out}
        return text if len(text) <= METADATA else json.dumps({"left_out": "it is too long"})


def differences(first: Provenance | Path, second: Provenance | Path) -> list[Difference]:
    """What two evaluations were not made with alike: models, problems, sampling, prompt, seeds, versions, machine.

    Methods, budgets, dates and commands are not looked at. Where only one of them recorded something, that is a
    difference, too: it may be one.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or a damaged one.
    """
    a, b = (one if isinstance(one, Provenance) else Provenance.read(one) for one in (first, second))
    names = list(dict.fromkeys([*a.facts, *b.facts]))
    different = [name for name in names if set(a.facts.get(name, ())) != set(b.facts.get(name, ()))]
    if "motes.source" in names and "motes.source" not in different:  # the same sources from two commits
        different = [name for name in different if not name.startswith("motes.")]
    return [
        Difference(_words(name), *(", ".join(map(_short, one.facts.get(name, (UNRECORDED,)))) for one in (a, b)))
        for name in different
        if not (name.endswith(".digest") and name.rpartition(".")[0] + ".weights" in names)  # its parts say more
    ]


def _asked(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a configuration results depend on."""
    for name in ("task", "split", "limit", *ROLES):
        yield (f"{name}.name" if name in (*ROLES, "task") else name), _text(configuration.get(name))
    yield "seeds", ", ".join(map(_text, configuration.get("seeds", ())))
    for name in ("sampling", "prompt"):
        yield from _flat(name, configuration.get(name))


def _used(call: Call) -> Iterator[tuple[str, str]]:
    """What of a call results depend on."""
    yield from _flat("motes", {name: call.motes.get(name) for name in ("version", "commit", "source")})
    for role, model in call.models.items():
        yield from _flat(role, {name: value for name, value in model.items() if name != "name"})
    yield from _flat("task", {name: value for name, value in call.task.items() if name != "name"})
    for part in ("methods", "packages", "machine"):
        yield from _flat(part, getattr(call, part))


def _flat(name: str, value: Any, depth: int = 5) -> Iterator[tuple[str, str]]:
    """What is in a value, by dotted names."""
    if isinstance(value, Mapping) and depth:
        for key, one in value.items():
            yield from _flat(f"{name}.{key}", one, depth - 1)
    else:
        yield name, _text(value)


def _words(name: str) -> str:
    """A fact's name for readers: "lm.weights" → "language model: weights"."""
    head, _, rest = name.partition(".")
    return f"{ROLES.get(head, head)}{f': {rest}' if rest else ''}".replace("_", " ")


def _text(value: Any) -> str:
    """A value in words; a configuration may hold anything that JSON can."""
    try:
        return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"


def _short(text: str, most: int = 160) -> str:
    """A digest by its beginning; a long text cut."""
    if text.startswith("sha256:"):
        return text[: len("sha256:") + 12]
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _motes(told: Mapping[str, Any]) -> str:
    parts = [_text(told.get("version", "?"))]
    if "commit" in told:
        parts.append(f"commit {_text(told['commit'])[:12]}{', changed since' if told.get('modified') else ''}")
    if "source" in told:
        parts.append(f"sources {_short(_text(told['source']))}")
    return ", ".join(parts)


def _model(told: Mapping[str, Any]) -> str:
    """A model in words: its name, then whatever is told of it."""
    name = _short(_text(told.get("name", "?")))
    rest = {key: value for key, value in told.items() if key not in ("name", "kind", "weights", "config", "tokenizer")}
    return ", ".join(filter(None, [name, _settings(rest)]))


def _task(told: Mapping[str, Any]) -> str:
    rest = {key: one for key, one in told.items() if key != "name"}
    return ", ".join(filter(None, [_short(_text(told.get("name", "?"))), _settings(rest)]))


def _machine(told: Mapping[str, Any]) -> Iterator[str]:
    cores, usable = told.get("cores"), told.get("usable_cores")
    for name in ("system", "processor"):
        if name in told:
            yield _short(_text(told[name]))
    if cores is not None:
        yield f"{_text(usable)} of {_text(cores)} cores" if usable not in (None, cores) else f"{_text(cores)} cores"
    if "python" in told:
        yield _short(_text(told["python"]))
    yield _short(_text(told.get("gpus", "no GPU")))


def _settings(told: Any) -> str:
    """Names and values in one line."""
    if not isinstance(told, Mapping):
        return ""
    found = list(_flat("", told))
    return ", ".join(f"{name.removeprefix('.').replace('_', ' ')} {_short(_quoted(value))}" for name, value in found)


def _quoted(value: str) -> str:
    return value if value.strip() == value != "" and "\n" not in value else json.dumps(value, ensure_ascii=False)


def together(parts: Sequence[Provenance]) -> Provenance:
    """Of several evaluations whose numbers stand in one table: all their calls, and each configuration once, but for
    methods, budgets and counts."""
    calls = {call.to_json(): call for part in parts for call in part.calls}
    configurations: dict[str, Mapping[str, Any]] = {}
    for part in parts:
        asked = {name: value for name, value in part.configuration.items() if name not in VARIED}
        configurations.setdefault(_text(asked), asked)
    first, *others = configurations.values() or ({},)
    return Provenance(first, tuple(sorted(calls.values(), key=lambda call: call.started)), tuple(others))
