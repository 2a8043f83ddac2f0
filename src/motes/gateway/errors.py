"""The gateway's errors, and the response to every error in OpenAI's format."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import islice
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MotesError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
    chain_of,
)

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""The status, in logs and metrics, of a request whose client disconnected before the response."""
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's types of errors by status. For any other status it is "invalid_request_error" or "server_error"."""


CONTEXT_LENGTH = "the conversation is too long for this model: shorten it"


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


class RelayedError(RefusedError):
    """The error of a server whose responses are passed through.

    Attributes:
        kind: the server's type of the error.
        retry_after: its header `Retry-After`.
    """

    def __init__(self, message: str, status: int, fields: Mapping[str, Any], retry_after: str | None) -> None:
        param, kind, code = (fields.get(name) for name in ("param", "type", "code"))
        super().__init__(message, param if isinstance(param, str) else None, status=status)
        self.code = code if isinstance(code, (str, int)) else None  # type: ignore[assignment]
        self.kind = kind if isinstance(kind, str) else None
        self.retry_after = retry_after


class BusyError(MotesError, RuntimeError):
    """The gateway has no room for the request now.

    Attributes:
        retry_after: seconds after which it may have room.
        unavailable: nobody is answered now: the gateway is shutting down, or a model behind it is not there yet.
        code: OpenAI's error code.
    """

    code = "busy"

    def __init__(self, reason: str, retry_after: float, *, unavailable: bool = False) -> None:
        super().__init__(reason)
        self.retry_after, self.unavailable = retry_after, unavailable


class QuotaError(BusyError):
    """A quota of the caller is used up."""

    code = "rate_limit_exceeded"


def is_client_error(error: Exception) -> bool:
    """Whether the request caused an error of a run, not a model behind the gateway."""
    return isinstance(error, ConfigurationError | ContextLengthError) and not isinstance(error, UnauthorizedError)


def describe(error: BaseException) -> str:
    """What failed, for the log: the types of an error and its causes, and the statuses of responses.

    The texts of errors may quote a conversation, except where nothing could be reached.
    """
    links: list[str] = []
    for link in islice(chain_of(error), 8):
        status = getattr(link, "status", None)
        reason = str(link) if isinstance(link, UnreachableError) else "" if status is None else f"status {status}"
        links.append(f"{type(link).__name__}: {reason}" if reason else type(link).__name__)
    return ", because of ".join(links)


def _busy_upstream(error: Exception) -> ServerError | None:
    """The error of an upstream server that was busy, if that caused this error; None: another reason did."""
    causes = (link for link in chain_of(error) if isinstance(link, ServerError))
    return next((cause for cause in causes if cause.is_busy), None)


def response_to_error(error: Exception, request_id: str) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """The response to an error: (status, body, headers). Clients see no details of errors of the models behind the
    gateway, and none of internal errors: these are in the log, under the request's id."""
    status, message, field, code = 400, str(error), None, None
    fields = {"fields": {"request": request_id}}
    headers: Mapping[str, str] = {}
    match error:
        case RefusedError():
            status, field, code = error.status, error.field, error.code
            if status == 401:
                headers = {"WWW-Authenticate": "Bearer"}
            if isinstance(error, RelayedError) and error.retry_after is not None:
                headers = {"Retry-After": error.retry_after}
        case BusyError():
            status, code = 503 if error.unavailable else 429, error.code
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        case HTTPException():
            status, message, headers = error.status_code, str(error.detail), error.headers or {}
        case ClientDisconnect():
            status, message = CLIENT_CLOSED_REQUEST, "the client has left"
        case ContextLengthError():
            message, field, code = CONTEXT_LENGTH, "messages", "context_length_exceeded"
        case MotesError() if is_client_error(error):
            log.warning("a request cannot be answered: %s", describe(error), extra=fields)
            message = "this model cannot answer a request with these settings"
        case MotesError():
            log.error("a model failed: %s", describe(error), extra=fields)
            status, message, code = 502, "a model behind this one failed", "upstream"
            if (busy := _busy_upstream(error)) is not None:
                status, message, code = 503, "a model behind this one is busy", "busy"
                headers = {"Retry-After": str(max(1, math.ceil(busy.retry_after or 0.0)))}
        case _:
            log.error("failed: %s", describe(error), exc_info=error, extra=fields)
            status, message = 500, f"internal error: see {request_id} in the log"
    kind = getattr(error, "kind", None)
    kind = kind or ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"error": {"message": message, "type": kind, "param": field, "code": code}}, headers
