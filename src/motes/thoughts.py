r"""What a model thinks and what it says, in every shape in which one text holds both.

    tags        `<think>…</think>` and the other pairs in `TAGS`. What a chat template opens belongs to the text, see
                `motes.steps.opening`. A closing tag alone ends a thought that began with the text; a thought that is
                not closed extends to the end. A tag within a thought of another kind is text.
    harmony     `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`, of gpt-oss. The
                channel `final` is what the model says; all other channels, and calls of tools, are thoughts.
    stripped    the same without its special tokens, as servers return it that leave them out of texts:
                `analysis…assistantfinal…`

A text is read in one pass, in as many pieces as it comes in: the state after a piece is a `ThoughtReading`, which reads
the next piece. However a text is divided, each of its characters is looked at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

THINKING = ("<think>", "</think>")

TAGS: Mapping[str, str] = MappingProxyType(
    {
        THINKING[0]: THINKING[1],  # most models
        "[THINK]": "[/THINK]",  # Magistral
        "◁think▷": "◁/think▷",  # Kimi
        "<thought>": "</thought>",  # EXAONE Deep
        "<seed:think>": "</seed:think>",  # Seed-OSS
        "<|START_THINKING|>": "<|END_THINKING|>",  # Command A Reasoning
        "<|channel>thought": "<channel|>",  # Gemma 4
    }
)
"""The tags that open a thought, and the tag that closes each."""

HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
"""The special tokens of harmony, gpt-oss's format."""

FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
"""The end of a thought in harmony, and the beginning of the answer."""

_CHANNELS = ("analysis", "commentary")
_STRIPPED = {**{name: f"<|channel|>{name}<|message|>" for name in _CHANNELS}, "assistantfinal": FINAL}
_LAST = re.compile(r"<\|(?:return|call|endoftext)\|>\Z")
_WORDS = r"[\w .,=:/-]{0,128}"
_FIRST = re.compile(
    f"[<\\[◁](?=[{re.escape(''.join(sorted({mark[1] for mark in (*TAGS, *TAGS.values(), *HARMONY)})))}])"
)
"""The beginnings of marks, except in the form "stripped"."""
_HEADER = (
    rf"(?P<header>(?=<\|[sc])(?:<\|start\|>{_WORDS})?(?:<\|channel\|>(?P<channel>{_WORDS}))?"
    rf"(?:<\|constrain\|>{_WORDS})?<\|message\|>)"
)
_TAG = "|".join(map(re.escape, (*TAGS, *TAGS.values())))
_OUTSIDE = re.compile(rf"{_HEADER}|(?P<tag>{_TAG})")
_IN_HARMONY = re.compile(rf"{_HEADER}|(?P<end><\|(?:end|return|call)\|>)")
_IN_STRIPPED = re.compile(rf"{_HEADER}|(?P<final>assistantfinal)")
_OUTSIDE_STRIPPED = re.compile(rf"{_HEADER}|(?P<final>assistantfinal)|(?P<tag>{_TAG})")


def _beginnings(texts: tuple[str, ...]) -> str:
    """A pattern for the beginnings of texts."""
    return "|".join(sorted({re.escape(text[:n]) for text in texts for n in range(1, len(text))}))


_UNFINISHED = re.compile(
    rf"(?:(?:<\|(?:start|channel|constrain)\|>{_WORDS}){{1,3}}(?:<(?:\|[a-z]{{0,9}}\|?)?)?"
    rf"|{_beginnings((*TAGS, *TAGS.values(), *HARMONY))})\Z"
)
"""A mark at the end of a piece that the next piece may complete."""
_UNFINISHED_STRIPPED = re.compile(rf"(?:{_beginnings(('assistantfinal',))})\Z")
_LONGEST = 512
"""Number of characters within which an unfinished mark is searched: a header has three names of 128 characters."""

