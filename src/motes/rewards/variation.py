"""Checks that a reward model's scores vary. If not, its weights were lost, or it reads another format than its own."""

from __future__ import annotations

from collections.abc import Sequence

from motes.core import Problem
from motes.errors import ConfigurationError

QUESTION = Problem("What is 2+2?")
ANSWERS = (
    "2+2=4. The answer is \\boxed{4}.",
    "2+2=5. The answer is \\boxed{5}.",
    "I do not know.",
    "Bananas are yellow, and the train was late again!",
)
"""Answers to that question, to which every reward model gives different scores."""
SPREAD = 1e-4
"""Scores that differ by no more than this count as equal."""


def refuse_constant(scores: Sequence[float], name: str, family: str) -> None:
    """Raise unless scores vary. They are all equal if the weights of the head, or of the positions, were lost.

    Args:
        scores: of `ANSWERS`.
        name: of the model.
        family: in whose format the model read the answers.

    Raises:
        ConfigurationError: they are all equal.
    """
    if max(scores) - min(scores) <= SPREAD:
        raise ConfigurationError(
            f"{name!r} scores everything {scores[0]:.6g}, right, wrong or nonsense: some of its weights are not those "
            "of a reward model. Check that its files belong together, fetch them again, or name its family "
            f"(format={family} was used); self_test=0 opens it all the same"
        )


def is_wanted(self_test: bool) -> bool:
    """Whether the option `self_test` wants the test.

    Raises:
        ConfigurationError: it is neither 0 nor 1.
    """
    if self_test not in (0, 1):
        raise ConfigurationError(f"self_test is 0 or 1, not {self_test!r}")
    return bool(self_test)
