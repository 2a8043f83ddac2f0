"""Labelled answers with a reward model's scores: the lines of a file, and the numbers that many answers add up to."""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from motes import files
from motes.lab.measure.first_errors import Answers
from motes.lab.measure.reliability import Predictions
from motes.lab.measure.statistics import FloatArray, IntArray
from motes.lab.run.appending import AppendOnlyLines, read_items
from motes.lab.run.damage import Damage, Damaged, parse_json
from motes.lab.run.rules import MARKS, POSITIVE, SCORES, Rule, is_count, is_number, list_of, read_fields
from motes.text import json_line


@dataclass(frozen=True)
class Rated:
    """A labelled answer with its scores, or the reason why it has none.

    Attributes:
        row: number of its row in the file, from 1.
        problem: a name for its question.
        scores: (S,) of its steps; the first `length` steps are the answer's own.
        right: (S,) see `LabelledSteps`.
        depths: (S,) see `LabelledSteps`.
        length: number of steps of the answer itself.
        first_error: see `LabelledSteps`.
        tokens: number of tokens that the reward model has to compute for this answer alone.
        seconds: time between the answer scored before this one and this one.
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
    def from_json(cls, line: str | bytes) -> Rated:
        """Read a line.

        Raises:
            ValueError: it is not a rated answer.
        """
        values = parse_json(line)
        if not isinstance(values, dict) or "row" not in values:
            raise ValueError("it is not a rated answer")
        fields = read_fields(cls, values, RULES)
        fields["right"] = tuple(None if is_right is None else bool(is_right) for is_right in fields.get("right", ()))
        rated = cls(**fields)
        size = len(rated.scores)
        if len(rated.right) != size or len(rated.depths) != size or rated.length > size:
            raise ValueError("its lists of steps differ in length")
        if rated.first_error is not None and rated.first_error >= rated.length:
            raise ValueError("its first error is at a step that does not exist")
        return rated


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "row": POSITIVE,
        "scores": SCORES,
        "right": MARKS,
        "depths": list_of(POSITIVE),
        "first_error": Rule(lambda value: value is None or value == -1 or is_count(value), "a step, −1 or null"),
        "seconds": Rule(lambda value: is_number(value, 0, 1e12), "a number of seconds"),
    }
)
"""The values that fields may have where their type does not say it."""


class RatingStore(AppendOnlyLines):
    """The file of rated answers. Only this process may append to it; an incomplete last line is cut off.

    Args:
        total: number of rows to rate; answers of later rows are ignored.
        damaged: called with each line that is not a rated answer, which is then scored again.

    Attributes:
        tally: of the answers that the file held when it was opened.
    """

    def __init__(self, path: Path, total: int, damaged: Damaged) -> None:
        self.tally = Tally()

        def report(damage: Damage) -> None:
            if not damage.torn:
                damaged(damage)

        def read_tally(path: Path) -> int:
            """Count the answers; return the number of bytes in whole lines."""
            size = 0
            lines = read_items(path, Rated.from_json, report, lambda line: not line.whole, limit=files.LINE)
            for rated, line_end in lines:
                size = line_end
                if rated is not None and rated.row <= total:
                    self.tally.add(rated)
            return size

        super().__init__(path, read_tally)

    def append(self, rated: Rated) -> None:
        """Append an answer.

        Raises:
            RunDirectoryError: it could not be written; the file has not changed.
        """
        self.write_lines([rated.to_json()])


class Tally:
    """The scores and labels of rated answers, in a few bytes for each step.

    Attributes:
        done: rows that have scores.
        failed: the reasons why other rows have none, by row.
        steps: number of scored steps.
        tokens: number of tokens that scoring took.
        length: number of steps of the answers themselves.
        seconds: time that scoring took.
    """

    def __init__(self) -> None:
        self.done: set[int] = set()
        self.failed: dict[int, str] = {}
        self.steps = self.tokens = self.length = 0
        self.seconds = 0.0
        self._numbers: dict[str, int] = {}
        self._steps = array("d")  # score, right, problem, depth of each step
        self._answers = array("d")  # low, high, wrong, problem of each answer

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
                self._steps.extend((score, right, problem, depth))
        scores = [math.nan if score is None else score for score in rated.scores[: rated.length]]
        if (place := rated.first_error) is not None and not any(map(math.isnan, scores)):
            before = scores if place < 0 else scores[:place]
            low, high = -math.inf if place < 0 else scores[place], min(before, default=math.inf)
            self._answers.extend((low, high, place >= 0, problem))

    @property
    def predictions(self) -> Predictions:
        """The scores of all labelled steps."""
        scores, right, problems = (np.array(self._steps[column::4]) for column in range(3))
        return Predictions(scores, right.astype(bool), self._ordered(problems))

    @property
    def depths(self) -> IntArray:
        """(n,) the number of steps up to each of the `predictions`' steps."""
        return np.array(self._steps[3::4], dtype=np.int64)

    @property
    def answers(self) -> Answers:
        """The answers whose first error is known."""
        low, high, wrong, problems = (np.array(self._answers[column::4]) for column in range(4))
        return Answers(low, high, wrong.astype(bool), self._ordered(problems))

    def _ordered(self, problems: FloatArray) -> IntArray:
        """Problems numbered by name, so that the order in which answers were scored does not matter."""
        places = np.argsort(np.argsort(list(self._numbers)))
        return np.asarray(places[problems.astype(np.int64)])
