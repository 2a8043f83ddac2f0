"""Reads the verdict in a whole reply, in the place where the prompt asked for it.

The prompt asked the judge to reply with one line, or to end with one, that has a cue and a verdict. The judge may quote
the same words from the text that it judges, and it may think aloud before. So only the judge's own statement counts:

    after its thoughts      what it thinks (`motes.thoughts`) is no reply
    on the last line        or on the first, if reasons follow and no other line states a verdict
    at a sentence's start   right after the cue, outside quotation marks, and with no word after it: "No errors" is no
                            "No", "4.5" no 4, "Yes/No" neither, "4/10" no 4 of 5

If statements on that line differ, it states none. Reading takes time linear in the reply's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from motes.thoughts import after_thoughts

_MARKS = {'"': '"', "`": "`", "'": r"'(?!\w)", "“": "”", "„": "[“”]", "‘": "’", "«": "»"}
_MARKS |= {"「": "」", "『": "』"}
_CLOSING_MARKS = {opening: re.compile(closing) for opening, closing in _MARKS.items()}
_OPENING_MARK = re.compile(r"""["`“„‘«「『]|(?<!\w)'""")
_QUOTES = "\"'`“”„‘’«»「」『』"
_EMPHASIS = re.compile(r"\*|(?<![^\W_])_|_(?![^\W_])")
_SENTENCE_ENDS = frozenset(".!?;。！？；")
_REASON = r"(?:because|since)\b"


def stated_verdict(reply: str, cue: str, verdicts: Iterable[str]) -> str | None:
    """The verdict that a reply states after a cue, see the module's docstring; None if it states none."""
    form = _VerdictForm(_without_emphasis(cue).strip(), verdicts)
    lines = [line for line in form.lines(_without_emphasis(after_thoughts(reply))) if line.strip("`#-= ")]
    statements = [form.statements(line) for line in lines]
    if lines and not any(statements):  # the judge may have copied the prompt's quotation marks around the form
        statements[-1] = form.statements(lines[-1].strip(f"{_QUOTES}. "))
    lines_with_statements = [line for line in statements if line]
    if not lines_with_statements or not (statements[-1] or (statements[0] and len(lines_with_statements) == 1)):
        return None
    first, *others = lines_with_statements[-1]
    return first if all(other == first for other in others) else None


class _VerdictForm:
    """A cue and the verdicts that may follow it."""

    def __init__(self, cue: str, verdicts: Iterable[str]) -> None:
        self._words = {_without_emphasis(word).lower(): word for word in verdicts}
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

    def lines(self, text: str) -> Iterator[str]:
        """The lines of a text, with each verdict on the line of its cue."""
        return map(str.strip, self._cue_at_line_end.sub(r"\1 ", text).splitlines())

    def statements(self, line: str) -> list[str | None]:
        """The verdicts that a line states, in order; None for a cue with no verdict after it."""
        pieces = _split_at_quotations(line)
        line = "".join(piece for piece, is_quotation in pieces if not (is_quotation and self._cue.search(piece)))
        verdicts: list[str | None] = []
        end = 0
        for cue in self._cue.finditer(line):
            if _begins_sentence(line, end, cue.start()):
                match = self._verdict.match(line, cue.end())
                verdicts.append(self._words[match[1].lower()] if match else None)
            end = cue.end()
        return verdicts


def _without_emphasis(text: str) -> str:
    """A text without emphasis, and with ASCII's colon."""
    return _EMPHASIS.sub("", text).replace("：", ":")


def _split_at_quotations(line: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a line, and whether each is a quotation."""
    start, unclosed = 0, set()
    opening = _OPENING_MARK.search(line)
    while opening is not None:
        mark = opening[0]
        closing = None if mark in unclosed else _CLOSING_MARKS[mark].search(line, opening.end())
        if closing is None:  # then later marks of this kind are not closed, either
            unclosed.add(mark)
            opening = _OPENING_MARK.search(line, opening.end())
            continue
        yield line[start : opening.start()], False
        yield line[opening.start() : closing.end()], True
        start = closing.end()
        opening = _OPENING_MARK.search(line, start)
    yield line[start:], False


def _begins_sentence(line: str, start: int, place: int) -> bool:
    """Whether a sentence begins at a place: only punctuation other than quotation marks may stand between it and the
    line's start or the end of a sentence. Characters before `start` do not matter."""
    before = place
    while before > start and not (line[before - 1].isalnum() or line[before - 1] in _QUOTES + "_>"):
        before -= 1
    return before == 0 or not _SENTENCE_ENDS.isdisjoint(line[before:place])
