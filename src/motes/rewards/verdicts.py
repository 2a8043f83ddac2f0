"""The verdict in a whole reply, read where it was asked for.

A judge was asked to reply with one line, or to end with one, that says a cue and a verdict. It may quote the same words
out of what it judges, and it may think aloud before. So a verdict counts only where the judge states it:

    after its thoughts      what stands between <think> and </think> is no reply
    on the last line        or on the first, where reasons follow and no other line states a verdict
    at a sentence's start   behind the cue at once, outside quotation marks, and with no word behind it: "No errors" is
                            no "No", "4.5" no 4, "Yes/No" neither, "4/10" no 4 of 5

Where statements on that line differ, it states none. The time that it takes is linear in the reply's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_CLOSING = {
    opening: re.compile(closing)
    for opening, closing in zip("\"`'“„‘«「『", ('"', "`", r"'(?!\w)", "”", "[“”]", "’", "»", "」", "』"), strict=True)
}
_OPENING = re.compile(r"""["`“„‘«「『]|(?<!\w)'""")
_QUOTES = "\"'`“”„‘’«»「」『』"
_EMPHASIS = re.compile(r"\*|(?<![^\W_])_|_(?![^\W_])")
_SENTENCE_ENDS = frozenset(".!?;。！？；")
_REASON = r"(?:because|since)\b"


def stated_verdict(reply: str, cue: str, verdicts: Iterable[str]) -> str | None:
    """The verdict that a reply states behind a cue, as the module's docstring says; None where it states none."""
    said = reply.rpartition("</think>")[2].partition("<think>")[0]
    form = _Form(_plain(cue).strip(), verdicts)
    lines = [line for line in form.lines(_plain(said)) if line.strip("`#-= ")]
    statements = [form.statements(line) for line in lines]
    if lines and not any(statements):  # the form that was asked for may be repeated with its quotation marks
        statements[-1] = form.statements(lines[-1].strip(f"{_QUOTES}. "))
    stating = [stated for stated in statements if stated]
    if not stating or not (statements[-1] or (statements[0] and len(stating) == 1)):
        return None
    first, *others = stating[-1]
    return first if all(other == first for other in others) else None


class _Form:
    """A cue and the verdicts that may stand behind it."""

    def __init__(self, cue: str, verdicts: Iterable[str]) -> None:
        self._words = {_plain(word).lower(): word for word in verdicts}
        anywhere = re.escape(cue).replace(r"\ ", r"\s+").replace(":", r"\s*:")
        self._cue = re.compile(anywhere, re.IGNORECASE)
        self._cue_at_line_end = re.compile(rf"({anywhere})\s*\n\s*", re.IGNORECASE)
        word = "|".join(map(re.escape, sorted(self._words, key=len, reverse=True)))
        highest = max((word for word in self._words if word.isdecimal()), key=int, default=None)
        scale = rf"(?:\s*(?:/|out\s+of|of)\s*{highest})?" if highest is not None else ""
        another = rf"\s*[,;]\s*[{_QUOTES}]*(?:{word})(?!\w)(?!\s+(?!of\b|out\b)[^\W\d])"  # but: "Yes, no errors"
        number = r"[.,]\d|\s*[-–—~]\s*\d"
        more = rf"\s*[{_QUOTES}]*(?:(?!{_REASON})\w|[/|%?+±=&~])"
        self._verdict = re.compile(
            rf"[\s{_QUOTES}(\[]*({word})(?!\w)(?!{another})(?!{number}){scale}(?!{more})", re.IGNORECASE
        )

    def lines(self, said: str) -> Iterator[str]:
        """Lines, a verdict on the line of its cue."""
        return map(str.strip, self._cue_at_line_end.sub(r"\1 ", said).splitlines())

    def statements(self, line: str) -> list[str | None]:
        """What is stated on a line, in its order; None for a cue with no verdict behind it."""
        line = "".join(piece for piece, quoted in _pieces(line) if not (quoted and self._cue.search(piece)))
        stated: list[str | None] = []
        end = 0
        for cue in self._cue.finditer(line):
            if _begins_sentence(line, end, cue.start()):
                found = self._verdict.match(line, cue.end())
                stated.append(self._words[found[1].lower()] if found else None)
            end = cue.end()
        return stated


def _plain(text: str) -> str:
    """Without emphasis, and with ASCII's colon."""
    return _EMPHASIS.sub("", text).replace("：", ":")


def _pieces(line: str) -> Iterator[tuple[str, bool]]:
    """A line in pieces, and of each whether it is a quotation."""
    start, unclosed = 0, set()
    opening = _OPENING.search(line)
    while opening is not None:
        mark = opening[0]
        closing = None if mark in unclosed else _CLOSING[mark].search(line, opening.end())
        if closing is None:  # nor does it close behind any later one
            unclosed.add(mark)
            opening = _OPENING.search(line, opening.end())
            continue
        yield line[start : opening.start()], False
        yield line[opening.start() : closing.end()], True
        start = closing.end()
        opening = _OPENING.search(line, start)
    yield line[start:], False


def _begins_sentence(line: str, start: int, place: int) -> bool:
    """Whether a sentence begins at a place: only marks, none of them of a quotation, between it and the line's start or
    the end of a sentence. Nothing before `start` is looked at."""
    before = place
    while before > start and not (line[before - 1].isalnum() or line[before - 1] in _QUOTES + "_>"):
        before -= 1
    return before == 0 or not _SENTENCE_ENDS.isdisjoint(line[before:place])
