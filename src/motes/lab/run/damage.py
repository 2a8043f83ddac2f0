"""What cannot be read of an evaluation's directory: told, never dropped without a word, and never a reason to lose the
rest.

Directories come from other machines and other people. JSON in them is read strictly: no name twice in an object, no
NaN, no nesting that exhausts the interpreter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from motes import text as texts
from motes.errors import RunDirectoryError
from motes.text import well_formed


class Damage(NamedTuple):
    """Something that cannot be read.

    Attributes:
        path, place: the file, and where in it, such as "line 3"; "": the whole of it.
        reason: why not. remedy: what to do about it.
        torn: whether it is what a killed process leaves at the end of a file.
    """

    path: Path
    place: str
    reason: str
    remedy: str = "delete it there, its run will be done again"
    torn: bool = False

    def __str__(self) -> str:
        return well_formed(f"{self.path}{f' {self.place}' if self.place else ''}: {self.reason}")

    @property
    def refusal(self) -> str:
        """What to say where nothing goes on without it."""
        where = f"{self.path} is damaged {self.place}" if self.place else f"{self.path} cannot be read"
        return well_formed(f"{where}: {self.reason}; {self.remedy}")


Damaged = Callable[[Damage], None]
"""Told of each thing that cannot be read."""


def refuse(damage: Damage) -> None:
    """Take damage for an error; a torn end, which a killed process leaves, is passed over.

    Raises:
        RunDirectoryError: it is anything else.
    """
    if not damage.torn:
        raise RunDirectoryError(damage.refusal)


class Damages:
    """Counts damage: what is read for its sake goes on without.

    Attributes:
        first: of each kind of thing, the first damage; `counts`: how many there are.
    """

    def __init__(self) -> None:
        self.first: dict[str, Damage] = {}
        self.counts: dict[str, int] = {}

    def of(self, kind: str) -> Damaged:
        """What counts damaged things of a kind, such as "records"."""

        def count(damage: Damage) -> None:
            self.first.setdefault(kind, damage)
            self.counts[kind] = self.counts.get(kind, 0) + 1

        return count

    def lines(self) -> list[str]:
        """A line for each kind: "12 records could not be read; the first: FILE line 7: REASON"."""
        return [
            f"{count} {kind} could not be read; the first: {self.first[kind]}"
            if count > 1
            else f"1 {kind.removesuffix('s')} could not be read: {self.first[kind]}"
            for kind, count in self.counts.items()
        ]


def told_to(damages: Damages | None, kind: str) -> Damaged:
    """What is told of damaged things of a kind; without anyone to count them they are errors, see `refuse`."""
    return refuse if damages is None else damages.of(kind)


def parse_json(text: str) -> Any:
    """What JSON says, with texts that every file can hold, see `motes.text.well_formed`.

    Raises:
        ValueError: it is no JSON, or of the kind that a program cannot read in one way only.
    """
    try:
        return texts.parse_json(text, object_pairs_hook=_once, parse_int=_whole_number, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it says the same field twice")
    return fields


def _whole_number(digits: str) -> int:
    if len(digits) > 100:  # of which reading takes time that grows with their square
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON knows")


LARGEST = 2**63
"""Whole numbers stay below: a larger one fits no column of a table."""


def is_count(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number from `least`."""
    return type(value) is int and least <= value < LARGEST


def is_number(value: Any, low: float = float("-inf"), high: float = float("inf")) -> bool:
    """Whether it is a finite number between `low` and `high`."""
    return type(value) in (int, float) and low <= value <= high and abs(value) < float("inf")


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Whether it is a list of things for which `holds` is true."""
    return isinstance(value, list) and all(map(holds, value))


def or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether it is None, or `holds` is true of it."""
    return lambda value: value is None or holds(value)


class Rule(NamedTuple):
    """What a field may hold: a test, and its words."""

    holds: Callable[[Any], bool]
    words: str


def broken(rules: Iterable[tuple[str, Rule]], fields: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The fields that are there and are not as their rules say, and why."""
    for name, rule in rules:
        if name in fields and not rule.holds(fields[name]):
            yield name, f"`{name}` must be {rule.words}, not {_short(fields[name])}"


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else f"{text[:57]}…"


SCORES = Rule(
    lambda value: is_list(value, or_none(lambda score: is_number(score, 0, 1))), "a list of numbers in [0, 1] and nulls"
)
"""Of steps, None for those that have none."""
MARKS = Rule(
    lambda value: is_list(value, lambda each: each is None or (type(each) is int and each in (0, 1))),
    "a list of 1, 0 and null",
)
"""Whether steps are right, None for those of which nobody can say."""
