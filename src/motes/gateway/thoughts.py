"""Separates what a model thinks from what it says: `reasoning_content` and `content` of a message."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from motes.thoughts import TAG, THOUGHTS

LONGEST_TAG = max(len(tag) for pair in THOUGHTS.items() for tag in pair)


class ThoughtSplitter:
    """Separates the text of an answer, which may come in pieces.

    Blank text at both ends of a thought, and between a thought and what follows, is left out.

    Args:
        in_thought: whether the text begins within a thought.
    """

    def __init__(self, in_thought: bool = False) -> None:
        self._in_thought = in_thought
        self._held = ""  # text that may be the beginning of a tag, or blank text that may end a thought
        self._skips_blank = in_thought

    def feed(self, text: str, *, is_last: bool = False) -> list[tuple[bool, str]]:
        """The text to send after this piece, in parts: whether it is a thought, and the text."""
        parts = list(self._parts(self._held + text, is_last))
        return [
            (in_thought, "".join(piece for _, piece in group))
            for in_thought, group in groupby(parts, key=lambda part: part[0])
        ]

    def _parts(self, text: str, is_last: bool) -> Iterator[tuple[bool, str]]:
        place = 0
        while (tag := TAG.search(text, place)) is not None:
            opens = tag[0] in THOUGHTS
            if opens != self._in_thought:
                before = text[place : tag.start()]
                yield from self._part(before.rstrip() if self._in_thought else before)
                self._in_thought, self._skips_blank = opens, True
            else:  # a tag without its pair is text
                yield from self._part(text[place : tag.end()])
            place = tag.end()
        rest = text[place:]
        end = len(rest) if is_last else _end_of_certain_text(rest)
        if self._in_thought:
            end = len(rest[:end].rstrip())
        self._held = "" if is_last else rest[end:]
        yield from self._part(rest[:end])

    def _part(self, text: str) -> Iterator[tuple[bool, str]]:
        if self._skips_blank:
            text = text.lstrip()
        if text:
            self._skips_blank = False
            yield self._in_thought, text


def split_thoughts(text: str) -> tuple[str, str]:
    """The thoughts of a whole answer, and the rest. A thought that was not opened, as when a chat template opens it,
    begins at the start of the text."""
    first = TAG.search(text)
    parts = ThoughtSplitter(first is not None and first[0] not in THOUGHTS).feed(text, is_last=True)
    thoughts = "\n\n".join(piece for in_thought, piece in parts if in_thought)
    return thoughts, "".join(piece for in_thought, piece in parts if not in_thought)


def _end_of_certain_text(text: str) -> int:
    """The length of the text without an end that may be the beginning of a tag."""
    tags = (*THOUGHTS, *THOUGHTS.values())
    for start in range(max(0, len(text) - LONGEST_TAG + 1), len(text)):
        if any(tag.startswith(text[start:]) for tag in tags):
            return start
    return len(text)
