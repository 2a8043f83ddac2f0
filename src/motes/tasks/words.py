r"""Answers that are no mathematics: one of several letters, or a few words.

    The capital of Hesse is Wiesbaden. The answer is (B).
    It lies on the Rhine. Answer: Wiesbaden
    \boxed{Wiesbaden}

A box counts first, as everywhere, and is final; without a box, the last statement of the whole text counts, see
`motes.tasks.statements`.
"""

from __future__ import annotations

import re

from motes.tasks.boxed import BoxedAnswers
from motes.tasks.characters import folded
from motes.tasks.statements import ANSWER, CHOICE, statements
from motes.tasks.tex import Reading, without_markup, without_thoughts


class ExactMatch(BoxedAnswers):
    """An answer is right if its words are the reference's, letter by letter after both are normalised."""

    def answer(self, text: str) -> str | None:
        if boxed := super().answer(text):
            return boxed
        text = without_thoughts(text)
        lines = (_answer_at_start(text[start : start + _MAX_LINE]) for start in statements(text, ANSWER))
        return next(filter(None, lines), None)

    def canonical(self, answer: str) -> str:
        """The answer in Unicode's compatibility form (NFKC), except super- and subscripts and fractions; case folded,
        spaces collapsed, without invisible characters, markup for text, and quotation marks and full stops around it.
        """
        text = folded(folded(without_markup(answer)).casefold())
        return " ".join(text.split()).strip("\"'*_`$. ")


_MAX_LINE = 4000
"""Maximum length of an answer in words."""
_QUOTED = re.compile(r"([\"'`])(?P<inside>(?:(?!\1)[^\n])*)\1(?=\s*(?:[,.;}|]|\Z))")
_CELL_ENDS = re.compile(r"\s*(?:\||</answer>|\n|\Z)", re.IGNORECASE)


def _answer_at_start(text: str) -> str:
    """The answer that a text begins with: up to the end of the line, the quotation, the table's cell or the tag."""
    if quoted := _QUOTED.match(text):
        return quoted["inside"].strip()
    return text[: end.start() if (end := _CELL_ENDS.search(text)) else None].rstrip("* ")


class WholeText(ExactMatch):
    """The answer is the whole text without thoughts, once the model has ended it: nothing in it is final before."""

    needs_end = True

    def answer(self, text: str) -> str | None:
        return without_thoughts(text).strip() or None

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()


class Choices(ExactMatch):
    r"""An answer is the letter or number that it begins with: B, (B), \text{B}, "B. Wiesbaden", "option B", 2, "(2)".
    Several of them are an answer, too ("A and B"), and so is a box that begins with a word: both are wrong if the
    reference is one letter. A text that is nothing but a letter or number states it."""

    def answer(self, text: str) -> str | None:
        if boxed := BoxedAnswers.answer(self, text):
            return boxed
        text = without_thoughts(text)
        for start in statements(text, CHOICE):
            if labels := _labels(text[start : start + _MAX_CHARACTERS].partition("\n")[0], is_statement=True):
                return ", ".join(labels)
        if len(text) <= _MAX_CHARACTERS and (match := _ONLY_LABEL.fullmatch(_without_decoration(text))):
            return match["label"].upper()
        return None

    def canonical(self, answer: str) -> str:
        """The letters or numbers, in capitals and in order; without any, the same as for exact matches."""
        labels = _labels(answer[:_MAX_CHARACTERS])
        return ", ".join(sorted(labels)) if labels else super().canonical(answer)


_MAX_CHARACTERS = 100
"""Number of characters at the beginning of an answer in which its letter is searched."""
_LABEL = r"(?:(?P<opens>[(\[{<【「])\s*)?(?P<label>[A-Za-z]|[ivx]{2,4}|\d{1,2})(?!\w)(?P<closes>\s*[)\]}>】」])?"
_ONLY_LABEL = re.compile(rf"(?:(?:option|choice|answer)\s+)?{_LABEL}\s?[.。]?", re.IGNORECASE)
_FIRST = re.compile(
    r"(?:(?:both|either|the|correct|right|best|final|answer|option|choice|letter|alternative|number|is|most|likely"
    r"|therefore|thus|indeed|hence|then|[a-z]+ly),?(?:\s?[:=])?\s|(?:answer|option|choice)\s?[:=]\s?)*+" + _LABEL,
    re.IGNORECASE,
)
_NEXT = re.compile(
    rf"\s*(?P<between>,\s*(?:and|or)\b|[,;&/]|\band/or\b|\band\b|\bor\b)\s*(?:(?:option|choice)\s+)?{_LABEL}",
    re.IGNORECASE,
)
_END = re.compile(r"\s*(?:\Z|[.,;:!。、，；：](?!\w)|[-—](?=\s)|\||</)")
_REASON = re.compile(
    r"\s+(?:because|since|as|for|due|given|which|where|in|by|based|from|with|according|after|when|if|on)\b",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"[\s.,;:!)]{0,3}(?:but\s+)?(?:which|that|this|it)?(?:'s|\s*\b(?:is|was))\s+(?:[a-z]+ly\s+)?"
    r"(?:wrong|false|incorrect|impossible|not\s+(?:right|correct|true|possible))\b",
    re.IGNORECASE,
)
_ONE_LETTER_WORDS = ("A", "I")
"""Letters that begin a sentence as words."""


_MARKS = re.compile(r"\\[ ,;:!]|~|[*_`\"]|(?<!\w)'|'(?!\w)")
"""Characters that may stand around a letter: TeX's spaces, Markdown's marks, quotation marks."""


def _without_decoration(text: str) -> str:
    text = folded(without_markup(re.sub(r"\\?\$|\\[()\[\]]", "", text)))
    return " ".join(_MARKS.sub(" ", text).split())


def _labels(answer: str, *, is_statement: bool = False) -> list[str]:
    """The letters and numbers that an answer begins with; none if it begins with anything else.

    Args:
        is_statement: whether it is part of a text, in which "A or B", "A?" and "A. That is wrong." are no decision.
    """
    text = _without_decoration(answer)
    labels: list[str] = []
    match = _FIRST.match(text)
    while match and _names_choice(match, text):
        labels.append(match["label"].upper())
        last, match = match, _NEXT.match(text, match.end())
        is_undecided = match and match["between"].casefold().endswith("or")
        if match and is_undecided and _names_choice(match, text):
            return []
    if labels and is_statement:
        rest = text[last.end() :]
        if rest.lstrip().startswith("?") or _RETRACTION.match(rest):
            return []
    return labels


def _names_choice(match: re.Match[str], text: str) -> bool:
    """Whether a letter or number is the name of a choice, and not a word, a quantity or a part of a formula."""
    label, end = match["label"], match.end()
    if match["opens"] and match["closes"]:
        return True
    if _END.match(text, end) or _NEXT.match(text, end) or text[end:].lstrip().startswith("?"):
        return True
    if match["closes"]:  # B) Wiesbaden
        return text[end : end + 1].isspace()
    if _REASON.match(text, end):
        return True
    return label.isupper() and label not in _ONE_LETTER_WORDS and re.match(r"\s+[^\W\d_]", text[end:]) is not None
