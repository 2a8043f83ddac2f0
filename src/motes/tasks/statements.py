"""Answers that a text states in words.

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

_CLOSED = r"[*_`\"'”’)\]}】」』》]*"
_SAYS = (
    rf"(?:\s{{0,9}}{_CLOSED}\s{{0,9}}[:：=|]"
    rf"|\s{{1,9}}(?:is|would\s{{1,9}}be|must\s{{1,9}}be|should\s{{1,9}}be|will\s{{1,9}}be)\b\s{{0,9}}{_CLOSED}\s{{0,9}}[:：]?"
    rf"|(?<=案)(?:是|为|為)|(?<=[】」』])|(?<=<answer)>|(?P<heading>{_CLOSED}[ \t]{{0,9}}\n))"
)
ANSWER = re.compile(rf"(?P<cue>\banswer|答案){_CLOSED}{_SAYS}", re.IGNORECASE)
"""What an answer follows."""
CHOICE = re.compile(
    rf"(?P<cue>\banswer|答案|\b(?:correct|right|best)\s{{1,9}}(?:option|choice)){_CLOSED}{_SAYS}", re.IGNORECASE
)
"""What an answer that is one of several follows."""

_BEFORE = 90
"""Characters before a statement that may say it is none."""
_CLAUSE_ENDS = re.compile(r"[.!?;:,\n]")
_QUALIFIERS = frozenset("the their its this final correct right best true that".split())  # noqa: SIM905
_ASKING = frozenset("if whether unless what which why how".split())  # noqa: SIM905
_SUPPOSING = ("suppos", "assum", "imagin", "pretend")
_NEGATIONS = ("not", "never", "cannot")
_DENIALS = frozenset("false wrong incorrect untrue unlikely impossible doubt mistake".split())  # noqa: SIM905
_SAYING = frozenset("say claim conclude think believe".split())  # noqa: SIM905
_INTRODUCING = frozenset("that to is".split())  # noqa: SIM905
_BELIEFS = frozenset("think believe say mean claim conclude true correct certain sure clear".split())  # noqa: SIM905
_HEADING = re.compile(r"[\s#*_>【-]*(?:(?:the|final|correct)\s+)*", re.IGNORECASE)
_DECORATION = re.compile(r"[\s*_|]*")


def statements(text: str, cue: re.Pattern[str]) -> Iterator[int]:
    """Where in a text begins what it states after such a cue, the last statement first."""
    for found in reversed(list(cue.finditer(text))):
        before = text[max(0, found.start() - _BEFORE) : found.start()]
        if _is_no_statement(before) or (found["heading"] is not None and not _heads_line(before)):
            continue
        decoration = _DECORATION.match(text, found.end())
        yield decoration.end() if decoration else found.end()


def _is_no_statement(before: str) -> bool:
    """Whether the clause up to a statement makes a supposition, a question or its contrary of it."""
    clause = _CLAUSE_ENDS.split(before)[-1].casefold().replace("’", "'").split()
    words = list(clause)
    while words and words[-1] in _QUALIFIERS:
        words.pop()
    if not words:
        return False
    denied = [(no, word) for no, word in pairwise(words) if no in _NEGATIONS or no.endswith("n't")]
    return (
        words[-1] in _ASKING
        or words[-1] in _NEGATIONS
        or any(word.startswith(_SUPPOSING) for word in words)
        or ("let's" in words and words[-1] == "say")
        or any(word in _BELIEFS for _, word in denied)
        or _is_denied(clause)
        or any(pair == ("the", "case") for pair in pairwise(words) if denied)
    )


def _is_denied(words: Sequence[str]) -> bool:
    """Whether a clause ends as in "it is wrong to say that the" and "I doubt the", but not as in "there is no doubt
    that the" and "as C is wrong the"."""
    rest = list(dropwhile((_QUALIFIERS | _SAYING | _INTRODUCING).__contains__, reversed(words)))
    introduction = words[len(rest) :]
    return (
        bool(rest)
        and rest[0] in _DENIALS
        and (rest[0] == "doubt" or not _INTRODUCING.isdisjoint(introduction))
        and {"no", "without", *_NEGATIONS}.isdisjoint(rest)
    )


def _heads_line(before: str) -> bool:
    """Whether what stands before a cue leaves it a line of its own."""
    _, newline, line = before.rpartition("\n")
    return (bool(newline) or len(before) < _BEFORE) and _HEADING.fullmatch(line) is not None
