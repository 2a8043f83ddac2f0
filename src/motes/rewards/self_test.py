"""A reward model that likes everything alike is none: its weights were lost, or it is read in a form not its own."""

from __future__ import annotations

from collections.abc import Sequence

from motes.errors import ConfigurationError
from motes.types import Problem

QUESTION = Problem("What is 2+2?")
ANSWERS = (
    "2+2=4. The answer is \\boxed{4}.",
    "2+2=5. The answer is \\boxed{5}.",
    "I do not know.",
    "Bananas are yellow, and the train was late again!",
)
"""Answers to it that no reward model likes alike."""
SPREAD = 1e-4
"""Scores that lie closer together than this do not vary."""


def refuse_constant(scores: Sequence[float], name: str, family: str) -> None:
    """Raise unless scores vary. They do not where weights were lost: of the head, or of the positions.

    Args:
        scores: of `ANSWERS`, by the model `name`, read in the form of `family`.

    Raises:
        ConfigurationError: they do not.
    """
    if max(scores) - min(scores) <= SPREAD:
        raise ConfigurationError(
            f"{name!r} scores everything {scores[0]:.6g}, right, wrong or nonsense: its weights are not all those of a "
            "reward model. Check that its files belong together, fetch them again, or name its family "
            f"(format={family} was used); self_test=0 opens it all the same"
        )


def is_wanted(self_test: bool) -> bool:
    """The option `self_test`, read.

    Raises:
        ConfigurationError: it is neither 0 nor 1.
    """
    if self_test not in (0, 1):
        raise ConfigurationError(f"self_test is 0 or 1, not {self_test!r}")
    return bool(self_test)
