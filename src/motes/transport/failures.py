"""Errors that stand for the responses of a server, and whether there is another attempt.

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
)
from motes.transport.address import KEY_VARIABLE
from motes.transport.parsing import parsed, reports_error
from motes.transport.refusals import is_about_context

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
    if isinstance(error, (ContextLengthError, RejectedError, BadResponseError)):
        return True
    return isinstance(error, ServerError) and error.status == 500


def error_from_response(response: httpx2.Response, url: str, *, has_key: bool, now: float) -> Exception:
    """The error for a response of 3xx, 4xx or 5xx, whose body has been read.

    Args:
        has_key: whether the request had an API key.
        now: seconds since 1970.
    """
    status = response.status_code
    report = f"{url} answered {status} {httpx2.codes.get_reason_phrase(status)}: {_message_of_response(response)}"
    if status in (401, 403):
        hint = "the key it was given is not accepted" if has_key else f"put a key into {KEY_VARIABLE}"
        return UnauthorizedError(f"{report}. It wants an API key: {hint}")
    if status in (400, 413, 422) and is_about_context(response.text):
        return ContextLengthError(f"{report}. {SHORTEN}")
    if status in (408, 409, 429) or status >= 500:
        hint = "Fewer requests at once (max_concurrency) may help" if status in (408, 429) else "Look into its log"
        failure = ServerError(f"{report}. {hint}")
        failure.status = status
        return TransientError(failure, _seconds_from(response.headers.get("retry-after"), now))
    if status < 400:
        place = response.headers.get("location", "an unknown place")
        report = f"{url} has moved to {place}: give that address"
    else:
        report += ". `motes doctor` shows what this server can do"
    refusal = RejectedError(report)
    refusal.status = status
    return refusal


def successful(content: str | bytes, url: str, kind: str) -> Any:
    """The value of a response of 200, or of an event of a stream.

    Args:
        kind: "a response" or "an event".

    Raises:
        BadResponseError: it is no JSON, or reports an error.
        ContextLengthError: it reports that the context is full.
    """
    try:
        value = parsed(content)
    except ValueError as error:
        raise BadResponseError(
            f"{url} sent {kind} that is no JSON ({content[:80]!r}): is it an OpenAI-compatible server?"
        ) from error
    if not reports_error(value):
        return value
    report = f"{url} failed while it answered: {_message_of(value)}"
    if is_about_context(report):
        raise ContextLengthError(f"{report}. {SHORTEN}")
    raise BadResponseError(f"{report}. Look into its log")


def _message_of_response(response: httpx2.Response) -> str:
    try:
        return _message_of(parsed(response.content))
    except ValueError:
        return response.text.strip()[:200] or "(nothing said)"


def _message_of(body: Any) -> str:
    """The message in a body, in whichever of the usual places."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), None) or json.dumps(body)
    return str(body)[:500]


def _seconds_from(retry_after: str | None, now: float) -> float | None:
    """The seconds in a header `Retry-After`, which is a number or a date; None: neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, OverflowError):
        return None
