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
        text = said(text)
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
        a, b = plain(first), plain(second)
        if a == b:
            return True
        x, y = number(a), number(b)
        return x is not None and x == y

    def matches(self, reference: str, answer: str) -> bool:
        """Whether `answer` is right where `reference` is."""
        return self.equivalent(reference, answer)


def said(text: str) -> str:
    """A text without what is thought."""
    return _THOUGHT.sub("", text).rpartition("</think>")[2]


_BLANK = re.compile(r"(?<!\d)\s+|\s+(?!\d+\s*/)|\\?\$|\\[,!;]")  # but for the space in 1 1/2


def plain(answer: str) -> str:
    """An answer without spaces, dollar signs and a final full stop."""
    return _BLANK.sub("", answer).rstrip(".")


_THOUSANDS = re.compile(r"(?<=\d),(?=(\d{3})+(?!\d))")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d+)?|\.\d+|\d+/\d+)")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")


def number(text: str) -> Fraction | None:
    """The number that a plain text is: an integer, a decimal or a fraction, one of LaTeX's too. (No exponents:
    1e999999999 fills the memory.)"""
    if fraction := _FRACTION.fullmatch(text):
        text = "{}{}/{}".format(*fraction.groups())
    text = _THOUSANDS.sub("", text)
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):  # more digits than Python converts; a zero denominator
        return None
