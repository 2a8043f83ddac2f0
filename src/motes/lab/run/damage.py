"""Damage: the parts of an evaluation's directory that cannot be read. They are reported, and the rest is read.

Directories come from other machines and other people. Their JSON is read strictly: no name twice in an object, no NaN,
no nesting that exhausts the interpreter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from motes import files
from motes import text as texts
from motes.errors import RunDirectoryError
from motes.text import well_formed

DONE_AGAIN = "delete it there, its run will be done again"


Item = TypeVar("Item")


class Damage(NamedTuple):
    """A part of a file that cannot be read.

    Attributes:
        place: where in the file, such as "line 3"; "": all of it.
        reason: why it cannot be read.
        remedy: what the user can do about it.
        torn: whether it is an incomplete end of a file, which a killed process leaves.
    """

    path: Path
    place: str
    reason: str
    remedy: str = DONE_AGAIN
    torn: bool = False

    def __str__(self) -> str:
        return well_formed(f"{self.path}{f' {self.place}' if self.place else ''}: {self.reason}")

    @property
    def refusal(self) -> str:
        """The error message if the program cannot go on without this part."""
        where = f"{self.path} is damaged {self.place}" if self.place else f"{self.path} cannot be read"
        return well_formed(f"{where}: {self.reason}; {self.remedy}")


Damaged = Callable[[Damage], None]
"""A callback that is called with each damage."""


def refuse(damage: Damage) -> None:
    """Raise a RunDirectoryError, unless the damage is a torn end, which a killed process leaves."""
    if not damage.torn:
        raise RunDirectoryError(damage.refusal)


class Damages:
    """Counts damage, so that reading goes on without the damaged parts."""

    def __init__(self) -> None:
        self.first: dict[str, Damage] = {}
        """The first damage of each kind, such as "records"."""
        self.counts: dict[str, int] = {}

    def of(self, kind: str) -> Damaged:
        """A callback that counts damaged things of a kind."""

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


def count_or_refuse(damages: Damages | None, kind: str) -> Damaged:
    """A callback for damaged things of a kind: counts them in `damages`, or refuses them if that is None."""
    return refuse if damages is None else damages.of(kind)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, with its strings made well-formed; a ValueError if it is not JSON, or JSON that
    programs may read differently."""
    try:
        return texts.parse_json(text, object_pairs_hook=_unique, parse_int=_parse_integer, parse_constant=_refuse_nan)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def read_json(path: Path, parse: Callable[[str], Item], damaged: Damaged, remedy: str) -> Item | None:
    """The value of a small file; None if the file is missing or damaged.

    Args:
        parse: makes the value of the file's text; a ValueError says why it cannot.
    """
    try:
        return parse(files.read_text(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        damaged(Damage(path, "", getattr(error, "strerror", None) or str(error), remedy))
        return None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The fields of a JSON text that is an object, see `parse_json`."""
    fields = parse_json(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it says the same field twice")
    return fields


def _parse_integer(digits: str) -> int:
    if len(digits) > 100:  # the time that `int` takes grows with the square of the number of digits
        raise ValueError(f"it has a number of {len(digits):,} digits")
    return int(digits)


def _refuse_nan(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
