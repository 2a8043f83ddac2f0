r"""The answer rule of mathematics benchmarks: the last \boxed{…} of a text."""

from __future__ import annotations

import re
from fractions import Fraction

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


class BoxedAnswers:
    """The answer is what stands in the last complete ``\\boxed{…}`` that is not empty, braces balanced.

    What is thought, between ``<think>`` and ``</think>``, is no answer: drafts are boxed there, too. That is so before
    the thought is finished, and for what stands before a ``</think>`` that was never opened, as where a chat template
    opens it.
    """

    def answer(self, text: str) -> str | None:
        text = _THOUGHT.sub("", text).rpartition("</think>")[2]
        start = text.rfind("\\boxed{")
        while start >= 0:
            depth = 0
            for i in range(start + len("\\boxed"), len(text)):
                depth += (text[i] == "{") - (text[i] == "}")
                if depth == 0:
                    if answer := text[start + len("\\boxed{") : i].strip():
                        return answer
                    break
            start = text.rfind("\\boxed{", 0, start)  # this one is empty, or still open
        return None

    def equivalent(self, first: str, second: str) -> bool:
        """The same number, or the same text up to spaces, dollar signs and a final full stop."""
        a, b = _plain(first), _plain(second)
        if a == b:
            return True
        x, y = _number(a), _number(b)
        return x is not None and x == y


def _plain(answer: str) -> str:
    return re.sub(r"\s+|\$|\\[,!;]", "", answer).rstrip(".")


_THOUSANDS = re.compile(r"(?<=\d),(?=(\d{3})+(?!\d))")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+|\d+/\d+)")


def _number(text: str) -> Fraction | None:
    """The number that `text` is: an integer, a decimal or a fraction. (No exponents: 1e999999999 fills the memory.)"""
    text = _THOUSANDS.sub("", text)
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):  # more digits than Python converts; a zero denominator
        return None
