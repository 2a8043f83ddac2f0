r"""Mathematical answers, the last \boxed{…} of a text: graded by Math-Verify, and counted together where equal."""

from __future__ import annotations

import re

from motes.errors import GraderError
from motes.tasks.boxed import BoxedAnswers, number, plain
from motes.tasks.maths.workers import Grader, shared

_WORD = re.compile(r"(\\(text|mathrm|textbf|mbox)\{)?\(?(?P<word>[A-Za-z]{3,})\)?\}?")


class MathAnswers(BoxedAnswers):
    """Answers that are mathematics, in LaTeX or plain.

    What Math-Verify (https://github.com/huggingface/Math-Verify) finds equal to the reference is right. It is asked in
    other processes, and only about what is not plain: equal texts and equal numbers are right without, different
    integers wrong.

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
        if super().equivalent(reference, answer):
            return True
        numbers = number(plain(reference)), number(plain(answer))
        if all(value is not None and value.denominator == 1 for value in numbers):
            return False
        return self.grader.verify(reference, answer)

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two answers have one canonical form, which is an equivalence relation; Math-Verify's judgement is
        none (1/3, 0.333333 and 0.3333333 pass for each other in part)."""
        return self.canonical(first) == self.canonical(second)

    def canonical(self, answer: str) -> str:
        """A name that answers of the same value share: 0.5, 1/2 and \\frac12 are "1/2".

        Numbers and words are named at once, other answers by a worker, once each: a vote over N particles asks it at
        most as often as there are different answers. What it cannot name in time is named by its text.
        """
        text = plain(answer)
        if (value := number(text)) is not None:
            return str(value)
        if word := _WORD.fullmatch(text):
            return word["word"].casefold()
        try:
            name = self.grader.canonical(answer)
        except GraderError:
            name = None
        return name or text


__all__ = ["Grader", "MathAnswers"]
