r"""Mathematical answers, the last \boxed{…} of a text: graded by Math-Verify, and counted together if equal."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from motes.errors import GraderError
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.maths.workers import Grader, shared
from motes.tasks.numbers import is_excessive, number, plain, tidied

A = TypeVar("A")
B = TypeVar("B")
_WORD = re.compile(r"(\\(text|mathrm|textbf|mbox)\{)?\(?(?P<word>[A-Za-z]{3,})\)?\}?")


class MathAnswers(BoxedAnswers):
    """Answers that are mathematics, in LaTeX or plain.

    An answer is right if Math-Verify (https://github.com/huggingface/Math-Verify) finds it equal to the reference. It
    runs in other processes, and only for answers that are not simple: equal texts, numbers and words are right without
    it, different integers wrong. Answers that are longer or more deeply nested than it could read in time
    (`motes.tasks.numbers`) are wrong, too, unless they are the reference's own text.

    Args:
        grader: by default the one of this process.

    Raises:
        MissingExtraError: Math-Verify is not installed.
    """

    def __init__(self, grader: Grader | None = None) -> None:
        self.grader = grader or shared()

    def matches(self, reference: str, answer: str) -> bool:
        """Whether `answer` is right if `reference` is. Not symmetric.

        Raises:
            GraderTimeoutError: the decision takes too long.
            GraderError: the grader failed.
        """
        gold, given = tidied(reference), tidied(answer)
        # 1) simple answers
        if plain(gold) == plain(given):
            return True
        name = _simple_canonical(gold)
        if name is not None and name == _simple_canonical(given):
            return True
        numbers = number(gold), number(given)
        if all(value is not None and value.denominator == 1 for value in numbers):
            return False
        if is_excessive(gold) or is_excessive(given):
            return False
        # 2) functions that are defined by cases
        gold_cases, given_cases = _cases(gold), _cases(given)
        if gold_cases and given_cases:
            return same_in_any_order(gold_cases, given_cases, self._same_row)
        return gold_cases is None and given_cases is None and self.grader.verify(gold, given)

    def _same_row(self, first: _Row, second: _Row) -> bool:
        return len(first) == len(second) and all(map(self.matches, first, second))

    def canonical(self, answer: str) -> str:
        """The form that answers of the same value share: 0.5, 1/2 and \\frac12 are "1/2". Having the same form is an
        equivalence relation; Math-Verify's judgement is not (it finds some pairs of 1/3, 0.333333 and 0.3333333 equal).
        If an answer is neither a number nor a word, a worker finds its form, once; if it finds none in time, the form
        is the answer's text.
        """
        text = tidied(answer)
        if name := _simple_canonical(text):
            return name
        if is_excessive(text):
            return plain(text)
        if rows := _cases(text):
            return f"cases {sorted([self.canonical(cell) for cell in row] for row in rows)}"
        with contextlib.suppress(GraderError):
            if name := self.grader.canonical(text):
                return name
        return plain(text)


def _simple_canonical(text: str) -> str | None:
    """The canonical form of a number or a word; None for other answers."""
    if (value := number(text)) is not None:
        return str(value)
    word = _WORD.fullmatch(plain(text))
    return word["word"].casefold() if word else None


# Functions that are defined by cases. Math-Verify takes these for one another, and for 0.
# f(x) = \begin{cases} x & x > 0 \\ 0 & \text{otherwise} \end{cases}
# \left\{\begin{array}{ll} 0 & \text{otherwise} \\ x & x > 0 \end{array}\right.

_TABLE = re.compile(r"\\begin\{([dr]?cases|array)\}\s*(?:\{[^{}]*\})?(.*?)\\end\{\1\}", re.DOTALL)
_ROW_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-z])")
_BETWEEN = re.compile(r"\\text(?:rm)?\s?\{\s*(?:if|for|when|where|,|\s)*\s*\}|\\q?quad(?![a-z])|\\[,;: ]|~")

_Row = tuple[str, ...]


def _cases(answer: str) -> list[_Row] | None:
    """The cases of an answer, each a value and its condition; None if it has no cases."""
    if (table := _TABLE.search(answer)) is None:
        return None
    rows = (tuple(map(_cell, row.split("&"))) for row in _ROW_END.split(table[2]))
    return [row for row in rows if any(row)]


def _cell(cell: str) -> str:
    return _BETWEEN.sub(" ", cell).strip().rstrip(",.;").strip()


def same_in_any_order(first: Iterable[A], second: Iterable[B], same: Callable[[A, B], bool]) -> bool:
    """Whether the two collections have the same values, in any order."""
    remaining = list(second)
    for value in first:
        index = next((i for i, other in enumerate(remaining) if same(value, other)), None)
        if index is None:
            return False
        del remaining[index]
    return not remaining


__all__ = ["Grader", "MathAnswers"]
