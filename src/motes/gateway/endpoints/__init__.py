"""The endpoints for answers: OpenAI's chat completions, completions and responses, and Anthropic's messages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastapi.responses import JSONResponse

from motes.gateway.endpoints.chat import CHAT, COMPLETIONS
from motes.gateway.endpoints.endpoint import Endpoint
from motes.gateway.endpoints.messages import MESSAGES
from motes.gateway.endpoints.responses import RESPONSES
from motes.gateway.errors import response_to_error
from motes.gateway.logs import RequestLog

ENDPOINTS: Mapping[str, Endpoint[Any]] = MappingProxyType(
    {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)}
)


def error_response(error: Exception, entry: RequestLog, path: str) -> JSONResponse:
    """The response to an error of a request to `path`, in the format of the API that this path belongs to. The log
    entry notes the error."""
    status, body, headers = response_to_error(error, entry.request)
    entry.note_error(body)
    return JSONResponse(_owner(path).error_body(body, status, entry.request), status, headers)


def error_events(error: Exception, entry: RequestLog, path: str) -> bytes:
    """The events after an error in a stream that is passed through, in the format of the API that its path belongs to.
    The log entry notes the error."""
    entry.status, body, _ = response_to_error(error, entry.request)
    entry.note_error(body)
    return _owner(path).failure(body, entry.status)


def _owner(path: str) -> Endpoint[Any]:
    owners = (endpoint for endpoint in ENDPOINTS.values() if f"{path}/".startswith(f"{endpoint.path}/"))
    return next(owners, CHAT)
