r"""Answers that are no mathematics: one of several letters, or a few words.

    The capital of Hesse is Wiesbaden. The answer is (B).
    It lies on the Rhine. Answer: Wiesbaden
    \boxed{Wiesbaden}

A box counts first, as everywhere, and is final. Without a box, the last statement of the whole text counts:

    The answer is (B).    ANSWER: B    **Answer**: b    So the correct option is B.    答案：B
    {"answer": "B"}    | Answer | B |    <answer>B</answer>

    Final Answer

    B

"Suppose the answer is A", "whether the answer is A", "I do not think the answer is A" and "it is wrong that the answer
is A" state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile, pairwise

from motes.tasks.boxed import BoxedAnswers
from motes.tasks.characters import folded
from motes.tasks.tex import Reading, without_markup
from motes.thoughts import without_thoughts

_CLOSING_MARKS = r"[*_`\"'”’)\]}】」』》]*"
_VERB = (
    rf"(?:\s{{0,9}}{_CLOSING_MARKS}\s{{0,9}}[:：=|]"
    rf"|\s{{1,9}}(?:is|would\s{{1,9}}be|must\s{{1,9}}be|should\s{{1,9}}be|will\s{{1,9}}be)\b\s{{0,9}}{_CLOSING_MARKS}\s{{0,9}}[:：]?"
    rf"|(?<=案)(?:是|为|為)\s{{0,9}}[:：]?|(?<=[】」』])|(?<=<answer)>|(?P<heading>{_CLOSING_MARKS}[ \t]{{0,9}}\n))"
)
TO_WHAT = (
    r"(?:\s{1,9}to\s{1,9}(?:the|this|that|your|our)\s{1,9}(?:[a-z]{1,20}\s{1,9})?"
    r"(?:question|problem|puzzle|riddle|exercise|task|equation)\b)?"
)
_CUE = rf"(?<![^\W_])answer{TO_WHAT}|答案"
ANSWER = re.compile(rf"(?:{_CUE}){_CLOSING_MARKS}{_VERB}", re.IGNORECASE)
"""The words before an answer."""
CHOICE = re.compile(
    rf"(?:{_CUE}|\b(?:correct|right|best)\s{{1,9}}(?:option|choice)){_CLOSING_MARKS}{_VERB}", re.IGNORECASE
)
"""The words before an answer that is one of several choices."""

MAX_STATEMENTS = 1000
"""Number of statements at the end of a text that are looked at. A text with more of them is a model's loop."""
_LOOKBACK = 90
"""Number of characters before a statement that may show that it is none."""
_CLAUSE_ENDS = re.compile(r"[.!?;:,\n]")
_QUALIFIERS = frozenset("the their its this final correct right best true that".split())  # noqa: SIM905
_QUESTION_WORDS = frozenset("if whether unless what which why how".split())  # noqa: SIM905
_SUPPOSITIONS = ("suppos", "assum", "imagin", "pretend")
_NEGATIONS = ("not", "never", "cannot")
_DENIALS = frozenset("false wrong incorrect untrue unlikely impossible doubt mistake".split())  # noqa: SIM905
_VERBS_OF_SAYING = frozenset("say claim conclude think believe".split())  # noqa: SIM905
_INTRODUCTIONS = frozenset("that to is".split())  # noqa: SIM905
_BELIEFS = frozenset("think believe say mean claim conclude true correct certain sure clear".split())  # noqa: SIM905
_HEADING = re.compile(r"[\s#*_>【-]*(?:(?:the|final|correct)\s+)*", re.IGNORECASE)
_DECORATION = re.compile(r"[\s*_|]*")
_LIST_MARK = re.compile(r"[-•]\s[\s*_]*")


def statements(text: str, cue: re.Pattern[str]) -> Iterator[int]:
    """The places in a text at which the answers after such a cue begin, the last statement first."""
    for match in reversed(list(cue.finditer(text))[-MAX_STATEMENTS:]):
        before = text[max(0, match.start() - _LOOKBACK) : match.start()]
        if _is_no_statement(before) or (match["heading"] is not None and not _is_own_line(before)):
            continue
        place = _end_of(_DECORATION, text, match.end())
        yield _end_of(_LIST_MARK, text, place) if "\n" in text[match.start() : place] else place


