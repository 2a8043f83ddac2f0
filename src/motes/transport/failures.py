"""Errors that stand for the responses of a server.

408, 409, 429, 5xx            ServerError, in a TransientError
401, 403                      UnauthorizedError
400, 413, 422 on the context  ContextLengthError
any other 4xx, 3xx            RejectedError
200 that reports an error     BadResponseError, or ContextLengthError
"""

from __future__ import annotations

import email.utils
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
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
)
from motes.transport.address import KEY_VARIABLE
from motes.transport.parsing import parsed
from motes.transport.refusals import is_about_context


@dataclass(eq=False)
class TransientError(Exception):
    """An attempt failed in a way that another attempt may not.

    Attributes:
        error: to raise when there is no other attempt.
        retry_after: seconds that the server wants to be left alone.
    """

    error: MotesError
    retry_after: float | None = None

    @property
    def max_attempts(self) -> float:
        """How many attempts are worth their time: a server rarely changes the form of its responses."""
        return 2 if isinstance(self.error, UnknownFormError) else math.inf


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
    if status < 400:
        place = response.headers.get("location", "an unknown place")
        return _with_status(RejectedError(f"{url} has moved to {place}: give that address"), status)
    report = f"{url} answered {status} {_phrase(status)}: {_message_of_response(response)}"
    if status in (401, 403):
        hint = "the key it was given is not accepted" if has_key else f"put a key into {KEY_VARIABLE}"
        return UnauthorizedError(f"{report}. It wants an API key: {hint}")
    if status in (408, 409, 429) or status >= 500:
        hint = "Fewer requests at once (max_concurrency) may help" if status in (408, 429) else "Look into its log"
        retry_after = _seconds_from(response.headers.get("retry-after"), now)
        return TransientError(_with_status(ServerError(f"{report}. {hint}"), status), retry_after)
    if status in (400, 413, 422) and is_about_context(response.text):
        return ContextLengthError(f"{report}. Shorten the question, or ask for fewer tokens")
    return _with_status(RejectedError(f"{report}. `motes doctor` shows what this server can do"), status)


def error_from_body(url: str, body: Mapping[str, Any]) -> MotesError:
    """The error for a response of 200, or an event of a stream, that reports an error."""
    report = f"{url} failed while it answered: {_message_of(body)}"
    if is_about_context(report):
        return ContextLengthError(f"{report}. Shorten the question, or ask for fewer tokens")
    return BadResponseError(f"{report}. Look into its log")


def _with_status(error: ServerError, status: int) -> ServerError:
    error.status = status
    return error


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


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
