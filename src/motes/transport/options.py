"""Options of a served model's spec, as text or as values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from motes.errors import ConfigurationError

NumberT = TypeVar("NumberT", int, float)


def seconds(name: str, value: object) -> float:
    """An option of a model's spec that is a number of seconds. Raises ConfigurationError if it is not positive."""
    return _positive(name, value, float, "a number of seconds")


def whole_number(name: str, value: object) -> int:
    """An option of a model's spec that is a whole number. Raises ConfigurationError if it is less than 1, or none."""
    return _positive(name, value, int, "a whole number")


def _positive(name: str, value: Any, kind: Callable[[Any], NumberT], expected: str) -> NumberT:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = kind(0)
    if isinstance(value, bool) or not 0 < number < math.inf or (isinstance(value, float) and value != number):
        raise ConfigurationError(f"{name} must be more than 0, {expected}, not {value!r}")
    return number


def flag(name: str, value: object) -> bool | None:
    """An option of a model's spec that is 0 or 1; None where it is left out. Raises ConfigurationError if neither."""
    if value is None:
        return None
    if value not in (0, 1):
        raise ConfigurationError(f"{name} must be 0 or 1, not {value!r}")
    return bool(value)
