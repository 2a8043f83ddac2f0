r"""Answers that are no mathematics: a letter out of several, or a few words.

    The capital of Hesse is Wiesbaden. The answer is (B).
    It lies on the Rhine. Answer: Wiesbaden
    \boxed{Wiesbaden}

What is boxed counts first, as everywhere; where nothing is, what follows the last "answer is" or "answer:".
"""

from __future__ import annotations

import re
import unicodedata

from motes.tasks.boxed import BoxedAnswers, said

_STATES = r"(?s:.*)\b[Aa]nswer(?:\s+is\s*:?|\s*:)[\s*]*"
_WORDS = re.compile(_STATES + r"([^\n]*)")
_CHOICE = re.compile(_STATES + r"\(?([A-Z])(?!\w)")
_LETTER = re.compile(r"\(?([A-Za-z])(?!\w)")
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")


class ExactMatch(BoxedAnswers):
    """An answer is right where its words are the reference's, letter by letter once both are normalised."""

    def answer(self, text: str) -> str | None:
        return super().answer(text) or _last(_WORDS, text)

    def equivalent(self, first: str, second: str) -> bool:
        """The same once normalised."""
        return self.normalized(first) == self.normalized(second)

    def normalized(self, answer: str) -> str:
        """Unicode's compatibility form (NFKC), case folded, without markup for text, quotation marks and full stops
        around it, spaces collapsed."""
        text = unicodedata.normalize("NFKC", _MARKUP.sub(r"\1", answer)).casefold()
        return " ".join(text.split()).strip("\"'“”‘’*$. ")


class Choices(ExactMatch):
    r"""An answer is the letter it begins with: B, (B), \text{B}, or "B. Wiesbaden". What is boxed and begins with a
    word is an answer, too, and wrong."""

    def answer(self, text: str) -> str | None:
        return BoxedAnswers.answer(self, text) or _last(_CHOICE, text)

    def normalized(self, answer: str) -> str:
        """The letter, as a capital; or else as for exact matches."""
        letter = _LETTER.match(_MARKUP.sub(r"\1", answer).strip("*$ "))
        return letter[1].upper() if letter else super().normalized(answer)


def _last(stated: re.Pattern[str], text: str) -> str | None:
    found = stated.match(said(text))
    return (found[1].rstrip("* ") or None) if found else None