MARKS = re.compile("|".join(map(re.escape, (*TAGS, *TAGS.values(), *HARMONY, "<|channel>"))))
"""The tags, and the special tokens of harmony, one by one: many tokenizers have a token for each."""


def split_at_marks(text: str) -> list[tuple[str, bool]]:
    """The pieces of a text, none of them empty, and whether each is one of `MARKS`."""
    pieces = []
    place = 0
    for mark in (*MARKS.finditer(text), None):
        end = len(text) if mark is None else mark.start()
        if end > place:
            pieces.append((text[place:end], False))
        if mark is not None:
            pieces.append((mark[0], True))
            place = mark.end()
    return pieces


def tokens_of_marks(vocabulary: Iterable[str]) -> frozenset[str]:
    """The tokens of a vocabulary that spell tags or, if it is one for harmony, harmony's special tokens."""
    tokens = frozenset(token for token in vocabulary if MARKS.fullmatch(token))
    return tokens if tokens.issuperset(HARMONY[1:4:2]) else tokens.difference(HARMONY)


class Part(NamedTuple):
    """A part of a text.

    `kind`: "answer", "thought", or "mark" (a tag, or a header of harmony, which belongs to neither). "unopened": a
    closing tag alone; all text before it was a thought.
    """

    kind: Literal["answer", "thought", "mark", "unopened"]
    text: str


class Piece(NamedTuple):
    """A stretch of text that is said, or thought."""

    is_thought: bool
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtReading:
    """The state after reading the beginning of a text.

    Attributes:
        in_thought: whether the text goes on within a thought.
        opening: the tag that opened the latest thought, or a special token of harmony; "" while there was none.
        form: "tags", "harmony" or "stripped", see the module.
        in_message: in harmony, whether a message is open; between two messages there is no text.
        pending: the characters at the end whose meaning the next ones may change.
        has_begun: whether there was anything but blanks.
    """

    in_thought: bool = False
    opening: str = ""
    form: Literal["tags", "harmony", "stripped"] = "tags"
    in_message: bool = False
    pending: str = ""
    has_begun: bool = False

    def read(self, more: str, *, is_last: bool = False) -> tuple[ThoughtReading, list[Part]]:
        """The reading after another piece of text, and the parts of the text that became certain: those of `pending`
        and of the piece, without the new `pending`."""
        scanner = _Scanner(self, more, is_last)
        scanner.scan()
        return scanner.reading(), scanner.parts

    def ending(self, tail: str = "") -> str:
        """The text that ends the open thought, in its usual form; "" if none is open. It completes a mark that has
        begun.

        Args:
            tail: the last characters of the text.
        """
        if not self.in_thought:
            return ""
        if self.form != "tags":
            bases = [FINAL] if self.in_message or self.form == "stripped" else []
            bases += [FINAL[FINAL.index(token) :] for token in ("<|start|>", "<|channel|>")]
            return next((base[len(self.pending) :] for base in bases if base.startswith(self.pending)), bases[0])
        closing = TAGS[self.opening]
        after = "" if "|" in closing else "\n\n"  # after special tokens, templates have no blank line
        if self.pending:
            return closing[len(self.pending) :] + after
        return ("" if not after or tail.endswith("\n") else "\n") + closing + after

    @property
    def closing(self) -> str:
        """The text whose end ends the open thought; "" if none is open."""
        if not self.in_thought:
            return ""
        return TAGS[self.opening] if self.form == "tags" else FINAL


