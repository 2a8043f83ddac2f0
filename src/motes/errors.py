"""Everything motes raises on purpose.

    MotesError
    ├── ConfigurationError      a value the caller gave cannot work; nothing was computed
    │   ├── UnknownNameError    a method, task, model or option of that name does not exist
    │   └── MissingExtraError   an optional dependency is not installed
    ├── ContextLengthError      a prompt does not fit the model's context
    ├── EngineError             a language model failed while running
    ├── RewardError             a reward model failed, or its scores cannot be used
    ├── DegenerateWeightsError  every particle's weight is zero
    ├── ContractError           an implementation broke the contract of its protocol
    └── RunDirectoryError       an evaluation's directory cannot be used as asked

Each message says what was wrong and what to do about it. An error that ends a run carries what the run had already
computed as `result`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motes.types import Result


class MotesError(Exception):
    """Base of every error that motes raises on purpose."""

    result: Result | None = None
    """What the run had computed when it failed; None where nothing had run."""


class ConfigurationError(MotesError, ValueError):
    """A value the caller gave cannot work; nothing was computed."""


class UnknownNameError(ConfigurationError):
    """A method, task, model or option of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'motes[{extra}]'")


class ContextLengthError(MotesError, ValueError):
    """A prompt does not fit the model's context."""


class EngineError(MotesError, RuntimeError):
    """A language model failed while running."""


class RewardError(MotesError, RuntimeError):
    """A reward model failed, or its scores cannot be used."""


class DegenerateWeightsError(MotesError, ArithmeticError):
    """Every particle's weight is zero."""


class ContractError(MotesError, AssertionError):
    """An implementation broke the contract of its protocol."""


class RunDirectoryError(MotesError, RuntimeError):
    """An evaluation's directory cannot be used as asked."""
