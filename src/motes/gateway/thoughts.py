"""Separates what a model thinks from what it says: `reasoning_content` and `content` of a message."""

from __future__ import annotations

from itertools import groupby

from motes.thoughts import Part, ThoughtReading, Trimmer


class ThoughtSplitter:
    """Separates the text of an answer, which may come in pieces.

    Blank text at both ends of a thought, and between a thought and what follows, is left out. What was sent cannot be
    called back: a closing tag that nothing opened is text.
    """

    def __init__(self) -> None:
        self._reading, self._trimmer = ThoughtReading(), Trimmer()

    def feed(self, text: str, *, is_last: bool = False) -> list[tuple[bool, str]]:
        """The text to send after this piece, in parts: whether it is a thought, and the text."""
        self._reading, parts = self._reading.read(text, is_last=is_last)
        said = [Part("answer", part.text) if part.kind == "unopened" else part for part in parts]
        return [
            (is_thought, "".join(piece.text for piece in group))
            for is_thought, group in groupby(self._trimmer.pieces(said), key=lambda piece: piece.is_thought)
        ]
