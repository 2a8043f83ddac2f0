"""Anthropic's messages: what a client gets, whole or as a stream."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from motes.gateway.answering import ParsedRequest
from motes.gateway.endpoints.endpoint import Endpoint, rename_field
from motes.gateway.endpoints.messages_request import NAMES, MessagesRequest, to_request
from motes.gateway.replies import Answer, Reply
from motes.gateway.writers import Writer, event
from motes.text import finite_json

SIGNATURE = "motes"
"""Of thinking blocks. Nobody checks it, but some clients drop a block without one."""
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's types of errors by status. For any other status it is "invalid_request_error" or "api_error"."""


def head(body: MessagesRequest) -> dict[str, Any]:
    """A message that has no content yet."""
    return {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(0, 0, 0, 0),
    }


def usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int, thought_tokens: int) -> dict[str, Any]:
    """Anthropic counts the tokens of a prompt that were cached apart."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": completion_tokens,
        "output_tokens_details": {"thinking_tokens": thought_tokens},
    }


def usage_of(reply: Reply) -> dict[str, Any]:
    return usage(reply.prompt_tokens, reply.cached_tokens, reply.completion_tokens, reply.thought_tokens)


def text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def thinking_block(text: str, signature: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": signature}


def call_block(call: Mapping[str, Any]) -> dict[str, Any]:
    """The block of a call, which is in the form of chat completions."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    return {"type": "tool_use", "id": call["id"], "name": name, "input": finite_json(arguments)}


def blocks(answer: Answer) -> list[dict[str, Any]]:
    calls = [call_block(call) for call in answer.tool_calls]
    thoughts = [thinking_block(answer.thoughts, SIGNATURE)] if answer.thoughts else []
    return [*thoughts, *([text_block(answer.content)] if answer.content or not calls else []), *calls]


def stop_fields(answer: Answer) -> dict[str, str | None]:
    reason = STOP_REASONS[answer.finish_reason] if answer.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": answer.stop}


def reply_body(body: MessagesRequest, _: ParsedRequest, reply: Reply) -> dict[str, Any]:
    answer = reply.answers[0]
    return {
        **head(body),
        "content": blocks(answer),
        **stop_fields(answer),
        "usage": usage_of(reply),
        "motes": reply.summary,
    }


def error_body(body: Mapping[str, Any], status: int, request_id: str = "") -> dict[str, Any]:
    """The body of an error. Its message names the field at fault, for which Anthropic has no other place."""
    error = rename_field(body, NAMES)["error"]
    message, param = error["message"], error["param"]
    if param is not None and not message.startswith(param):
        message = f"{param}: {message}"
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    request = {"request_id": request_id} if request_id else {}
    return {"type": "error", "error": {"type": kind, "message": message}, **request}


def failure(body: Mapping[str, Any], status: int) -> bytes:
    return event(error_body(body, status), "error")


class MessageWriter(Writer):
    """The events of a message. Each block is complete before the next one begins."""

    heartbeat = event({"type": "ping"}, "ping")

    def __init__(self, body: MessagesRequest, _: ParsedRequest) -> None:
        self._message = head(body)
        self._index = 0  # of the block that is being written, or of the next one
        self._in_thought: bool | None = None  # None: no block is being written
        self._has_text = False

    def opening(self) -> bytes:
        return self._event("message_start", message=self._message)

    def text(self, index: int, text: str, *, in_thought: bool) -> bytes:
        events = b""
        if in_thought is not self._in_thought:
            events = self._end_block() + self._begin_block(thinking_block("", "") if in_thought else text_block(""))
            self._in_thought = in_thought
            self._has_text |= not in_thought
        kind, name = ("thinking_delta", "thinking") if in_thought else ("text_delta", "text")
        return events + self._delta(kind, **{name: text})

    def state(self, **fields: Any) -> bytes:
        return self._event("motes", motes=fields)

    def ending(self, reply: Reply) -> bytes:
        answer, events = reply.answers[0], b""
        if not (self._has_text or answer.tool_calls):
            events = self.text(0, "", in_thought=False)
        events += self._end_block()
        for call in answer.tool_calls:
            events += self._begin_block({**call_block(call), "input": {}})
            events += self._delta("input_json_delta", partial_json=call["function"]["arguments"])
            self._in_thought = False
            events += self._end_block()
        events += self._event("message_delta", delta=stop_fields(answer), usage=usage_of(reply), motes=reply.summary)
        return events + self._event("message_stop")

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return failure(body, status)

    def _begin_block(self, block: Mapping[str, Any]) -> bytes:
        return self._event("content_block_start", index=self._index, content_block=block)

    def _end_block(self) -> bytes:
        """End the block that is being written, if there is one."""
        if self._in_thought is None:
            return b""
        signature = self._delta("signature_delta", signature=SIGNATURE) if self._in_thought else b""
        events = signature + self._event("content_block_stop", index=self._index)
        self._index, self._in_thought = self._index + 1, None
        return events

    def _delta(self, kind: str, **fields: Any) -> bytes:
        return self._event("content_block_delta", index=self._index, delta={"type": kind, **fields})

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)


MESSAGES = Endpoint(
    path="/v1/messages",
    summary="Answer a conversation, in the form of Anthropic's messages.",
    kind=MessagesRequest,
    to_request=to_request,
    reply_body=reply_body,
    writer=MessageWriter,
    names=NAMES,
    error_body=error_body,
    failure=failure,
)
