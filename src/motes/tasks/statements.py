"""Finds the answers that a text states in words.

    The answer is (B).    ANSWER: B    **Answer**: b    So the correct option is B.    答案：B
    {"answer": "B"}    | Answer | B |    <answer>B</answer>

    Final Answer

    B

The last statement counts. "Suppose the answer is A", "whether the answer is A", "I do not think the answer is A" and
"it is wrong that the answer is A" state nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile, pairwise

_CLOSING_MARKS = r"[*_`\"'”’)\]}】」』》]*"
_VERB = (
    rf"(?:\s{{0,9}}{_CLOSING_MARKS}\s{{0,9}}[:：=|]"
    rf"|\s{{1,9}}(?:is|would\s{{1,9}}be|must\s{{1,9}}be|should\s{{1,9}}be|will\s{{1,9}}be)\b\s{{0,9}}{_CLOSING_MARKS}\s{{0,9}}[:：]?"
    rf"|(?<=案)(?:是|为|為)|(?<=[】」』])|(?<=<answer)>|(?P<heading>{_CLOSING_MARKS}[ \t]{{0,9}}\n))"
)
ANSWER = re.compile(rf"(?P<cue>\banswer|答案){_CLOSING_MARKS}{_VERB}", re.IGNORECASE)
"""The words before an answer."""
CHOICE = re.compile(
    rf"(?P<cue>\banswer|答案|\b(?:correct|right|best)\s{{1,9}}(?:option|choice)){_CLOSING_MARKS}{_VERB}", re.IGNORECASE
)
"""The words before an answer that is one of several choices."""

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


def statements(text: str, cue: re.Pattern[str]) -> Iterator[int]:
    """The places in a text at which the answers after such a cue begin, the last statement first."""
    for match in reversed(list(cue.finditer(text))):
        before = text[max(0, match.start() - _LOOKBACK) : match.start()]
        if _is_no_statement(before) or (match["heading"] is not None and not _is_own_line(before)):
            continue
        decoration = _DECORATION.match(text, match.end())
        yield decoration.end() if decoration else match.end()


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
