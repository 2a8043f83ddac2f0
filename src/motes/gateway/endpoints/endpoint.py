"""An endpoint for answers: an API that clients speak, over the same core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from motes.gateway.answering import ParsedRequest
from motes.gateway.bodies import ToRequest, client_field
from motes.gateway.replies import Reply
from motes.gateway.writers import Writer, failure

BodyT = TypeVar("BodyT", bound=BaseModel)


def rename_field(body: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The body of an error in OpenAI's format, with the client's name of the field at fault, see `client_field`."""
    error = body["error"]
    field, message = error["param"], error["message"]
    if field is None:
        return {"error": error}
    name = client_field(field, names)
    if message.startswith(field):
        message = name + message.removeprefix(field)
    return {"error": {**error, "param": name, "message": message}}


@dataclass(frozen=True)
class Endpoint(Generic[BodyT]):
    """An endpoint for answers.

    Attributes:
        summary: what it does, in one sentence.
        kind: the form of the bodies of requests.
        to_request: converts a body to a chat or completion request, so that limits and options are implemented once.
        reply_body: the body of the response to a request that does not stream.
        writer: writes the response to a request that streams.
        names: the names that fields of the request have in the body, see `client_field`.
        error_body: makes the body of an error of one in OpenAI's format, the status and the request's id.
        failure: makes the events after an error in a stream that is passed through, of the same and the status.
    """

    path: str
    summary: str
    kind: type[BodyT]
    to_request: ToRequest[BodyT]
    reply_body: Callable[[BodyT, ParsedRequest, Reply], dict[str, Any]]
    writer: Callable[[BodyT, ParsedRequest], Writer]
    names: Mapping[str, str] = field(default_factory=dict)
    error_body: Callable[[Mapping[str, Any], int, str], Mapping[str, Any]] = lambda body, status, request_id: body
    failure: Callable[[Mapping[str, Any], int], bytes] = failure
