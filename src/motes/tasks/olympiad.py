r"""OlympiadBench's answers: one or several, in a unit, some of them with a tolerance.

https://github.com/OpenBMB/OlympiadBench. A row's `final_answer` is a list of one text, "$1, \frac{1}{2}$", whose
answers may be in any order; `error` is "1e-1", how far a number may be off, or one for each, "1e-1,,1e-2".

Its own grader differs from this one: it also accepts 100 times the answer and a hundredth of it, as percentages;
without a tolerance it compares numbers to 8 places, Math-Verify to 6; and it reads all boxes of a text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from motes.tasks.maths import MathAnswers, same_in_any_order
from motes.tasks.numbers import is_excessive, number, tidied
from motes.tasks.rows import Entry, Fields, Row, find, need, need_text

SLACK = Fraction(101, 100)
"""Factor of a tolerance, for rounding errors: the same as OlympiadBench's."""


@dataclass(frozen=True)
class Expected:
    """The right answer, and how much an answer may differ from it.

    Attributes:
        reference: the answers, with commas between them.
        tolerances: how far each number may be off, 0: not at all. A single tolerance is for all numbers.
        has_unit: whether a unit after an answer is ignored.
    """

    reference: str
    tolerances: tuple[Fraction, ...] = ()
    has_unit: bool = False


@dataclass(frozen=True, kw_only=True)
class OlympiadFields(Fields):
    """The names of the fields of OlympiadBench's rows. Rows with an image are left out."""

    question: tuple[str, ...] = ("question",)
    answer: tuple[str, ...] = ("final_answer",)
    id: tuple[str, ...] = ("id",)

    def read(self, row: Row, name: str) -> Entry | None:
        question = need_text(row, self.question, "question")
        if "<img_" in question or any(field.startswith("image") and row[field] for field in row):
            return None
        if context := find(row, ("context",))[1]:
            question = f"{context}\n\n{question}"
        field, value = need(row, self.answer)
        texts = [value] if isinstance(value, str) else value
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts)):
            raise ValueError(f"`{field}` must be a list of texts, not {value!r}")
        reference = ", ".join(text.strip() for text in texts)
        unit = find(row, ("unit",))[1]
        if find(row, ("is_multiple_answer",))[1]:
            question += "\n\nThere are several answers: state all of them together, with commas between them."
        if unit:
            question += f"\n\nState the answer in {unit}, without the unit."
        is_tuple = "Tuple" in str(find(row, ("answer_type",))[1])
        tolerances = () if is_tuple else _tolerances(find(row, ("error",))[1])
        return self.entry(row, name, question, reference, Expected(reference, tolerances, bool(unit)))


def _tolerances(value: Any) -> tuple[Fraction, ...]:
    texts = str(value).split(",") if value is not None and str(value).strip() else []
    try:
        numbers = [float(text) if text.strip() else 0.0 for text in texts]
    except ValueError:
        raise ValueError(f"`error` must be a number, or several with commas between them, not {value!r}") from None
    if not all(math.isfinite(tolerance) and tolerance >= 0 for tolerance in numbers):
        raise ValueError(f"`error` must be positive, not {value!r}")
    return tuple(map(Fraction, numbers))


class ListedAnswers(MathAnswers):
    """Answers that are mathematics, perhaps several in any order, whose numbers may be off by a tolerance."""

    def meets(self, key: Any, answer: str) -> bool:
        """Whether an answer is right, see `motes.tasks.benchmark.Declaration`. The key is an `Expected`."""
        assert isinstance(key, Expected)
        if key.has_unit and not is_excessive(answer):
            answer = _UNIT.sub("", answer)
        if self.matches(key.reference, answer):
            return True
        if is_excessive(answer):
            return False
        references, answers = list(_split_list(key.reference)), list(_split_list(answer))
        tolerances = key.tolerances * len(references) if len(key.tolerances) == 1 else key.tolerances
        tolerances += (Fraction(0),) * (len(references) - len(tolerances))
        expected = zip(references, tolerances, strict=False)
        return len(references) == len(answers) and same_in_any_order(expected, answers, self._is_near)

    def _is_near(self, expected: tuple[str, Fraction], answer: str) -> bool:
        reference, tolerance = expected
        if self.matches(reference, answer):
            return True
        if not tolerance:
            return False
        expected_value, value = self._value(reference), self._value(answer)
        return expected_value is not None and value is not None and abs(expected_value - value) <= tolerance * SLACK

    def _value(self, text: str) -> Fraction | None:
        """The number that a text states, perhaps as an expression; None for one with unknowns."""
        text = _LEFT_SIDE.sub("", tidied(text.replace("$", "")))
        if (value := number(text)) is not None:
            return value
        if _LETTER.search(_KNOWN_COMMANDS.sub(" ", text)):
            return None
        try:
            return Fraction(self.grader.canonical(text) or "")
        except (ValueError, ZeroDivisionError):
            return None


_SPACE = r"(?:\s|~|\\[ ,;:!])*+"
_UNIT = re.compile(
    rf"(?<=[\d}})]){_SPACE}(?:\\(?:text|mathrm|rm|operatorname)\s?\{{[^{{}}]*\}}"
    rf"(?:\s?\^\s?(?:\{{[^{{}}]*\}}|-?\d))?{_SPACE}(?:/|\\cdot)?{_SPACE})++\$?\s*+\Z"
)
_LEFT_SIDE = re.compile(r"\A.*(?:=|\\approx(?![A-Za-z])|≈)\s*", re.DOTALL)
_KNOWN_COMMANDS = re.compile(r"\\(?:d?frac|sqrt|pi|times|cdot|left|right|ln|log|exp|sin|cos|tan|circ|%)(?![A-Za-z])")
_LETTER = re.compile(r"[^\W\d_]")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])\s?|±")


def _split_list(answer: str) -> Iterator[str]:
    """The answers of a list, split at commas outside brackets; \\pm stands for two answers."""
    depth, start = 0, 0
    text = tidied(answer.replace("$", "").replace("\\left", "").replace("\\right", ""))
    for i, character in enumerate([*text, ","]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and (depth <= 0 or i == len(text)):
            part = text[start:i].strip()
            if _PLUS_MINUS.search(part):
                yield _PLUS_MINUS.sub("+", part)
                yield _PLUS_MINUS.sub("-", part)
            elif part:
                yield part
            start = i + 1