class _Scanner:
    """Reads one piece of text. `_place` is the current place in the piece."""

    def __init__(self, before: ThoughtReading, more: str, is_last: bool) -> None:
        self._text, self._place, self._is_last = before.pending + more, 0, is_last
        self._in_thought, self._opening, self._form = before.in_thought, before.opening, before.form
        self._in_message, self._has_begun = before.in_message, before.has_begun
        self.parts: list[Part] = []

    def reading(self) -> ThoughtReading:
        return ThoughtReading(
            in_thought=self._in_thought,
            opening=self._opening,
            form=self._form,
            in_message=self._in_message,
            pending=self._text[self._place :],
            has_begun=self._has_begun,
        )

    def scan(self) -> None:
        if not self._has_begun and not self._begin():
            return
        while True:
            if self._in_thought and self._form == "tags":
                if not self._leave_tags():
                    return
                continue
            if (mark := self._next_mark()) is None:
                break
            self._take_text(mark.start())
            self._take_mark(mark)
        self._take_text(len(self._text) if self._is_last else self._end_of_certain_text())

    def _next_mark(self) -> re.Match[str] | None:
        """The next mark that means something here. Most texts have few characters that may begin one: to look for these
        alone is twenty times as fast as to look for the marks."""
        pattern = self._pattern()
        if self._form == "stripped":
            return pattern.search(self._text, self._place)
        candidates = (pattern.match(self._text, at.start()) for at in _FIRST.finditer(self._text, self._place))
        return next(filter(None, candidates), None)

    def _pattern(self) -> re.Pattern[str]:
        """The marks that mean something here."""
        if self._form == "stripped":
            return _IN_STRIPPED if self._in_thought else _OUTSIDE_STRIPPED
        return _IN_HARMONY if self._form == "harmony" else _OUTSIDE

    def _begin(self) -> bool:
        """Read the blank beginning, and the name of a stripped channel. Returns whether the beginning is certain."""
        text = self._text
        start = len(text) - len(text.lstrip())
        visible = text[start : start + 1 + len(_CHANNELS[-1])]
        self._take_text(start)
        if not visible:
            return False
        if any(name.startswith(visible) for name in _CHANNELS) and not self._is_last:
            return False
        self._has_begun = True
        if (channel := next((name for name in _CHANNELS if visible.startswith(name)), None)) is not None:
            after = visible[len(channel) : len(channel) + 1]  # no sentence goes on with one of these:
            is_certain = self._form == "stripped" or after.isupper() or after.isdigit()
            self._form = "stripped"
            self._take("mark" if is_certain else "answer", start + len(channel))
            if is_certain:
                self._in_thought, self._opening = True, HARMONY[1]
        return True

    def _leave_tags(self) -> bool:
        """Advance to the end of a thought between tags. Returns whether it ends in this piece."""
        closing = TAGS[self._opening]
        end = self._text.find(closing, self._place)
        if end >= 0:
            self._take_text(end)
            self._take("mark", end + len(closing))
            self._in_thought = False
            return True
        end = len(self._text)
        if not self._is_last:
            start = max(self._place, end - len(closing) + 1)
            end = next((at for at in range(start, end) if closing.startswith(self._text[at:])), end)
        self._take_text(end)
        return False

    def _take_mark(self, mark: re.Match[str]) -> None:
        """Read a mark, which begins at the current place."""
        groups = mark.groupdict()
        if mark["header"]:
            channel = mark["channel"]
            is_final = (channel is None or channel.split()[:1] == ["final"]) and " to=" not in mark["header"]
            self._take("mark", mark.end())
            self._form, self._opening, self._in_message = "harmony", HARMONY[1], True
            self._in_thought = not is_final
        elif groups.get("end"):
            self._take("mark", mark.end())
            self._in_message, self._in_thought = False, True  # what follows is no answer before a channel says so
        elif groups.get("final"):
            self._take("mark" if self._in_thought else "unopened", mark.end())
            self._in_thought, self._opening = False, HARMONY[1]
        elif mark["tag"] in TAGS:
            self._take("mark", mark.end())
            self._in_thought, self._opening = True, mark["tag"]
        else:
            self._opening = next(opening for opening, closing in TAGS.items() if closing == mark["tag"])
            self._take("unopened", mark.end())
        if groups.get("tag"):
            self._form = "tags"

    def _take_text(self, end: int) -> None:
        self._take("thought" if self._in_thought else "answer", end)

    def _take(self, kind: Literal["answer", "thought", "mark", "unopened"], end: int) -> None:
        """Advance to a place; the text before it is of this kind."""
        if end > self._place:
            self.parts.append(Part(kind, self._text[self._place : end]))
            self._place = end

    def _end_of_certain_text(self) -> int:
        """The end of the text without a mark that may have begun."""
        text, end = self._text, len(self._text)
        start = max(self._place, end - _LONGEST)
        if max(text.rfind(first, start) for first in "<[◁") >= 0 and (match := _UNFINISHED.search(text, start)):
            return match.start()
        if self._form == "stripped" and (match := _UNFINISHED_STRIPPED.search(text, max(self._place, end - 16))):
            return match.start()
        return end


