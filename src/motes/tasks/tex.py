r"""The marks around parts of a text: boxes of answers, and markup around words.

    \boxed{\frac{1}{2}}   \fbox{5}   \boxed {5}   \boxed 5   \boxed\frac12   \boxed{\left\{ x, y \right.}

Braces enclose groups. `\{` is not a brace; in `\\{` the first backslash escapes the second, and `{` is one. A box
without braces contains the number, letter or command that follows it. No box continues after a thought, see
`motes.thoughts`.

A text is read in one pass, in as many pieces as it comes in: the state after a piece is a `Reading`, which reads the
next piece. However a text is divided, each of its characters is looked at once.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from motes import thoughts

_BACKSLASHES = r"(?P<backslashes>\\+)(?P<name>[A-Za-z]+|[^A-Za-z\\<\[◁]?)"
_TOKEN = re.compile(rf"{_BACKSLASHES}|[{{}}]", re.DOTALL)
_TOKEN_OF_BARE_BOX = re.compile(rf"{_BACKSLASHES}|.", re.DOTALL)

_UNFINISHED = re.compile(r"\\+[A-Za-z]*\Z")
"""A token at the end of a piece that the next piece may continue."""
_MAX_TOKEN_LENGTH = 32
"""Number of characters within which an unfinished token is searched."""

_BLANK = re.compile(r"[ \t]{0,8}\n?[ \t]{0,8}")
_BARE_ARGUMENT = re.compile(r"[+\-−]?\.?\d|[A-Za-z](?![A-Za-z])|[+\-−]?\\[A-Za-z]")
"""The beginning of the content of a box without braces. A word does not match: it belongs to a sentence about boxes."""
_LOOKAHEAD = 3
"""Number of characters that decide whether there is such an argument."""
_NUM_ARGUMENTS: Mapping[str, int] = MappingProxyType({"frac": 2, "dfrac": 2, "tfrac": 2, "cfrac": 2, "sqrt": 1})
_PUNCTUATION = ".,;:!?*`'\"”’"
_BLANK_CHARACTERS = string.whitespace + "\u00a0\u2009\u202f~$.…_?"
"""A box that only contains these characters is empty."""


class Box(NamedTuple):
    """A complete box: the start and the end of its content in the whole text, and whether it has no braces."""

    start: int
    end: int
    is_bare: bool

    def content(self, text: str) -> str:
        content = text[self.start : self.end].strip()
        if self.is_bare:  # it may end with the sentence
            content = content.rstrip(_PUNCTUATION if "(" in content else _PUNCTUATION + ")")
        return content


@dataclass(frozen=True, slots=True)
class Group:
    """An open group: braces, a box, or a bare box, which no brace closes. It starts at the place of its content in the
    whole text; `num_missing` is the number of arguments that the last command of a bare box still needs."""

    kind: Literal["braces", "box", "bare"]
    start: int
    outer: Group | None
    num_missing: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The state after reading the beginning of a text.

    Attributes:
        num_read: number of characters read.
        pending: the characters after these, whose meaning the next ones may change.
        group: the innermost open group.
        ink_end: the end of the last characters that can be part of an answer: no blank, no placeholder, no markup.
        box: of the complete boxes that are neither empty nor in a thought, the one that begins last.
        thoughts: the state of the text as to thoughts. Its `pending` characters come after those of `pending`.
    """

    num_read: int = 0
    pending: str = ""
    group: Group | None = None
    ink_end: int = 0
    box: Box | None = None
    thoughts: thoughts.ThoughtReading = thoughts.ThoughtReading()  # noqa: RUF009 (frozen)

    @property
    def is_final(self) -> bool:
        """Whether the text states an answer that stands, whatever follows."""
        return self.box is not None

    def read(self, more: str, *, is_end: bool = False) -> Reading:
        """The reading after another piece of text, or after the last one."""
        outer, parts = self.thoughts.read(more, is_last=is_end)
        scanner = _Scanner(self)
        for i, part in enumerate(parts):
            if part.kind == "answer":
                is_complete = i + 1 < len(parts) or is_end or bool(outer.pending)
                scanner.scan(part.text, is_complete)
            else:
                scanner.skip(part)
        if is_end:
            scanner.end()
        return scanner.reading(outer)


def last_box(text: str) -> str | None:
    """The content of the last complete box of a whole text that is neither empty nor in a thought. A box with nothing
    but blanks, markup or dots is empty."""
    box = Reading().read(text, is_end=True).box
    return None if box is None else box.content(text)


