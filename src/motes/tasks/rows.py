"""Reads problems from rows of data: the lines of a JSON Lines file or the rows of a data set on the hub."""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from motes.core import Problem
from motes.errors import ConfigurationError, ProblemFileError, UnreadableFileError
from motes.tasks.boxed import BoxedAnswers
from motes.text import parse_json, read_text

Row = Mapping[str, Any]


class Entry(NamedTuple):
    """The content of a row.

    Attributes:
        level: the difficulty of the problem, if the row states it.
        key: data that grading needs besides the reference answer, such as tests or a tolerance; None: none.
    """

    problem: Problem
    level: int | None = None
    key: Any = None


class Numeral(float):
    """A number that keeps its text in the file: 0.50 is "0.50"."""

    def __init__(self, written: str) -> None:
        self.written = written

    def __str__(self) -> str:
        return self.written


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The names of a row's fields. If there are several names, the first that the row has counts.

    Attributes:
        question: of the problem.
        answer: the reference answer, a text or a number.
        id: unique; a row without one is named by its number.
        level: the difficulty, a whole number or "Level 3".
        choices: a list of texts, a mapping from letters to texts, or {"text": […], "label": […]}.
        after: the reference answer begins after this text in its field.
    """

    question: tuple[str, ...] = ("question", "problem")
    answer: tuple[str, ...] = ("answer", "solution")
    id: tuple[str, ...] = ("id", "unique_id")
    level: tuple[str, ...] = ("level",)
    choices: tuple[str, ...] = ()
    after: str | None = None

    def read(self, row: Row, name: str) -> Entry | None:
        """The content of a row; None: the row is left out. `name` is the id if the row has none.

        Raises:
            ValueError: the row lacks a field, or a value in it cannot be used.
        """
        question = need_text(row, self.question, "question")
        field, answer = need(row, self.answer)
        choices = _choices(find(row, self.choices)[1])
        reference = self._label_of(answer, choices) if choices else self._reference(field, answer)
        return self.entry(row, name, with_choices(question, choices) if choices else question, reference)

    def entry(self, row: Row, name: str, question: str, reference: str | None, key: Any = None) -> Entry:
        """The entry for a row, with its id and level, and the given question, reference answer and key."""
        problem = Problem(question, id=self.identifier(row, name), answer=reference)
        return Entry(problem, _level(find(row, self.level)[1]), key)

    def identifier(self, row: Row, name: str) -> str:
        field, identifier = find(row, self.id)
        return _text_or_number(field, identifier) if field else name

    def _reference(self, field: str, value: Any) -> str:
        text = _text_or_number(field, value).strip()
        if self.after is not None:
            _, marker, text = text.rpartition(self.after)
            if not (marker and text.strip()):
                raise ValueError(f"`{field}` states no answer after {self.after!r}")
            return text.strip()
        boxed = BoxedAnswers().answer(text)
        if boxed is None and field == "solution":
            raise ValueError("`solution` states no answer in \\boxed{…}")
        return boxed or text

    def _label_of(self, value: Any, choices: Mapping[str, str]) -> str:
        """The label of the choice that `value` names, by its label, its number from 0, its text, or in other case."""
        label = _label(value)
        if label in choices and not isinstance(value, bool):
            return label
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
            return list(choices)[value]
        labels = [name for name, text in choices.items() if text == value]
        if len(labels) > 1:
            raise ValueError(f"the answer {value!r} is the text of several choices, {' and '.join(labels)}: name one")
        labels = labels or [name for name in choices if name.casefold() == label.casefold()]
        if len(labels) != 1:
            raise ValueError(f"the answer {value!r} is none of the choices {', '.join(choices)}")
        return labels[0]


def with_choices(question: str, choices: Mapping[str, str]) -> str:
    """A question with its choices below it."""
    return f"{question}\n" + "".join(f"\n{letter}. {text}" for letter, text in choices.items())


@dataclass(frozen=True, kw_only=True)
class ShuffledChoices(Fields):
    """The names of the fields of a row with a right answer and wrong ones. They become choices in random order, which
    depends only on the problem's id.

    Attributes:
        wrong: the fields of the wrong answers; fields that a row lacks are left out.
    """

    wrong: tuple[str, ...] = ()

    def read(self, row: Row, name: str) -> Entry | None:
        question = need_text(row, self.question, "question")
        right = need_text(row, self.answer, "answer").strip()
        texts = {field: need_text(row, (field,), "answer").strip() for field in self.wrong if find(row, (field,))[0]}
        if not texts or right in texts.values():
            raise ValueError("it needs wrong answers, each of which differs from the right one")
        texts[""] = right
        identifier = self.identifier(row, name)
        order = sorted(texts, key=lambda field: hashlib.sha256(f"{identifier}\0{field}".encode()).digest())
        choices = dict(zip(string.ascii_uppercase, map(texts.__getitem__, order), strict=False))
        question, reference = with_choices(question, choices), string.ascii_uppercase[order.index("")]
        return self.entry(row, name, question, reference)


def _text_or_number(field: str, value: Any) -> str:
    """The text of a field, or its number as it is written."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_finite = isinstance(value, Numeral) or (is_number and (isinstance(value, int) or math.isfinite(value)))
    if not (is_finite or isinstance(value, str)) or not str(value).strip():
        raise ValueError(f"`{field}` must be a text or a number, not {value!r}")
    return str(value)


