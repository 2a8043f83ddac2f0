"""The gateway's errors, and the response to every error in OpenAI's format."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from motes.errors import ConfigurationError, ContextLengthError, MotesError, ServerError, UnauthorizedError, chain_of

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""The status, in logs and metrics, of a request whose client disconnected before the response."""
BUSY = (429, 503)
"""Statuses of upstream servers that are busy."""
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's types of errors by status. For any other status it is "invalid_request_error" or "server_error"."""
VALIDATION_MESSAGES = {
    "extra_forbidden": "there is no such field",
    "model_type": "Input should be a JSON object",
    "model_attributes_type": "Input should be a JSON object, sent as application/json",
}
"""Messages for clients by pydantic's type of error. They replace pydantic's own, which are for Python programmers."""


class RefusedError(MotesError, ValueError):
    """The gateway refuses a request.

    Attributes:
        field: the field at fault, such as "motes.particles"; None: the whole request.
        status: the HTTP status of the response.
        code: OpenAI's error code.
    """

    def __init__(self, reason: str, field: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(reason)
        self.field, self.status, self.code = field, status, code


class BusyError(MotesError, RuntimeError):
    """The gateway has no room for the request now.

    Attributes:
        retry_after: seconds after which it may have room.
        closing: the gateway is shutting down and admits no further requests.
    """

    def __init__(self, reason: str, retry_after: float, *, closing: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.closing = retry_after, closing


def is_client_error(error: Exception) -> bool:
    """Whether the request caused an error of a run, not a model behind the gateway."""
    return isinstance(error, ConfigurationError | ContextLengthError) and not isinstance(error, UnauthorizedError)


def _busy_upstream(error: Exception) -> ServerError | None:
    """The error of an upstream server that was busy, if that caused this error; None: another reason did."""
    causes = (link for link in chain_of(error) if isinstance(link, ServerError))
    return next((cause for cause in causes if cause.status in BUSY), None)


def response_to_error(error: Exception, request_id: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """The response to an error: (status, body, headers). Clients do not see the details of internal errors: these are
    in the log, under the request's id."""
    status, message, field, code = 400, str(error), None, None
    headers: Mapping[str, str] = {}
    match error:
        case RefusedError():
            status, field, code = error.status, error.field, error.code
            if status == 401:
                headers = {"WWW-Authenticate": "Bearer"}
        case BusyError():
            status, code = 503 if error.closing else 429, "busy"
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        case RequestValidationError():
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"][1:])) or None
            reason = VALIDATION_MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
            message = f"{field or 'body'}: {reason}"
        case HTTPException():
            status, message, headers = error.status_code, str(error.detail), error.headers or {}
        case ClientDisconnect():
            status, message = CLIENT_CLOSED_REQUEST, "the client has left"
        case ContextLengthError():
            field, code = "messages", "context_length_exceeded"
        case MotesError() if not is_client_error(error):  # its message may contain addresses
            log.error("a model failed: %s", error, extra={"fields": {"request": request_id}})
            status, message, code = 502, "a model behind this one failed", "upstream"
            if (busy := _busy_upstream(error)) is not None:
                status, message, code = 503, "a model behind this one is busy", "busy"
                headers = {"Retry-After": str(max(1, math.ceil(busy.retry_after or 0.0)))}
        case MotesError():
            pass
        case _:
            log.error("failed", exc_info=error, extra={"fields": {"request": request_id}})
            status, message = 500, f"internal error; the log knows it as {request_id}"
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"error": {"message": message, "type": kind, "param": field, "code": code}}, headers