def _end_of(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of what a pattern matches at a place of a text; the place itself if it does not match."""
    match = pattern.match(text, place)
    return place if match is None else match.end()


def _is_no_statement(before: str) -> bool:
    """Whether the clause before a statement turns it into a supposition, a question or its contrary."""
    clause = _CLAUSE_ENDS.split(before)[-1].casefold().replace("’", "'").split()
    words = list(clause)
    while words and words[-1] in _QUALIFIERS:
        words.pop()
    if not words:
        return False
    negated = [word for no, word in pairwise(words) if no in _NEGATIONS or no.endswith("n't")]
    return (
        words[-1] in _QUESTION_WORDS
        or words[-1] in _NEGATIONS
        or any(word.startswith(_SUPPOSITIONS) for word in words)
        or ("let's" in words and words[-1] == "say")
        or any(word in _BELIEFS for word in negated)
        or _is_denied(clause)
        or any(pair == ("the", "case") for pair in pairwise(words) if negated)
    )


def _is_denied(words: Sequence[str]) -> bool:
    """Whether a clause ends like "it is wrong to say that the" or "I doubt the", and not like "there is no doubt that
    the" or "as C is wrong the"."""
    rest = list(dropwhile((_QUALIFIERS | _VERBS_OF_SAYING | _INTRODUCTIONS).__contains__, reversed(words)))
    introduction = words[len(rest) :]
    return (
        bool(rest)
        and rest[0] in _DENIALS
        and (rest[0] == "doubt" or not _INTRODUCTIONS.isdisjoint(introduction))
        and {"no", "without", *_NEGATIONS}.isdisjoint(rest)
    )


def _is_own_line(before: str) -> bool:
    """Whether a cue has a line of its own, according to the text before it."""
    _, newline, line = before.rpartition("\n")
    return (bool(newline) or len(before) < _LOOKBACK) and _HEADING.fullmatch(line) is not None


class ExactMatch(BoxedAnswers):
    """An answer is right if its words are the reference's, letter by letter after both are normalised."""

    def answer(self, text: str) -> str | None:
        if boxed := super().answer(text):
            return boxed
        text = without_thoughts(text)
        lines = (_answer_at_start(text[start : start + MAX_LINE]) for start in statements(text, ANSWER))
        return next(filter(None, lines), None)

    def answer_when_cut(self, text: str) -> str | None:
        return BoxedAnswers.answer_when_cut(self, text) or self.answer(text[: text.rfind("\n") + 1])

    def canonical(self, answer: str) -> str:
        """The answer in Unicode's compatibility form (NFKC), except super- and subscripts and fractions; case folded,
        spaces collapsed, without invisible characters, markup for text, and quotation marks and full stops around it.
        """
        text = folded(folded(without_markup(answer)).casefold())
        return " ".join(text.split()).strip("\"'*_`$.。 ")


MAX_LINE = 4000
"""Maximum length of an answer in words."""
QUOTED = re.compile(r"([\"'`])(?P<inside>(?:(?!\1)[^\n])*)\1(?=\s*(?:[,.;}|]|\Z))")
JSON_NUMBER = re.compile(r"[-+]?\d[\d.eE+-]*(?=\s*(?:\}|,\s*\"))")
CELL_ENDS = re.compile(r"\s*(?:\||</answer>|\n|\Z)", re.IGNORECASE)


def _answer_at_start(text: str) -> str:
    """The answer that a text begins with: up to the end of the line, the quotation, the table's cell or the tag."""
    if quoted := QUOTED.match(text):
        return quoted["inside"].strip()
    if number := JSON_NUMBER.match(text):
        return number[0]
    if end := CELL_ENDS.search(text):
        text = text[: end.start()]
    return text.rstrip("* ")


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
            start = _end_of(CORRECTION, text, start)
            if labels := _labels(text[start : start + _MAX_CHARACTERS].partition("\n")[0], is_statement=True):
                return ", ".join(labels)
        if len(text) <= _MAX_CHARACTERS and (match := _ONLY_LABEL.fullmatch(_without_decoration(text))):
            return match["label"].upper()
        return None

    def answer_when_cut(self, text: str) -> str | None:
        end = len(text)
        while end and text[end - 1].isalnum():  # "B" may become "Bonn"
            end -= 1
        return BoxedAnswers.answer_when_cut(self, text) or self.answer(text[:end])

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
RETRACTION = re.compile(
    r"[\s.,;:!)]{0,3}(?:but\s+)?(?:which|that|this|it)?(?:'s|\s*\b(?:is|was))\s+(?:[a-z]+ly\s+)?"
    r"(?:wrong|false|incorrect|impossible|not\s+(?:right|correct|true|possible))\b",
    re.IGNORECASE,
)
_SHORT = r"[*_]*(?:\\?[$€£¥₹]?[-+−]?\.?\d\S{0,20}|\(?[A-Z]\)?[*_]*)"
CORRECTION = re.compile(rf"not\s{{1,9}}{_SHORT},?\s{{1,9}}but\s{{1,9}}(?:rather\s{{1,9}})?(?={_SHORT})")
"""Words before a number or a letter that stands in the place of another one: "not 5 but" 6."""
_ONE_LETTER_WORDS = ("A", "I")
"""Letters that begin a sentence as words."""


_MARKS = re.compile(r"\\[ ,;:!]|~|[*_`\"]|(?<!\w)'|'(?!\w)")
"""Characters that may stand around a letter: TeX's spaces, Markdown's marks, quotation marks."""


def _without_decoration(text: str) -> str:
    text = folded(without_markup(re.sub(r"\\?\$|\\[()\[\]]", "", text)))
    return " ".join(_MARKS.sub(" ", text).split())


def _labels(answer: str, *, is_statement: bool = False) -> list[str]:
    """The letters and numbers that an answer begins with; none if it begins with anything else. In a statement, a part
    of a text, "A or B", "A?" and "A. That is wrong." are no decision."""
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
        if rest.lstrip().startswith("?") or RETRACTION.match(rest):
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
