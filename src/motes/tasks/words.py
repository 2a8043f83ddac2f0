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

_STATED = re.compile(r"\banswer(?:\s+is\s*:?|\s*:)\s*(?P<answer>\S.*)", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Za-z])(?!\w)")


class ExactMatch(BoxedAnswers):
    """An answer is right where its words are the reference's, letter by letter once both are normalised."""

    def answer(self, text: str) -> str | None:
        boxed = super().answer(text)
        if boxed is None and (stated := list(_STATED.finditer(said(text)))):
            boxed = stated[-1]["answer"].strip().strip("*").strip() or None
        return boxed

    def equivalent(self, first: str, second: str) -> bool:
        """The same once normalised."""
        return self.normalized(first) == self.normalized(second)

    def normalized(self, answer: str) -> str:
        """Unicode's compatibility form (NFKC), case folded, without markup for text, quotation marks and full stops
        around it, spaces collapsed."""
        text = unicodedata.normalize("NFKC", _MARKUP.sub(r"\1", answer)).casefold()
        return " ".join(text.split()).strip("\"'“”‘’*$. ")


class Choices(ExactMatch):
    r"""An answer is the letter it begins with: B, (B), \text{B}, or "B. Wiesbaden". One that begins with a word is an
    answer, too, and wrong."""

    def normalized(self, answer: str) -> str:
        """The letter, as a capital; or else as for exact matches."""
        letter = _LETTER.match(_MARKUP.sub(r"\1", answer).strip("*$ "))
        return letter[1].upper() if letter else super().normalized(answer)
