"""OpenAI's responses: what a client gets, whole or as a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motes.gateway.answering import ParsedRequest
from motes.gateway.endpoints.endpoint import Endpoint, rename_field
from motes.gateway.endpoints.responses_request import NAMES, ResponsesRequest, to_request
from motes.gateway.replies import Answer, Reply
from motes.gateway.writers import Writer, event


@dataclass(frozen=True)
class TextItem:
    """A kind of output items that have one text.

    Attributes:
        prefix: of an item's id.
        fields: of an item.
        place: the field of an item that holds the part with the text.
        part: the fields of this part, without the text.
        part_event, text_event: how the names of events about the part and the text begin.
        index: what these events call the place of the part.
    """

    prefix: str
    fields: Mapping[str, Any]
    place: str
    part: Mapping[str, Any]
    part_event: str
    text_event: str
    index: str = "content_index"

    def item(self, name: str, status: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": name, **self.fields, "status": status, self.place: list(parts)}


MESSAGE = TextItem(
    prefix="msg",
    fields={"type": "message", "role": "assistant"},
    place="content",
    part={"type": "output_text", "annotations": [], "logprobs": []},
    part_event="response.content_part",
    text_event="response.output_text",
)
THOUGHTS = TextItem(
    prefix="rs",
    fields={"type": "reasoning", "summary": []},
    place="content",
    part={"type": "reasoning_text"},
    part_event="response.content_part",
    text_event="response.reasoning_text",
)
SUMMARY = TextItem(
    prefix="rs",
    fields={"type": "reasoning"},
    place="summary",
    part={"type": "summary_text"},
    part_event="response.reasoning_summary_part",
    text_event="response.reasoning_summary_text",
    index="summary_index",
)


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def kind_of_thoughts(body: ResponsesRequest) -> TextItem:
    return SUMMARY if body.summarizes else THOUGHTS


def part(kind: TextItem, text: str, answer: Answer | None = None) -> dict[str, Any]:
    """The part of an item with its text and, if the answer is complete, its log-probabilities."""
    logprobs = answer.logprobs if kind is MESSAGE and answer is not None else None
    return {**kind.part, "text": text, **({"logprobs": logprobs.get("content") or []} if logprobs else {})}


def call_item(call: Mapping[str, Any]) -> dict[str, Any]:
    """The output item of a call, which is in the form of chat completions."""
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        **call["function"],
    }


def status_of(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def reply_body(body: ResponsesRequest, _: ParsedRequest, reply: Reply) -> dict[str, Any]:
    answer, output = reply.answers[0], []
    if answer.thoughts:
        kind = kind_of_thoughts(body)
        output.append(kind.item(new_id(kind.prefix), "completed", part(kind, answer.thoughts)))
    if answer.content or not answer.tool_calls:
        output.append(MESSAGE.item(new_id("msg"), status_of(answer), part(MESSAGE, answer.content, answer)))
    return completed(head(body), reply, [*output, *map(call_item, answer.tool_calls)])


def head(body: ResponsesRequest) -> dict[str, Any]:
    """A response that has no output yet."""
    choice, reasoning = body.tool_choice, body.reasoning
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary} if reasoning else None,
        "store": False,
        "temperature": body.temperature,
        "text": body.text.model_dump(exclude_none=True, by_alias=True) if body.text else {"format": {"type": "text"}},
        "tool_choice": "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def completed(response: Mapping[str, Any], reply: Reply, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A response with its output."""
    status = status_of(reply.answers[0])
    return {
        **response,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
        "output": output,
        "usage": {
            "input_tokens": reply.prompt_tokens,
            "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": reply.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reply.thought_tokens},
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
        "motes": reply.summary,
    }


def error_body(body: Mapping[str, Any], *_: object) -> dict[str, Any]:
    return rename_field(body, NAMES)


