"""Options of a served model's spec, as text or as values."""

from __future__ import annotations

import math

from motes.errors import ConfigurationError


def seconds(name: str, value: object) -> float:
    """An option of a model's spec that is a number of seconds.

    Raises:
        ConfigurationError: it is no positive number.
    """
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (0 < number < math.inf):
        raise ConfigurationError(f"{name} must be more than 0, a number of seconds, not {value!r}")
    return number


def whole_number(name: str, value: object) -> int:
    """An option of a model's spec that is a whole number of at least 1.

    Raises:
        ConfigurationError: it is no such number.
    """
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        number = 0
    if isinstance(value, bool) or number < 1 or (isinstance(value, float) and value != number):
        raise ConfigurationError(f"{name} must be more than 0, a whole number, not {value!r}")
    return int(number)


def flag(name: str, value: object) -> bool | None:
    """An option of a model's spec that is 0 or 1; None where the spec does not have it.

    Raises:
        ConfigurationError: it is neither.
    """
    if value is None:
        return None
    if value not in (0, 1):
        raise ConfigurationError(f"{name} must be 0 or 1, not {value!r}")
    return bool(value)
