"""JSON from servers, in whatever form, and the error for each response:

408, 409, 429, 5xx            ServerError, in a TransientError          another attempt
200 that reports an error     BadResponseError                          another attempt
200 on the context            ContextLengthError                        no other attempt
401, 403                      UnauthorizedError                         no other attempt
400, 413, 422 on the context  ContextLengthError                        no other attempt
any other 4xx, 3xx            RejectedError                             no other attempt
"""

from __future__ import annotations

import email.utils
import json
import math
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx2

from motes.errors import (
    BadResponseError,
    ContextLengthError,
    MotesError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnknownFormError,
    chain_of,
)
from motes.transport.address import KEY_VARIABLE
from motes.transport.refusals import is_about_context

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""Errors of code that reads a response of an unexpected form."""

SHORTEN = "Shorten the question, or ask for fewer tokens"


@dataclass(eq=False)
class TransientError(Exception):
    """An attempt failed in a way that another attempt may not.

    Attributes:
        error: to raise when there is no other attempt.
        retry_after: seconds that the server wants to be left alone.
    """

    error: MotesError
    retry_after: float | None = None


def may_be_of_one(error: MotesError) -> bool:
    """Whether one of several texts of a request may be the cause of an error; otherwise the server is."""
    is_internal = isinstance(error, ServerError) and error.status == 500
    return is_internal or isinstance(error, (ContextLengthError, RejectedError, BadResponseError))


def error_from_response(response: httpx2.Response, body: bytes, url: str, *, has_key: bool, now: float) -> Exception:
    """The error for a response of 3xx, 4xx or 5xx, with the beginning of its body; `now` is in seconds since 1970."""
    status, text = response.status_code, body.decode(errors="replace")
    report = f"{url} answered {status} {httpx2.codes.get_reason_phrase(status)}: {_message_of_response(text)}"
    if status in (401, 403):
        hint = "the key it was given is not accepted" if has_key else f"put a key into {KEY_VARIABLE}"
        return UnauthorizedError(f"{report}. It wants an API key: {hint}")
    if status in (400, 413, 422) and is_about_context(text):
        return ContextLengthError(f"{report}. {SHORTEN}")
    if status in (408, 409, 429) or status >= 500:
        hint = "Fewer requests at once (max_concurrency) may help" if status in (408, 429) else "Look into its log"
        failure = ServerError(f"{report}. {hint}")
        failure.status, failure.retry_after = status, _seconds_from(response.headers.get("retry-after"), now)
        return TransientError(failure, failure.retry_after)
    if status < 400:
        place = response.headers.get("location", "an unknown place")
        report = f"{url} has moved to {place}: give that address"
    else:
        report += ". `motes doctor` shows what this server can do"
    refusal = RejectedError(report)
    refusal.status = status
    return refusal


def parse_response(content: str | bytes, url: str, kind: str) -> Any:
    """The value of a response of 200, or of an event of a stream; `kind` is "a response" or "an event".

    Raises:
        BadResponseError: it is not JSON, or reports an error.
        ContextLengthError: it reports that the context is full.
    """
    try:
        value = load_json(content)
    except ValueError as error:
        raise BadResponseError(
            f"{url} sent {kind} that is not JSON ({content[:80]!r}): is it an OpenAI-compatible server?"
        ) from error
    if not reports_error(value):
        return value
    report = f"{url} failed while it answered: {_message_of(value)}"
    if is_about_context(report):
        raise ContextLengthError(f"{report}. {SHORTEN}")
    raise BadResponseError(f"{report}. Look into its log")


def unknown_form(url: str, reason: str, message: Any) -> UnknownFormError:
    """The error for a response, or an event of a stream, of an unexpected form."""
    return UnknownFormError(
        f"{url} answered in a form that is not its own ({reason} in {excerpt(message)}): is another engine behind it? "
        "See `engine`"
    )


def load_json(content: str | bytes) -> Any:
    """The value of a JSON text. Unlike `motes.text.parse_json`, it keeps halves of surrogate pairs: one event of a
    stream can contain the first, and the next event the second. `Step` joins them.

    Raises:
        ValueError: it is not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(content)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise ValueError(reason)  # without the former error, which holds the whole text


def clear_frames(error: MotesError) -> None:
    """Clear the local variables in the tracebacks of an error, which hold the whole response."""
    for link in chain_of(error):
        traceback.clear_frames(link.__traceback__)


def reports_error(message: Any) -> bool:
    """Whether a response of 200, or an event of a stream, reports an error."""
    return isinstance(message, dict) and bool(message.get("error") or message.get("object") == "error")


def excerpt(value: Any, length: int = 120) -> str:
    """The beginning of a response, for messages."""
    try:
        return str(value)[:length]
    except RecursionError:
        return "a value that is nested too deeply"


def value_at(value: Any, path: Iterable[str]) -> Any:
    """The value below these keys of nested objects; None where there is none, or no key."""
    keys = list(path)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if keys else None


def whole_number_of(value: Any) -> int | None:
    """A count, which may be an int or a float; None if the value is something else."""
    is_count = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if is_count else None


def _message_of_response(text: str) -> str:
    try:
        return _message_of(load_json(text))
    except ValueError:
        return text.strip()[:200] or "(nothing said)"


def _message_of(body: Any) -> str:
    """The message in a body, in whichever of the usual places."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), None) or str(body)
    return excerpt(body, 500)


def _seconds_from(retry_after: str | None, now: float) -> float | None:
    """The seconds in a header `Retry-After`, which is a number or a date; None: neither."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
