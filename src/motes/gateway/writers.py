"""The events of a stream in a client's format: OpenAI's chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from motes.gateway.answering import ParsedRequest
from motes.gateway.replies import Reply, head, usage
from motes.gateway.wire import ChatRequest
from motes.text import json_line

DONE = b"data: [DONE]\n\n"


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    first = f"event: {name}\n" if name else ""
    return f"{first}data: {json_line(data, compact=True)}\n\n".encode()


def failure(body: Mapping[str, Any], _: int = 500) -> bytes:
    """The events after an error, in OpenAI's format."""
    return event(body) + DONE


class Writer(ABC):
    """Writes the events of one stream. Each method returns the events to send, which may be none. Tool calls come with
    the ending."""

    heartbeat = b": the particles are at work\n\n"
    """An event that shows that the gateway is alive."""

    @abstractmethod
    def opening(self) -> bytes:
        """The events before everything else."""

    @abstractmethod
    def text(self, index: int, text: str, *, in_thought: bool) -> bytes:
        """A piece of an answer. Answers come one after the other, from index 0 on."""

    def state(self, **fields: Any) -> bytes:
        """The state of the particles, if the request asks for it: a field `motes`."""
        return b""

    @abstractmethod
    def ending(self, reply: Reply) -> bytes:
        """The events after all texts."""

    @abstractmethod
    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        """The events after an error; `body` is the response to it in OpenAI's format."""


class ChunkWriter(Writer):
    """OpenAI's chunks, of a chat or of a completion."""

    def __init__(self, request: ParsedRequest) -> None:
        body = request.body
        self._is_chat = isinstance(body, ChatRequest)
        self._with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        self._head = head(body, "chat.completion.chunk")
        self._begun = 0  # number of answers whose role has been sent

    def opening(self) -> bytes:
        return self._role(0)

    def text(self, index: int, text: str, *, in_thought: bool) -> bytes:
        name = "reasoning_content" if in_thought else "content"
        return self._role(index) + self._piece(index, {name: text})

    def state(self, **fields: Any) -> bytes:
        return self._piece(0, {"content": ""}, motes=fields)

    def ending(self, reply: Reply) -> bytes:
        events, last = b"", len(reply.answers) - 1
        for i, answer in enumerate(reply.answers):
            events += self._role(i)
            for number, call in enumerate(answer.tool_calls):
                events += self._piece(i, {"tool_calls": [{"index": number, **call}]})
            summary = {"motes": reply.summary} if i == last else {}
            events += self._piece(i, {}, answer.finish_reason, answer.logprobs, **summary)
        if self._with_usage:
            events += self._chunk([], usage=usage(reply))
        return events + DONE

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return failure(body)

    def _role(self, index: int) -> bytes:
        """The role, which begins each answer of a chat."""
        if not self._is_chat or index < self._begun:
            return b""
        self._begun = index + 1
        return self._piece(index, {"role": "assistant", "content": ""})

    def _piece(
        self,
        index: int,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> bytes:
        """A chunk with a piece of one answer."""
        content = {"delta": delta} if self._is_chat else {"text": delta.get("content", "")}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._chunk([choice], **fields)

    def _chunk(self, choices: list[dict[str, Any]], **fields: Any) -> bytes:
        empty = {"usage": None} if self._with_usage else {}
        return event({**self._head, "choices": choices, **empty, **fields})
