"""How an evaluation was made: its configuration and the calls that produced it, in words, compared and in metadata.

`config.json` identifies the evaluation, and each call of `motes eval` appends a line about itself to
`provenance.jsonl`, see `Call`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from motes.lab.run.calls import Call, read_calls
from motes.lab.run.damage import Damaged, refuse
from motes.lab.run.evaluation import read_configuration
from motes.text import counted, shortened

__all__ = ["CSV_METADATA", "Call", "Difference", "Provenance", "differences", "read_calls", "together"]

MAX_METADATA = 1 << 18
"""Characters of a picture's metadata: some programs refuse more than a million."""
ROLES = {"lm": "language model", "reward": "reward model", "outcome_reward": "outcome reward model"}
UNRECORDED = "not recorded"
CSV_METADATA = "csv-metadata.json"
"""The file beside CSV files that describes them; the name is from W3C, "Model for Tabular Data and Metadata"."""
IDENTIFYING = ("digest", "weights", "config", "tokenizer", "source", "calibration", "rubric_digest", "root")
"""Parts of identities that differ if two things of one name are not the same."""
HIDDEN = ("kind", "weights", "config", "tokenizer")
"""Parts of a model's identity that tables leave out."""
COUNTS = ("num_problems", "num_runs")
SETUP = ("motes", "models", "task", "methods", "packages", "machine")
MAX_ROWS = 8
"""Rows of one name in a table."""


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
        """Read the provenance of an evaluation, see `read_calls`; a RunDirectoryError if the directory holds none."""
        return cls(read_configuration(directory, damaged), tuple(read_calls(directory, damaged)))

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.configuration or self.calls)

    @property
    def _configurations(self) -> tuple[Mapping[str, Any], ...]:
        return self.configuration, *self.others

    @cached_property
    def facts(self) -> dict[str, tuple[str, ...]]:
        """Everything that results may depend on: for each name, the distinct values in the calls."""
        facts: dict[str, dict[str, None]] = {}
        for name, value in self._facts():
            facts.setdefault(name, {})[value] = None
        return {name: tuple(values) for name, values in facts.items()}

    def _facts(self) -> Iterator[tuple[str, str]]:
        for configuration in self._configurations:
            for name in ("task", "split", "limit", *ROLES):
                fact = name if name in ("split", "limit") else f"{name}.name"
                yield fact, _text(configuration.get(name))
            yield "seeds", ", ".join(map(_text, configuration.get("seeds", ())))
            for name in ("sampling", "prompt"):
                yield from _flatten(name, configuration.get(name))
        for call in self.calls:
            yield from _flatten("motes", {name: call.motes.get(name) for name in ("version", "commit", "source")})
            for name, identity in (*call.models.items(), ("task", call.task)):
                yield from _flatten(name, {part: value for part, value in identity.items() if part != "name"})
            for name in ("methods", "packages", "machine"):
                yield from _flatten(name, getattr(call, name))

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) pairs that describe how the evaluation was made, a row for each distinct value of a name."""
        rows: dict[tuple[str, str], None] = {}

        def add(name: str, *values: str) -> None:
            distinct = list(dict.fromkeys(filter(None, values)))
            rows.update({(name, value): None for value in distinct[:MAX_ROWS]})
            if len(distinct) > MAX_ROWS:
                rows[name, f"and {len(distinct) - MAX_ROWS} others"] = None

        calls, configurations = self.calls, self._configurations
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
        parts: dict[tuple[str, str, str], dict[str, None]] = {}  # the values, by (kind, name, part)
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
            {name: value for name, value in each.items() if name not in COUNTS} for each in self._configurations
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
    listed = []
    for name in different:
        owner, _, part = name.rpartition(".")
        if part == "digest" and f"{owner}.weights" in names:
            continue  # the digests of its parts say more
        sides = [", ".join(map(_short, side.facts.get(name, (UNRECORDED,)))) for side in (a, b)]
        listed.append(Difference(_readable_name(name), *sides))
    return listed


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
    if value is None:
        return "none"
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "…"


def _short(text: str, most: int = 160) -> str:
    """The first characters of a digest, or of a long text."""
    if text.startswith("sha256:"):
        return text[: len("sha256:") + 12]
    return shortened(text, most)


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
    """Names and values in one line; "" if it is not a mapping."""
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
        shared = {
            name: value for name, value in part.configuration.items() if name not in ("methods", "budgets", *COUNTS)
        }
        configurations.setdefault(_text(shared), shared)
    first, *others = configurations.values() or ({},)
    return Provenance(first, tuple(sorted(calls.values(), key=lambda call: call.started)), tuple(others))
