"""JSON from servers, which may have any form."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from motes.errors import UnknownFormError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""Errors of code that reads a response of an unexpected form."""


def parsed(content: str | bytes) -> Any:
    """The value of a JSON text. Unlike `motes.text.parse_json`, it keeps halves of surrogate pairs: one event of a
    stream can contain the first, and the next event the second. `Step` joins them.

    Raises:
        ValueError: it is no JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def excerpt(value: Any) -> str:
    """The beginning of a response, for messages."""
    try:
        return str(value)[:120]
    except RecursionError:
        return "a value that is nested too deeply"


def unknown_form(url: str, reason: str, message: Any) -> UnknownFormError:
    """The error for a response, or an event of a stream, of an unexpected form."""
    return UnknownFormError(
        f"{url} answered in a form that is not its own ({reason} in {excerpt(message)}): is another engine behind it? "
        "See `engine`"
    )


def reports_error(message: Any) -> bool:
    """Whether a response of 200, or an event of a stream, reports an error."""
    return isinstance(message, dict) and bool(message.get("error") or message.get("object") == "error")


def value_at(value: Any, path: Iterable[str]) -> Any:
    """The value below these keys of nested objects; None where there is none, or no key."""
    keys = list(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if keys else None