class _Scanner:
    """Reads pieces of a text. The current piece begins at `_origin`; `_place` is the current place in it."""

    def __init__(self, before: Reading) -> None:
        self._text, self._is_end = before.pending, False
        self._origin, self._place = before.num_read, 0
        self._group, self._ink_end, self._box = before.group, before.ink_end, before.box

    def reading(self, outer: thoughts.ThoughtReading) -> Reading:
        pending = self._text[self._place :]
        return Reading(self._origin + self._place, pending, self._group, self._ink_end, self._box, outer)

    def skip(self, part: thoughts.Part) -> None:
        """Advance past a thought or a mark."""
        self.scan("", is_end=True)
        if part.kind == "unopened":
            self._box = None
        self._group = None
        self._origin, self._place, self._text = self._origin + self._place + len(part.text), 0, ""

    def end(self) -> None:
        """Close the bare box with which the text ends."""
        self.scan("", is_end=True)
        if self._group is not None and self._group.kind == "bare":
            self._close(len(self._text))

    def scan(self, more: str, is_end: bool) -> None:
        """Read a piece of the answer. `is_end`: the next piece does not continue its last token."""
        self._origin, self._text, self._place = self._origin + self._place, self._text[self._place :] + more, 0
        self._is_end = is_end
        text, end = self._text, len(self._text)
        if not is_end and (unfinished := _UNFINISHED.search(text, max(0, end - _MAX_TOKEN_LENGTH))):
            end = unfinished.start()
        while self._place < end:
            is_bare = self._group is not None and self._group.kind == "bare"
            token = (_TOKEN_OF_BARE_BOX if is_bare else _TOKEN).search(text, self._place, end)
            self._advance(token.start() if token else end)
            if token is None:
                continue
            if token["name"] in ("boxed", "fbox"):
                if not self._open_box(token):
                    break
            elif is_bare:
                self._handle_in_bare_box(token)
            else:
                self._handle(token)

    def _advance(self, end: int) -> None:
        """Advance to a place before which there is no token."""
        if self._text[self._place : end].strip(_BLANK_CHARACTERS):
            self._ink_end = self._origin + end
        self._place = end

    def _advance_past(self, token: re.Match[str]) -> None:
        """Advance to the end of a token."""
        self._place = token.end()
        if not _is_blank(token):
            self._ink_end = self._origin + self._place

    def _open_box(self, token: re.Match[str]) -> bool:
        """Advance to the content of a box, if it has any. Returns false if the next piece decides that."""
        blank = _BLANK.match(self._text, token.end())
        start = blank.end() if blank else token.end()
        if not self._is_end and start + _LOOKAHEAD > len(self._text) and not self._text.startswith("{", start):
            return False
        self._advance_past(token)
        if self._text.startswith("{", start):
            self._place = start + 1
            self._group = Group("box", self._origin + start + 1, self._group)
        elif _BARE_ARGUMENT.match(self._text, start):
            self._place = start
            self._group = Group("bare", self._origin + start, self._group)
        return True

    def _handle(self, token: re.Match[str]) -> None:
        if (brace := _brace(token)) == "{":
            self._group = Group("braces", self._origin + token.end(), self._group)
        elif brace == "}" and self._group is not None:
            self._close(token.end() - 1)
        self._advance_past(token)

    def _handle_in_bare_box(self, token: re.Match[str]) -> None:
        """A bare box ends at a blank, a dollar sign, or the end of a formula, a line or the group around it."""
        group, symbol = self._group, token[0]
        assert group is not None
        is_command = bool(token["backslashes"]) and len(token["backslashes"]) % 2 == 1
        if _brace(token) == "{":
            self._handle(token)
        elif symbol.isspace() and group.num_missing:
            self._place = token.end()
        elif symbol.isspace() or symbol in ("$", "}", "\\)", "\\]") or (token["backslashes"] and not is_command):
            self._close(token.start())
        else:
            self._advance_past(token)
            num_missing = max(group.num_missing - 1, 0)
            if is_command:
                num_missing += _NUM_ARGUMENTS.get(token["name"], 0)
            if num_missing != group.num_missing:
                self._group = dataclasses.replace(group, num_missing=num_missing)

    def _close(self, end: int) -> None:
        """Close the innermost group, whose content ends at `end` in this piece."""
        group = self._group
        assert group is not None
        self._group = outer = group.outer
        is_empty = self._ink_end <= group.start
        if group.kind == "braces":
            if outer is not None and outer.num_missing:
                self._group = dataclasses.replace(outer, num_missing=outer.num_missing - 1)
        elif not is_empty and (self._box is None or group.start > self._box.start):
            self._box = Box(group.start, self._origin + end, group.kind == "bare")


def _is_blank(token: re.Match[str]) -> bool:
    r"""Whether a token can be no part of an answer: a brace, a blank, a placeholder (`...`, `\_`, `?`), markup."""
    is_command = bool(token["backslashes"]) and len(token["backslashes"]) % 2 == 1
    if is_command and token["name"]:
        return token["name"] in _BLANK_COMMANDS
    return not (token["name"] if token["backslashes"] else token[0]).strip(_BLANK_CHARACTERS + "{}")


def _brace(token: re.Match[str]) -> str:
    """The brace that a token is or ends in; "" if there is none, or it is escaped."""
    if token["backslashes"]:
        is_escaped = len(token["backslashes"]) % 2 == 1
        return "" if is_escaped or token["name"] not in ("{", "}") else token["name"]
    return token[0] if token[0] in "{}" else ""


_MARKUP = tuple("text textbf textit textrm textsf texttt textnormal mathrm mathbf mathsf mathit".split())  # noqa: SIM905
_BLANK_COMMANDS = frozenset(
    {*_MARKUP, "mbox", "hbox", "boxed", "fbox", "quad", "qquad", "dots", "ldots", "cdots", *" \n\t,;:!>~_?"}
)
_MARKUP_TOKEN = re.compile(rf"\\(?:{'|'.join(_MARKUP)}|[mhf]box|boxed|operatorname)\s?\{{|\\.|[{{}}]", re.DOTALL)


def without_markup(text: str) -> str:
    r"""A text without \text{…} and similar markup around words; its contents stay."""
    parts: list[str] = []
    is_markup: list[bool] = []  # of the open groups
    place = 0
    for token in _MARKUP_TOKEN.finditer(text):
        parts.append(text[place : token.start()])
        place = token.end()
        if token[0].endswith("{") and token[0] != r"\{":
            is_markup.append(token[0] != "{")
            removed = is_markup[-1]
        else:
            removed = token[0] == "}" and bool(is_markup) and is_markup.pop()
        if not removed:
            parts.append(token[0])
    return "".join((*parts, text[place:]))