def error_event(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the event of an error."""
    error = error_body(body)["error"]
    flat = {name: error[name] for name in ("code", "message", "param")}  # OpenAI's form; its package raises `error`
    return {**flat, "error": error}


class ResponseWriter(Writer):
    """The events of a response. Each item is complete before the next one begins."""

    def __init__(self, body: ResponsesRequest, _: ParsedRequest) -> None:
        self._response, self._thoughts = head(body), kind_of_thoughts(body)
        self._number = 0  # of the next event
        self._output: list[Mapping[str, Any]] = []  # complete items
        self._kind: TextItem | None = None  # of the item that is being written
        self._id = self._text = ""

    def opening(self) -> bytes:
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, response=self._response) for kind in kinds)

    def text(self, index: int, text: str, *, in_thought: bool) -> bytes:
        kind = self._thoughts if in_thought else MESSAGE
        events = b"" if kind is self._kind else self._end_item() + self._begin_item(kind)
        self._text += text
        return events + self._text_event(kind, "delta", delta=text)

    def state(self, **fields: Any) -> bytes:
        return self._event("response.motes", motes=fields)

    def ending(self, reply: Reply) -> bytes:
        answer, events = reply.answers[0], b""
        is_written = self._kind is MESSAGE or any(item["type"] == "message" for item in self._output)
        if not (is_written or answer.tool_calls):
            events = self._end_item() + self._begin_item(MESSAGE)
        events += self._end_item(answer) + b"".join(map(self._call, answer.tool_calls))
        response = completed(self._response, reply, self._output)
        return events + self._event(f"response.{response['status']}", response=response)

    def failure(self, status: int, body: dict[str, Any]) -> bytes:
        return self._event("error", **error_event(body))

    def _begin_item(self, kind: TextItem) -> bytes:
        self._kind, self._id, self._text = kind, new_id(kind.prefix), ""
        item = kind.item(self._id, "in_progress")
        added = self._event("response.output_item.added", output_index=len(self._output), item=item)
        return added + self._part_event(kind, "added", part=part(kind, ""))

    def _end_item(self, answer: Answer | None = None) -> bytes:
        """End the item that is being written, if there is one. `answer`: it is the last one of this answer."""
        if (kind := self._kind) is None:
            return b""
        whole = part(kind, self._text, answer)
        events = self._text_event(kind, "done", text=self._text) + self._part_event(kind, "done", part=whole)
        item = kind.item(self._id, "completed" if answer is None else status_of(answer), whole)
        events += self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._kind = None
        return events

    def _call(self, call: Mapping[str, Any]) -> bytes:
        item, place = call_item(call), {"output_index": len(self._output)}
        about, arguments = {"item_id": item["id"], **place}, item["arguments"]
        self._output.append(item)
        begun = {**item, "status": "in_progress", "arguments": ""}
        return (
            self._event("response.output_item.added", **place, item=begun)
            + self._event("response.function_call_arguments.delta", **about, delta=arguments)
            + self._event("response.function_call_arguments.done", **about, name=item["name"], arguments=arguments)
            + self._event("response.output_item.done", **place, item=item)
        )

    def _text_event(self, kind: TextItem, name: str, **fields: Any) -> bytes:
        more: dict[str, Any] = {"logprobs": []} if kind is MESSAGE else {}
        return self._about_part(kind, f"{kind.text_event}.{name}", **fields, **more)

    def _part_event(self, kind: TextItem, name: str, **fields: Any) -> bytes:
        return self._about_part(kind, f"{kind.part_event}.{name}", **fields)

    def _about_part(self, kind: TextItem, name: str, **fields: Any) -> bytes:
        return self._event(name, item_id=self._id, output_index=len(self._output), **{kind.index: 0}, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


RESPONSES = Endpoint(
    path="/v1/responses",
    summary="Answer a conversation, in the form of OpenAI's responses.",
    kind=ResponsesRequest,
    to_request=to_request,
    reply_body=reply_body,
    writer=ResponseWriter,
    names=NAMES,
    error_body=error_body,
    failure=lambda body, _: event({"type": "error", **error_event(body)}, "error"),
)