def find(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """The first of these fields that a row has, and its value; "" and None if it has none."""
    return next(((name, row[name]) for name in names if row.get(name) is not None), ("", None))


def need(row: Row, names: tuple[str, ...]) -> tuple[str, Any]:
    """Like `find`, but raises ValueError if the row has none of them."""
    name, value = find(row, names)
    if not name:
        raise ValueError(f"it has no {' or '.join(f'`{name}`' for name in names)}")
    return name, value


def need_text(row: Row, names: tuple[str, ...], meaning: str) -> str:
    """The text in the first of these fields that a row has, unchanged. Raises ValueError if there is none."""
    _, value = need(row, names)
    if not (isinstance(value, str) and value.strip()):
        raise ValueError(f"the {meaning} must be a text, not {value!r}")
    return value


def _choices(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    labels: Sequence[Any] = string.ascii_uppercase
    texts = value
    if isinstance(value, Mapping):
        labels, texts = list(value), list(value.values())
        if value.keys() == {"text", "label"}:  # as in AI2's data sets
            labels, texts = value["label"], value["text"]
            are_lists = isinstance(labels, (list, tuple)) and isinstance(texts, (list, tuple))
            if not (are_lists and len(labels) == len(texts)):
                raise ValueError("the choices must have as many labels as texts, a list of each")
    are_texts = isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)
    if not (are_texts and 0 < len(texts) <= len(labels)):
        raise ValueError("the choices must be a list of at most 26 texts, or texts by letter")
    choices = {_label(label): text for label, text in zip(labels, texts, strict=False)}
    if len(choices) < len(texts):
        raise ValueError(f"two of the choices have the same label: {', '.join(map(str, labels))}")
    return choices


def _label(value: Any) -> str:
    """A choice's label without punctuation around it: "(B)" and "B." are "B"."""
    return str(value).strip().strip("().").strip()


def _level(value: Any) -> int | None:
    text = str(value).removeprefix("Level ")
    return int(text) if text.isdecimal() else None


def read_jsonl(path: Path) -> list[tuple[int, Row]]:
    """The rows of a JSON Lines file with the numbers of their lines, from 1; blank lines are skipped.

    Raises:
        ConfigurationError: it cannot be read (`UnreadableFileError`), or contains no row.
        ProblemFileError: a line is not a JSON object.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(path, error) from error
    rows: list[tuple[int, Row]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, parse_float=Numeral)
        except ValueError as error:
            raise ProblemFileError(str(path), number, f"it is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ProblemFileError(str(path), number, "it is not a JSON object")
        rows.append((number, row))
    if not rows:
        raise ConfigurationError(
            f"{path} contains no problems: write a JSON object with `question` and `answer` per line"
        )
    return rows


def read_problems(rows: list[tuple[int, Row]], fields: Fields, *, source: str, name: str) -> dict[str, Entry]:
    """The contents of numbered rows, by the problems' ids, without the rows that are left out. `source` stands for the
    rows in error messages; the ids of rows that have none begin with `name`.

    Raises:
        ProblemFileError: a row cannot be used, or has the same id as another row.
    """
    entries: dict[str, Entry] = {}
    lines: dict[str, int] = {}
    for number, row in rows:
        try:
            entry = fields.read(row, f"{name}/{number}")
        except ValueError as error:
            raise ProblemFileError(source, number, str(error)) from error
        if entry is None:
            continue
        identifier = entry.problem.id
        assert identifier is not None
        if identifier in entries:
            raise ProblemFileError(source, number, f"its id {identifier!r} is that of line {lines[identifier]}, too")
        entries[identifier] = entry
        lines[identifier] = number
    return entries
