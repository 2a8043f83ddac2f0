r"""Mathematical answers, the last \boxed{…} of a text: graded by Math-Verify, and counted together where equal."""

from __future__ import annotations

import re

from motes.errors import GraderError
from motes.tasks.boxed import BoxedAnswers
from motes.tasks.maths.cases import cases, same_cases
from motes.tasks.maths.workers import Grader, shared
from motes.tasks.numbers import is_excessive, number, plain, tidied

_WORD = re.compile(r"(\\(text|mathrm|textbf|mbox)\{)?\(?(?P<word>[A-Za-z]{3,})\)?\}?")


class MathAnswers(BoxedAnswers):
    """Answers that are mathematics, in LaTeX or plain.

    What Math-Verify (https://github.com/huggingface/Math-Verify) finds equal to the reference is right. It is asked in
    other processes, and only about what is not plain: equal texts, numbers and words are right without, different
    integers wrong. So is what is longer or more deeply nested than it could read in time (`motes.tasks.numbers`), if it
    is not the reference's own text.

    Args:
        grader: by default the one that this process shares.

    Raises:
        MissingExtraError: Math-Verify is not installed.
    """

    def __init__(self, grader: Grader | None = None) -> None:
        self.grader = grader or shared()

    def matches(self, reference: str, answer: str) -> bool:
        """Whether `answer` is right where `reference` is. Not symmetric.

        Raises:
            GraderTimeoutError: it takes too long to say.
            GraderError: the grader failed.
        """
        gold, given = tidied(reference), tidied(answer)
        if plain(gold) == plain(given):
            return True
        names = _name_at_once(gold), _name_at_once(given)
        if None not in names and names[0] == names[1]:
            return True
        numbers = number(gold), number(given)
        if all(value is not None and value.denominator == 1 for value in numbers):
            return False
        if is_excessive(gold) or is_excessive(given):
            return False
        gold_cases, given_cases = cases(gold), cases(given)
        if gold_cases is None and given_cases is None:
            return self.grader.verify(gold, given)
        return bool(gold_cases and given_cases) and same_cases(gold_cases or [], given_cases or [], self.matches)

    def canonical(self, answer: str) -> str:
        """The form that answers of the same value share: 0.5, 1/2 and \\frac12 are "1/2". To have one form is an
        equivalence relation; Math-Verify's judgement is none (1/3, 0.333333 and 0.3333333 pass for each other in part).

        Numbers and words are named at once, other answers by a worker, once each: a vote over N particles asks it at
        most as often as there are different answers. What it cannot name in time is named by its text.
        """
        text = tidied(answer)
        if name := _name_at_once(text):
            return name
        if is_excessive(text):
            return plain(text)
        if rows := cases(text):
            return f"cases {sorted([self.canonical(cell) for cell in row] for row in rows)}"
        try:
            name = self.grader.canonical(text)
        except GraderError:
            name = None
        return name or plain(text)


def _name_at_once(text: str) -> str | None:
    """The canonical form of a number or a word."""
    if (value := number(text)) is not None:
        return str(value)
    word = _WORD.fullmatch(plain(text))
    return word["word"].casefold() if word else None


__all__ = ["Grader", "MathAnswers"]