def read(text: str) -> ThoughtReading:
    """The state after a text, of which more may follow."""
    return ThoughtReading().read(text)[0]


def parts_of(text: str) -> list[Part]:
    """The parts of a whole text. What a closing tag alone ends is a thought."""
    parts = ThoughtReading().read(text, is_last=True)[1]
    last = max((i for i, part in enumerate(parts) if part.kind == "unopened"), default=-1)
    return [_before_closing(part) if i <= last else part for i, part in enumerate(parts)]


def _before_closing(part: Part) -> Part:
    """A part before a closing tag that nothing opened, or that tag."""
    if part.kind == "answer" and part.text not in _CHANNELS:
        return Part("thought", part.text)
    return part if part.kind == "thought" else Part("mark", part.text)


def without_end(text: str) -> str:
    """A text in harmony without the token that ended the answer."""
    return _LAST.sub("", text)


def restored(text: str) -> str:
    """A text in harmony with the special tokens that a server may have left out of it."""
    parts = ThoughtReading(form="stripped").read(text, is_last=True)[1]
    return "".join(_STRIPPED.get(part.text, part.text) if part.kind == "mark" else part.text for part in parts)


def without_thoughts(text: str) -> str:
    """A text without its thoughts, otherwise unchanged."""
    return "".join(part.text for part in parts_of(text) if part.kind == "answer")


def after_thoughts(text: str) -> str:
    """What a text says after its last thought; a thought that is not closed does not count."""
    said: list[str] = []
    is_before = False  # whether a thought came after what was said
    for part in parts_of(text):
        if part.kind != "answer":
            is_before = True
            continue
        said = [part.text] if is_before else [*said, part.text]
        is_before = False
    return "" if is_before and not read(text).in_thought else "".join(said)


class Trimmer:
    """Joins parts to stretches of thought and of answer. Blank text at both ends of a thought, and between a thought
    and what follows, is left out."""

    def __init__(self) -> None:
        self._held: list[str] = []  # blank texts that may end a thought
        self._skips_blank = False

    def pieces(self, parts: list[Part]) -> Iterator[Piece]:
        """The stretches in the next parts; none of them is empty."""
        for kind, text in parts:
            if kind in ("mark", "unopened"):
                self._held, self._skips_blank = [], True
                continue
            is_thought = kind == "thought"
            if self._skips_blank:
                text = text.lstrip()
            kept = text.rstrip() if is_thought else text
            if kept:
                self._skips_blank = False
                yield Piece(is_thought, "".join([*self._held, kept]))
                self._held = []
            if kept != text:
                self._held.append(text[len(kept) :])


def split(text: str) -> tuple[str, str]:
    """The thoughts of a whole text, one after the other with a blank line between, and the rest: what the model says.
    Blank text around thoughts is left out."""
    thoughts: list[str] = []
    answer: list[str] = []
    is_open = False  # whether the next piece of a thought continues the last one
    trimmer = Trimmer()
    for part in parts_of(text):
        for is_thought, piece in trimmer.pieces([part]):
            if not is_thought:
                answer.append(piece)
            elif is_open:
                thoughts[-1] += piece
            else:
                thoughts.append(piece)
            is_open = is_thought
        is_open = is_open and part.kind != "mark"
    return "\n\n".join(thoughts), "".join(answer)
