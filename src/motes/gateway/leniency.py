"""What a gateway that is not strict leaves out of a request, so that clients work as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from motes.gateway.wire import (
    AcceptOnly,
    Call,
    CalledFunction,
    Function,
    Message,
    ResponseFormat,
    StreamOptions,
    TextPart,
    Tool,
)

NESTED: Mapping[tuple[type[BaseModel] | None, str], type[BaseModel]] = {
    (None, "messages"): Message,
    (None, "stream_options"): StreamOptions,
    (None, "tools"): Tool,
    (None, "response_format"): ResponseFormat,
    (Message, "content"): TextPart,
    (Message, "tool_calls"): Call,
    (Tool, "function"): Function,
    (Call, "function"): CalledFunction,
}
"""The models of fields that hold objects, by the model that has the field (None: the request). A fault in `motes` is
always named: that field is ours."""


def leave_out(body: Any, kind: type[BaseModel]) -> tuple[Any, list[str]]:
    """A JSON body without null, and without fields that have no effect here: unknown ones, and known ones that only
    tune an answer.

    Returns:
        The body, and the names of the fields left out, such as "messages.name"; null has no name.
    """
    ignored: dict[str, None] = {}
    return _leave_out(body, kind, "", ignored), list(ignored)


def _leave_out(value: Any, kind: type[BaseModel], place: str, ignored: dict[str, None]) -> Any:
    if isinstance(value, list):
        return [_leave_out(item, kind, place, ignored) for item in value]
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {}
    for name, item in value.items():
        if item is None:
            continue
        field = kind.model_fields.get(name)
        support = next((data for data in field.metadata if isinstance(data, AcceptOnly)), None) if field else None
        if field is None or (support is not None and support.may_be_ignored and not support.accepts(item)):
            ignored[place + name] = None
            continue
        nested = NESTED.get((kind if place else None, name))
        kept[name] = item if nested is None else _leave_out(item, nested, f"{place}{name}.", ignored)
    if kind is Message and "content" not in kept and isinstance(refusal := value.get("refusal"), str):
        kept["content"] = refusal  # what the assistant said instead
    return kept
