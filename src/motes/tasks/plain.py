r"""Answers in plain text, for models that box nothing: the last number, the last line, or "the answer is …".

    She sells 9 eggs at $2 each.    last number: 18       the answer is: 18 dollars
    The answer is 18 dollars.       last line: 18 dollars

Two answers are the same if they are the same number, whatever its unit, or the same words.
"""

from __future__ import annotations

import re

from motes.tasks.boxed import BoxedAnswers
from motes.tasks.characters import folded
from motes.tasks.quantities import last_numeral, numerals, quantity
from motes.tasks.tex import Reading, last_box, without_markup
from motes.tasks.words import (
    CELL_ENDS,
    CHOICE,
    CORRECTION,
    JSON_NUMBER,
    MAX_LINE,
    QUOTED,
    RETRACTION,
    TO_WHAT,
    ExactMatch,
    statements,
)
from motes.thoughts import without_thoughts

_MARKS = " \t\r\n*_`\"'$.:。："
_MATHS_MARKS = re.compile(r"\\[()\[\]]|\\(?=\$)|\\[,;:! ]")
_INTRODUCTION = re.compile(
    r"(?:(?:so|thus|therefore|hence|and)\b,?\s+)?(?:(?:the|my)\s+)?(?:(?:final|correct|right)\s+)*"
    rf"(?:answer|result|solution){TO_WHAT}[*_`]*\s*(?:(?:is|would\s+be|must\s+be)\b\s*:?|[:=])\s*(?=\S)",
    re.IGNORECASE,
)
_LEFT_SIDE = re.compile(r"(?:[A-Za-z]\s?)?=\s?(?=\S)")
_IN_BRACKETS = re.compile(r"\(([^(),;]*)\)|\[([^\[\],;]*)\]|\{([^{},;]*)\}")
"""One value in brackets. (0, 1) and [0, 1] are different."""


def bare(answer: str) -> str:
    """An answer without marks of TeX and Markdown, "the answer is" and a left side (x = 5)."""
    text = _MATHS_MARKS.sub("", without_markup(answer)).strip(_MARKS)
    text = _LEFT_SIDE.sub("", _INTRODUCTION.sub("", text, count=1), count=1).strip(_MARKS)
    brackets = _IN_BRACKETS.fullmatch(text)
    return text if brackets is None else next(filter(None, brackets.groups()), "").strip(_MARKS)


class PlainAnswers(ExactMatch):
    """Answers that are the same if they are one number, or if they are the same words (see `ExactMatch`).

    A number may have marks between its thousands, and a currency or a unit, which does not count: "1,000", "1000.0",
    "$1,000" and "1000 dollars" are the same, and so are "5 km" and "5 miles". Expressions such as 2x + 3 are words.
    """

    def canonical(self, answer: str) -> str:
        """The number's exact value; for any other answer its words."""
        if len(answer) > MAX_LINE:
            return super().canonical(answer)
        text = bare(answer)
        value = quantity(folded(text))
        return super().canonical(text) if value is None else str(value)


class LastNumber(PlainAnswers):
    """The answer is the last number of the text without thoughts, once the model has ended it (see
    `motes.tasks.quantities`). Expressions are not computed. A reference answer may have words around its number."""

    needs_end = True
    is_quick = True

    def answer(self, text: str) -> str | None:
        number = last_numeral(without_thoughts(text))
        return None if number is None else number.text

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()

    def canonical(self, answer: str) -> str:
        """The value of the only number in the answer; the words of any other."""
        numbers = list(numerals(folded(answer))) if len(answer) <= MAX_LINE else []
        return str(numbers[0].value) if len(numbers) == 1 else super().canonical(answer)


_NO_LINE = re.compile(r"[`~]{3,}\w*|[-*_=]{3,}|\$\$|\\[\])]|\\end\{\w+\*?\}|</?[A-Za-z][\w-]*>|[\s*_`]*")
"""Lines that are marks: the ends of code and of formulas, rules, tags."""
_LINE_MARKS = re.compile(r"(?:[>#]+\s+|[-*+•]\s+)*")


class LastLine(PlainAnswers):
    """The answer is the last line of the text without thoughts, once the model has ended it: without marks of Markdown
    and without "the answer is"; if the line has a box, its content. Blank lines, rules, and the ends of code and of
    formulas are no lines. A line has at most 4,000 characters; the rest is left out."""

    needs_end = True
    is_quick = True

    def answer(self, text: str) -> str | None:
        text = without_thoughts(text).rstrip()
        end = len(text)
        while end > 0:
            start = text.rfind("\n", 0, end) + 1
            if line := _content(text[start : min(end, start + MAX_LINE)]):
                return line
            end = start - 1
        return None

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()


def _content(line: str) -> str:
    """The content of a line; empty if it consists of marks."""
    line = line.strip()
    if _NO_LINE.fullmatch(line):
        return ""
    if boxed := last_box(line):
        return boxed
    marks = _LINE_MARKS.match(line)
    line = line[marks.end() :].strip(" *_`") if marks else line
    return _INTRODUCTION.sub("", line, count=1).strip(" *_`") if _INTRODUCTION.match(line) else line


