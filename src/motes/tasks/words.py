r"""Answers that are no mathematics: a letter out of several, or a few words.

    The capital of Hesse is Wiesbaden. The answer is (B).
    It lies on the Rhine. Answer: Wiesbaden
    \boxed{Wiesbaden}

What is boxed counts first, as everywhere, and is final; where nothing is, the last statement that the whole text makes,
see `motes.tasks.statements`.
"""

from __future__ import annotations

import re

from motes.tasks.boxed import BoxedAnswers
from motes.tasks.characters import folded
from motes.tasks.statements import ANSWER, CHOICE, statements
from motes.tasks.tex import Reading, without_markup
from motes.tasks.thoughts import without_thoughts


class ExactMatch(BoxedAnswers):
    """An answer is right where its words are the reference's, letter by letter once both are normalised."""

    def answer(self, text: str) -> str | None:
        if boxed := super().answer(text):
            return boxed
        text = without_thoughts(text)
        lines = (_stated(text[start : start + _LONGEST_LINE]) for start in statements(text, ANSWER))
        return next(filter(None, lines), None)

    def canonical(self, answer: str) -> str:
        """Unicode's compatibility form (NFKC) but for raised and lowered digits and fractions, case folded, without
        characters that nobody sees, markup for text, quotation marks and full stops around it, spaces collapsed."""
        text = folded(folded(without_markup(answer)).casefold())
        return " ".join(text.split()).strip("\"'*_`$. ")


_LONGEST_LINE = 4000
"""Characters of an answer in words."""
_QUOTED = re.compile(r"([\"'`])(?P<inside>(?:(?!\1)[^\n])*)\1(?=\s*(?:[,.;}|]|\Z))")
_CELL_ENDS = re.compile(r"\s*(?:\||</answer>|\n|\Z)", re.IGNORECASE)


def _stated(text: str) -> str:
    """The answer that a text begins with: up to the end of the line, of its quotation marks, its table's cell, or its
    tag."""
    if quoted := _QUOTED.match(text):
        return quoted["inside"].strip()
    return text[: end.start() if (end := _CELL_ENDS.search(text)) else None].rstrip("* ")


class WholeText(ExactMatch):
    """The answer is the whole text, thoughts left out, once the model has ended it: nothing in it is final before."""

    needs_end = True

    def answer(self, text: str) -> str | None:
        return without_thoughts(text).strip() or None

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()


class Choices(ExactMatch):
    r"""An answer is the letter or number that it begins with: B, (B), \text{B}, "B. Wiesbaden", "option B", 2, "(2)".
    Several of them are an answer, too ("A and B"), and so is what is boxed and begins with a word: both are wrong where
    the reference is one letter. A text that is nothing but a letter or number states it."""

    def answer(self, text: str) -> str | None:
        if boxed := BoxedAnswers.answer(self, text):
            return boxed
        text = without_thoughts(text)
        for start in statements(text, CHOICE):
            if stated := _labels(text[start : start + _MOST_CHARACTERS].partition("\n")[0], is_statement=True):
                return ", ".join(stated)
        if len(text) <= _MOST_CHARACTERS and (alone := _ALONE.fullmatch(_undecorated(text))):
            return alone["label"].upper()
        return None

    def canonical(self, answer: str) -> str:
        """The letters or numbers, capital, in order; or else as for exact matches."""
        labels = _labels(answer[:_MOST_CHARACTERS])
        return ", ".join(sorted(labels)) if labels else super().canonical(answer)


_MOST_CHARACTERS = 100
"""Of an answer, as far as its letter is looked for."""
_LABEL = r"(?:(?P<opens>[(\[{<【「])\s*)?(?P<label>[A-Za-z]|[ivx]{2,4}|\d{1,2})(?!\w)(?P<closes>\s*[)\]}>】」])?"
_ALONE = re.compile(rf"(?:(?:option|choice|answer)\s+)?{_LABEL}\s?[.。]?", re.IGNORECASE)
_FIRST = re.compile(
    r"(?:(?:both|either|the|correct|right|best|final|answer|option|choice|letter|alternative|number|is|most|likely"
    r"|therefore|thus|indeed|hence|then|[a-z]+ly),?(?:\s?[:=])?\s|(?:answer|option|choice)\s?[:=]\s?)*+" + _LABEL,
    re.IGNORECASE,
)
_NEXT = re.compile(
    rf"\s*(?P<between>,\s*(?:and|or)\b|[,;&/]|\band/or\b|\band\b|\bor\b)\s*(?:(?:option|choice)\s+)?{_LABEL}",
    re.IGNORECASE,
)
_ENDS = re.compile(r"\s*(?:\Z|[.,;:!。、，；：](?!\w)|[-—](?=\s)|\||</)")
_REASON = re.compile(
    r"\s+(?:because|since|as|for|due|given|which|where|in|by|based|from|with|according|after|when|if|on)\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"[\s.,;:!)]{0,3}(?:but\s+)?(?:which|that|this|it)?(?:'s|\s*\b(?:is|was))\s+(?:[a-z]+ly\s+)?"
    r"(?:wrong|false|incorrect|impossible|not\s+(?:right|correct|true|possible))\b",
    re.IGNORECASE,
)
_WORDS_THEMSELVES = ("A", "I")
"""Letters that begin a sentence as words."""


_MARKS = re.compile(r"\\[ ,;:!]|~|[*_`\"]|(?<!\w)'|'(?!\w)")
"""What may stand around a letter: spaces of TeX, marks of Markdown, quotation marks."""


def _undecorated(text: str) -> str:
    text = folded(without_markup(re.sub(r"\\?\$|\\[()\[\]]", "", text)))
    return " ".join(_MARKS.sub(" ", text).split())


def _labels(answer: str, *, is_statement: bool = False) -> list[str]:
    """The letters and numbers that an answer begins with; none where it begins otherwise.

    Args:
        is_statement: it is part of a text, where "A or B", "A?" and "A. That is wrong." are no decision.
    """
    text = _undecorated(answer)
    labels: list[str] = []
    found = _FIRST.match(text)
    while found and _stands_alone(found, text):
        labels.append(found["label"].upper())
        last, found = found, _NEXT.match(text, found.end())
        undecided = found and found["between"].casefold().endswith("or")
        if found and undecided and _stands_alone(found, text):
            return []
    if labels and is_statement:
        behind = text[last.end() :]
        if behind.lstrip().startswith("?") or _TAKEN_BACK.match(behind):
            return []
    return labels


def _stands_alone(found: re.Match[str], text: str) -> bool:
    """Whether a letter or number is the name of a choice rather than a word, a quantity or a part of a formula."""
    label, end = found["label"], found.end()
    if found["opens"] and found["closes"]:
        return True
    if _ENDS.match(text, end) or _NEXT.match(text, end) or text[end:].lstrip().startswith("?"):
        return True
    if found["closes"]:  # B) Wiesbaden
        return text[end : end + 1].isspace()
    if _REASON.match(text, end):
        return True
    return label.isupper() and label not in _WORDS_THEMSELVES and re.match(r"\s+[^\W\d_]", text[end:]) is not None
