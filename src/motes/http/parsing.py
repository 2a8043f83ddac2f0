"""JSON as strangers write it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading an answer raises that has another form than the one that was expected."""


def parsed(content: str | bytes) -> Any:
    """What JSON says. Unlike in `motes.text.parse_json` halves of surrogate pairs stay halves: an event of a stream can
    hold one, and the next event the other. `Step` joins them.

    Raises:
        ValueError: it is no JSON, or nested more deeply than Python reads it.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def excerpt(value: Any) -> str:
    """The beginning of an answer, for messages."""
    try:
        return str(value)[:120]
    except RecursionError:
        return "what is nested too deeply"


def tells_of_error(answer: Any) -> bool:
    """Whether an answer of 200, or an event of a stream, says that the request failed."""
    return isinstance(answer, dict) and bool(answer.get("error") or answer.get("object") == "error")


def value_at(value: Any, path: Iterable[str]) -> Any:
    """The value below these keys of nested objects; None where there is none, or no key."""
    keys = list(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if keys else None
