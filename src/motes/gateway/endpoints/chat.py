"""OpenAI's chat completions and completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from motes.gateway.answering import ParsedRequest
from motes.gateway.endpoints.endpoint import Endpoint
from motes.gateway.replies import Reply, response_body
from motes.gateway.wire import ChatRequest, CompletionRequest
from motes.gateway.writers import ChunkWriter, Writer

RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)


def _to_request(body: RequestT) -> tuple[RequestT, Sequence[str]]:
    return body, body.idle_fields


def _reply_body(_: object, request: ParsedRequest, reply: Reply) -> dict[str, Any]:
    return response_body(request, reply)


def _writer(_: object, request: ParsedRequest) -> Writer:
    return ChunkWriter(request)


CHAT = Endpoint(
    "/v1/chat/completions", "Answer a conversation.", ChatRequest, _to_request, _reply_body, _writer
)  # fmt: skip
COMPLETIONS = Endpoint(
    "/v1/completions", "Answer a question.", CompletionRequest, _to_request, _reply_body, _writer
)  # fmt: skip
