"""Labelled answers with the scores that a reward model gave them: a line of a file each, and what many come to."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from motes import files
from motes.lab.measure.first_errors import Answers
from motes.lab.measure.reliability import Predictions
from motes.lab.run.appending import AppendOnly
from motes.lab.run.damage import (
    MARKS,
    SCORES,
    Damage,
    Damaged,
    Rule,
    broken,
    is_count,
    is_list,
    is_number,
    is_text,
    or_none,
    parse_json,
)
from motes.text import json_line


@dataclass(frozen=True)
class Rated:
    """A labelled answer with its scores, or why it has none.

    Attributes:
        row: of the file, from 1.
        problem: a name for its question.
        scores, right, depths: (S,) of each step: its score, whether what ends with it is right, and the number of steps
            so far. The first `length` are the answer's own.
        first_error: see `LabelledSteps`.
        tokens: that the reward model has to compute for this answer alone.
        seconds: by which it was later than the one before.
        error: why it could not be scored.
    """

    row: int
    problem: str = ""
    scores: tuple[float | None, ...] = ()
    right: tuple[bool | None, ...] = ()
    depths: tuple[int, ...] = ()
    length: int = 0
    first_error: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> str:
        right = [None if is_right is None else int(is_right) for is_right in self.right]
        return json_line({**dataclasses.asdict(self), "right": right})

    @classmethod
    def from_json(cls, line: str) -> Rated:
        """Read a line.

        Raises:
            ValueError: it is no such thing.
        """
        fields = parse_json(line)
        if not isinstance(fields, dict) or "row" not in fields:
            raise ValueError("it is no rated answer")
        known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        for _, reason in broken(RULES.items(), known):
            raise ValueError(reason)
        known.update((name, tuple(known.get(name, ()))) for name in ("scores", "right", "depths"))
        known["right"] = tuple(None if is_right is None else bool(is_right) for is_right in known["right"])
        rated = cls(**known)
        size = len(rated.scores)
        if len(rated.right) != size or len(rated.depths) != size or rated.length > size:
            raise ValueError("its steps are not of one number")
        if rated.first_error is not None and rated.first_error >= rated.length:
            raise ValueError("its first error is at a step that there is not")
        return rated


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "row": Rule(lambda value: is_count(value, 1), "a whole number from 1"),
        "problem": Rule(is_text, "a text"),
        "scores": SCORES,
        "right": MARKS,
        "depths": Rule(lambda value: is_list(value, lambda depth: is_count(depth, 1)), "a list of whole numbers"),
        "length": Rule(is_count, "a whole number from 0"),
        "first_error": Rule(lambda value: value is None or value == -1 or is_count(value), "a step, −1 or null"),
        "tokens": Rule(is_count, "a whole number from 0"),
        "seconds": Rule(lambda value: is_number(value, 0, 1e12), "a number of seconds"),
        "error": Rule(or_none(is_text), "a text or null"),
    }
)
"""What each field may hold."""


class RatingStore(AppendOnly):
    """The file of rated answers, open for appending by this process alone; a torn last line is cut off.

    Args:
        total: rows that are asked for; answers of others are passed over.
        damaged: told of each line that is no rated answer; its answer is scored again.

    Attributes:
        tally: of what it held when it was opened.
    """

    def __init__(self, path: Path, total: int, damaged: Damaged) -> None:
        self.tally = Tally()

        def whole_lines(path: Path) -> int:
            whole = 0
            for line in files.read_lines(path, files.LINE):
                if not line.whole:
                    break
                whole = line.ends
                try:
                    if line.content is None:
                        raise ValueError(f"it is longer than {files.LINE:,} bytes")
                    rated = Rated.from_json(line.content.decode())
                except ValueError as error:
                    damaged(Damage(path, f"line {line.number}", str(error)))
                    continue
                if rated.row <= total:
                    self.tally.add(rated)
            return whole

        super().__init__(path, whole_lines)

    def append(self, rated: Rated) -> None:
        """Write one, or nothing.

        Raises:
            RunDirectoryError: it could not be written; the file is as it was.
        """
        self.write(f"{rated.to_json()}\n".encode())


class Tally:
    """What rated answers come to, in a few bytes a step.

    Attributes:
        done: rows that have scores. failed: why others have none, by row.
        steps: scored; `tokens`, `seconds`: that took.
    """

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        self.steps = self.tokens = self.length = 0
        self.seconds = 0.0
        self._numbers: dict[str, int] = {}
        self._steps = (array("d"), array("b"), array("q"), array("q"))  # score, right, problem, depth
        self._answers = (array("d"), array("d"), array("b"), array("q"))  # low, high, wrong, problem

    def add(self, rated: Rated) -> None:
        """Count an answer, once."""
        self.seconds += rated.seconds
        if rated.row in self.done:
            return
        if rated.error is not None:
            self.failed[rated.row] = rated.error
            return
        self.failed.pop(rated.row, None)
        self.done.add(rated.row)
        self.tokens += rated.tokens
        self.length += rated.length
        problem = self._numbers.setdefault(rated.problem, len(self._numbers))
        for score, right, depth in zip(rated.scores, rated.right, rated.depths, strict=True):
            self.steps += score is not None
            if score is not None and right is not None:
                _append(self._steps, (score, right, problem, depth))
        own = [math.nan if score is None else score for score in rated.scores[: rated.length]]
        if (place := rated.first_error) is not None and not any(map(math.isnan, own)):
            before = own if place < 0 else own[:place]
            low, high = -math.inf if place < 0 else own[place], min(before, default=math.inf)
            _append(self._answers, (low, high, place >= 0, problem))

    @property
    def predictions(self) -> Predictions:
        """Of all labelled steps."""
        scores, right, problems = map(np.array, self._steps[:3])
        return Predictions(scores.astype(float), right.astype(bool), self._ordered(problems))

    @property
    def depths(self) -> npt.NDArray[np.int64]:
        """(n,) of the same steps."""
        return np.array(self._steps[3], dtype=np.int64)

    @property
    def answers(self) -> Answers:
        """Those of which the first error is known."""
        low, high, wrong, problems = map(np.array, self._answers)
        return Answers(low.astype(float), high.astype(float), wrong.astype(bool), self._ordered(problems))

    def _ordered(self, problems: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The numbers of problems, by their names: the order in which answers were scored must not matter."""
        place = {name: i for i, name in enumerate(sorted(self._numbers))}
        order = np.array([place[name] for name in self._numbers], dtype=np.int64)
        return order[problems.astype(np.int64)] if len(problems) else np.zeros(0, dtype=np.int64)


def _append(columns: Sequence[array[Any]], values: Sequence[float]) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)