_CUE = re.compile(
    rf"{CHOICE.pattern}"
    r"|^[ \t]*####[ \t]*+(?=\**+[-+]?\\?[$€£¥₹]?\d[\d,]*+(?:\.\d++)?+"
    r"(?:[ \t]?(?:[^\W\d_]++|[%°€£¥₹])){0,3}+\.?\**+[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
"""The words before an answer, or the four number signs of GSM8K's solutions before a number."""
_LEAD = re.compile(
    r"(?:(?:therefore|thus|hence|then|simply|indeed|just|clearly|probably|most\s+likely|likely|definitely|equal\s+to"
    r"|as\s+follows|given\s+by|(?:exactly|precisely|approximately|roughly|about|around)(?=[\s*_]+[-+]?\\?[$€£¥₹]?\.?\d))"
    r"\b[,:]?[\s*_]*)+",
    re.IGNORECASE,
)
_DENIAL = re.compile(r"(?:not|never|neither)\b", re.IGNORECASE)
_DISPLAY = re.compile(r"(?:\\\[|\$\$)(?P<formula>.*?)(?:\\\]|\$\$)", re.DOTALL)
_END = re.compile(
    r"(?P<mark>[.!?](?=[\"'”’)*_`]*\s)|[。！])|;\s|\s[—–]\s|\s\((?:because|since|as|not)\b"
    r"|,?\s{1,9}(?:because|since|which|whereas|according\s{1,9}to|due\s{1,9}to|based\s{1,9}on|given\s{1,9}that"
    r"|rather\s{1,9}than|instead\s{1,9}of|as\s{1,9}(?:it|the|this|that|we))\b"
    r"|,\s{1,9}(?:so|as|where|not|and\s{1,9}(?:so|not))\b",
    re.IGNORECASE,
)
"""What may end an answer within a line: the end of the sentence, a reason, or what the answer is not."""
_ABBREVIATIONS = frozenset("st mt mr mrs ms dr prof sr jr vs approx ca fig eq vol ft inc ltd co corp".split())  # noqa: SIM905
_BEGINNINGS = frozenset(
    "the it this that these those he she we they you i a an so therefore thus hence because since in if there "  # noqa: SIM905
    "to as for and but note let".split()
)
"""Words that begin sentences."""
_NEAR = 60
"""Number of characters around a full stop that decide whether it ends a sentence."""
_EDGES = ' \t*_`"“”'
_WORD_BEFORE = re.compile(r"(?<!\w)[\w.]*\Z")


class AnswerIs(PlainAnswers):
    r"""The answer is what the text states in words: "the answer is 42", "Answer: 42", "**Final answer**" above a line,
    "#### 42" and the like, see `motes.tasks.words`. It ends with its sentence or line, or before a reason. The last
    statement counts. A box counts first, and is final."""

    is_quick = True

    def answer(self, text: str) -> str | None:
        return BoxedAnswers.answer(self, text) or _last_statement(without_thoughts(text))

    def answer_when_cut(self, text: str) -> str | None:
        if boxed := BoxedAnswers.answer_when_cut(self, text):
            return boxed
        text = without_thoughts(text)
        line = text.rfind("\n") + 1
        ends = _END.finditer(text, max(line, len(text) - MAX_LINE))
        complete = [end.end() for end in ends if end["mark"] and _ends_sentence(text, end.start())]
        return _last_statement(text[: max(complete, default=line)])


def _last_statement(text: str) -> str | None:
    stated = (_stated(text[start : start + MAX_LINE]) for start in statements(text, _CUE))
    return next(filter(None, stated), None)


def _stated(text: str) -> str:
    """The answer that a text begins with; empty if that is a question, or is taken back."""
    if lead := _LEAD.match(text):
        text = text[lead.end() :]
    if correction := CORRECTION.match(text):
        text = text[correction.end() :]
    elif _DENIAL.match(text):
        return ""
    if quoted := QUOTED.match(text):
        return quoted["inside"].strip()
    if number := JSON_NUMBER.match(text):
        return number[0]
    if display := _DISPLAY.match(text):
        return display["formula"].strip()
    line = text[: end.start()] if (end := CELL_ENDS.search(text)) else text
    for end in _END.finditer(line):
        if end["mark"] is None or _ends_sentence(line, end.start()):
            break
    else:
        end = None
    answer = line if end is None else line[: end.start()]
    rest = text[len(answer) :]
    if rest.startswith("?") or answer.endswith("?") or RETRACTION.match(rest):
        return ""
    return answer.strip(_EDGES).rstrip(".!: ").rstrip(_EDGES)


def _ends_sentence(text: str, place: int) -> bool:
    """Whether the full stop, or the other mark, at a place of a text ends a sentence, and not an abbreviation."""
    before, after = text[max(0, place - _NEAR) : place], text[place + 1 : place + _NEAR].lstrip("\"'”’)*_` \t")
    if text[place] != "." or not after:
        return True
    word = _WORD_BEFORE.search(before)
    name = (word[0] if word else "").casefold()
    if name in _ABBREVIATIONS or after[0].islower() or (name == "no" and after[0].isdigit()):
        return False
    if len(name) == 1 and name.isalpha():  # an initial, or the letter of a choice
        next_word = re.split(r"\W", after, maxsplit=1)[0].casefold()
        is_initial = re.match(r"[A-Z]\.\s", after) or (before.strip() != word[0] and next_word not in _BEGINNINGS)  # type: ignore[index]
        return not is_initial
    return True
