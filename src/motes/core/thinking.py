"""How many of a partial answer's tokens are thought, and where.

A token is one of thought if it begins within a thought or a tag: the tags themselves count, with the token that
completes the closing one, as far as they were sampled. In harmony, everything before the final message counts. The end
of sequence is part of the answer unless a thought is open. What closes a thought that nothing opened makes all tokens
before it tokens of thought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from motes.thoughts import MARKS, Part, ThoughtReading


class Thinking(NamedTuple):
    """The state of a partial answer as to thoughts.

    Attributes:
        reading: see `motes.thoughts.ThoughtReading`.
        tokens: number of sampled tokens of thought so far.
        was_unopened: whether the last step closed a thought that nothing had opened.
    """

    reading: ThoughtReading = ThoughtReading()
    tokens: int = 0
    was_unopened: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the answer goes on within a thought."""
        return self.reading.in_thought

    def after(
        self, text: str, appended: int, num_tokens: int, known: int | None, before: int, head: int = 0
    ) -> Thinking:
        """The state after a step.

        Args:
            text: the step's.
            appended: number of characters at its end that were not sampled.
            num_tokens: number of its tokens.
            known: number of its tokens of thought; None: it is estimated. A mark, such as a tag, counts as one token,
                and the other tokens in proportion to the characters.
            before: number of tokens of all steps before.
            head: number of characters at its beginning that tokens of earlier steps wrote.
        """
        reading, parts = self.reading.read(text)
        was_unopened = any(part.kind == "unopened" for part in parts)
        if known is not None:
            known = min(known, num_tokens)
        else:
            known = self._estimate(reading, parts, text, (head, len(text) - appended), num_tokens)
        return Thinking(reading, (before if was_unopened else self.tokens) + known, was_unopened)

    def _estimate(
        self, after: ThoughtReading, parts: Sequence[Part], text: str, own: tuple[int, int], num_tokens: int
    ) -> int:
        """The number of tokens of thought among those that wrote the characters from `own[0]` to `own[1]` of a step."""
        first, last = own
        sampled = last - first
        if sampled <= 0:
            return num_tokens * self.reading.read(text[:last])[0].in_thought
        clipped = ((max(start, first), min(end, last)) for start, end in spans_of(self.reading, after, parts, text))
        spans = [(start, end) for start, end in clipped if start < end]
        thought = sum(end - start for start, end in spans)
        if thought in (0, sampled) or num_tokens < 2:
            return num_tokens if 2 * thought > sampled else 0
        marks = [mark for start, end in spans for mark in MARKS.findall(text[start:end])]
        of_marks = sum(map(len, marks))
        others = max(0, num_tokens - len(marks)) * (thought - of_marks) / max(1, sampled - of_marks)
        return min(max(1, len(marks) + round(others)), num_tokens - 1)  # of both kinds there is one at least


def thought_spans(before: ThoughtReading, text: str) -> list[tuple[int, int]]:
    """The stretches of a step's text that are thoughts or marks, as offsets, ascending and apart.

    Args:
        before: the state before the step.
    """
    after, parts = before.read(text)
    return spans_of(before, after, parts, text)


def count_tokens(
    before: ThoughtReading, text: str, head: int, num_tokens: int, pieces: Callable[[], Iterable[str]]
) -> int:
    """The number of tokens of thought in a step.

    Args:
        before: the state before the step.
        text: the text of its tokens, after `head` characters that were not sampled in it.
        num_tokens: number of its tokens.
        pieces: returns the text that each token adds; "" for the end of sequence. Called if they are not all alike.
    """
    after, parts = before.read(text)
    spans = spans_of(before, after, parts, text)
    if not (spans or after.in_thought):
        return 0
    if spans == [(0, len(text))] and after.in_thought:
        return num_tokens
    place, count, span = head, 0, 0
    for piece in pieces():
        while span < len(spans) and spans[span][1] <= place:
            span += 1
        is_thought = span < len(spans) and spans[span][0] <= place
        count += after.in_thought if place >= len(text) else is_thought
        place += len(piece)
    return count


def spans_of(before: ThoughtReading, after: ThoughtReading, parts: Sequence[Part], text: str) -> list[tuple[int, int]]:
    """See `thought_spans`. `after` and `parts`: what `before` returned when it read the text."""
    last = max((i for i, part in enumerate(parts) if part.kind == "unopened"), default=-1)
    pieces = [(part.kind != "answer" or i < last, len(part.text)) for i, part in enumerate(parts)]
    spans: list[tuple[int, int]] = []
    start = -len(before.pending)
    for is_thought, length in (*pieces, (after.in_thought, len(after.pending))):
        end = start + length
        if is_thought and end > max(0, start):
            if spans and spans[-1][1] == start:
                spans[-1] = spans[-1][0], end
            else:
                spans.append((max(0, start), end))
        start = end
    return spans
