r"""The answer rule of mathematics benchmarks: the last \boxed{…} of a text."""

from __future__ import annotations

from motes.tasks.numbers import number, plain, tidied
from motes.tasks.tex import Reading, last_box


class BoxedAnswers:
    r"""The answer is the content of the last complete box that is not empty: ``\boxed{…}``, ``\fbox{…}``, ``\boxed 5``,
    ``\boxed\frac12``. See `motes.tasks.tex`. It is final: a trajectory that states one has ended.

    Text in a thought, between ``<think>`` and ``</think>``, is no answer: models box drafts there, too. That also holds
    before the thought is finished, and for the text before a ``</think>`` without ``<think>``, as when a chat template
    opens the thought.
    """

    is_quick = True

    def answer(self, text: str) -> str | None:
        return last_box(text)

    def answer_when_cut(self, text: str) -> str | None:
        box = Reading().read(text).box  # of \boxed 5, more digits may be missing
        return None if box is None else box.content(text)

    def read(self, step: str, before: Reading | None) -> Reading:
        return (before or Reading()).read(step)

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two answers have one canonical form."""
        return self.canonical(first) == self.canonical(second)

    def matches(self, reference: str, answer: str) -> bool:
        """Whether `answer` is right if `reference` is."""
        return self.equivalent(reference, answer)

    def canonical(self, answer: str) -> str:
        """The form that equivalent answers share: the same number, or the same text up to spaces, dollar signs and a
        final full stop."""
        text = tidied(answer)
        value = number(text)
        return plain(text) if value is None else str(value)
