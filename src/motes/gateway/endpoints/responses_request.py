"""The bodies of requests for OpenAI's responses, as requests to chat.

Nothing is stored here, so that each request has its whole conversation. Items may have all that the gateway sends in
them, as clients send them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from motes.gateway.bodies import client_field, validated
from motes.gateway.fields import (
    AcceptOnly,
    ExpectedInput,
    Flag,
    Ignorable,
    IgnorableFlag,
    Name,
    Number,
    Part,
    Positive,
    Unsupported,
    Whole,
)
from motes.gateway.unions import ByType
from motes.gateway.wire import ChatRequest, MotesOptions

NAMES: Mapping[str, str] = {
    r"messages(\..*)?": "input",  # turns of a chat have other places than items
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "max_thinking_tokens": "reasoning.max_tokens",
    r"response_format(\.json_schema)?": "text.format",
    "logprobs": "include",
    r"tools\.(\d+)\.function": r"tools.\1",
}
"""The names that fields of the chat request have in the body."""
LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that requests log-probabilities."""

Label = Any
"""A field without effect, which servers send."""


class TextContent(Part):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Label = None
    logprobs: Label = None


class RefusalContent(Part):
    """What the assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


def _text_as_contents(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


Content = Annotated[TextContent | RefusalContent, ByType()]
Contents = Annotated[
    list[Content], Field(fail_fast=True), BeforeValidator(_text_as_contents, json_schema_input_type=str | list[Content])
]


class MessageItem(Part):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Contents
    id: Label = None
    status: Label = None
    phase: Label = None


class FunctionCallItem(Part):
    """The assistant's call of a tool. `arguments` is JSON."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str
    id: Label = None
    status: Label = None


class FunctionCallOutputItem(Part):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: Name
    output: Contents
    id: Label = None
    status: Label = None


class ReasoningItem(Part):
    """What the assistant thought. It is left out: models do not see their earlier thoughts."""

    type: Literal["reasoning"]
    id: Label = None
    summary: Label = None
    content: Label = None
    encrypted_content: Label = None
    status: Label = None


class ItemReference(Part):
    type: Literal["item_reference"]
    id: Label = None


def _text_as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Item = Annotated[MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | ItemReference, ByType()]
Items = Annotated[
    list[Item],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_text_as_items, json_schema_input_type=str | list[Item]),
]


class FunctionTool(Part):
    """A tool of the client's. `parameters` is the JSON schema of its arguments."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Flag | None = None


class NamedFunction(Part):
    """The tool that must be called."""

    type: Literal["function"]
    name: Name


class Reasoning(Part):
    """`effort`: how much the model should think; `max_tokens`: the thinking budget. With `summary`, thoughts are in the
    summary of a reasoning item, else in its content."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    max_tokens: Positive | None = None


class TextFormat(Part):
    """`schema` is the JSON schema of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None


class TextOptions(Part):
    format: TextFormat | None = None
    verbosity: Ignorable = None


class StreamOptions(Part):
    include_obfuscation: IgnorableFlag = None


Stop = Annotated[str | Annotated[list[str], Field(fail_fast=True)], ExpectedInput("a text or a list of texts")]


class ResponsesRequest(Part):
    """`POST /v1/responses`, with `seed`, `stop` and `motes` added."""

    model: Name
    input: Items
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Whole | None = None
    stop: Stop | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = None
    tool_choice: (
        Annotated[
            Literal["none", "auto", "required"] | NamedFunction,
            ExpectedInput('"none", "auto", "required", or a function by its name'),
        ]
        | None
    ) = None
    parallel_tool_calls: Flag | None = None
    include: list[str] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    motes: MotesOptions = MotesOptions()

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None

    background: Annotated[Any, AcceptOnly(False)] = None
    conversation: Any = None
    max_tool_calls: Ignorable = None
    moderation: Unsupported = None
    previous_response_id: Any = None
    prompt: Unsupported = None
    store: IgnorableFlag = None
    truncation: Annotated[Any, AcceptOnly("disabled", may_be_ignored=True)] = None

    @field_validator("previous_response_id", "conversation")
    @classmethod
    def _refuse_stored(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("this gateway stores no responses: send the whole conversation as `input`")
        return value

    @field_validator("input")
    @classmethod
    def _refuse_references(cls, items: list[Item]) -> list[Item]:
        for i, item in enumerate(items):
            if isinstance(item, ItemReference):
                raise ValueError(
                    f"item {i} is a reference, and this gateway stores no items: send the item "
                    "itself, as clients do after `store: false`"
                )
        return items

    @property
    def summarizes(self) -> bool:
        """Whether thoughts have their place in the summary of a reasoning item, where some clients look for them."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)


def to_request(body: ResponsesRequest) -> tuple[ChatRequest, list[str]]:
    """The request to chat that a body makes, and the names of fields that are ignored with it."""
    turns = [] if not body.instructions else [{"role": "system", "content": body.instructions}]
    ignored = []
    for item in body.input:
        if isinstance(item, ReasoningItem):
            ignored.append("input.reasoning")
        else:
            _add_turn(turns, item)
    form = body.text.format if body.text else None
    fields: dict[str, Any] = {
        **body.model_dump(include={"model", "temperature", "top_p", "seed", "stop", "parallel_tool_calls", "stream"}),
        **body.model_dump(include={"user", "metadata", "safety_identifier", "service_tier"}),
        "messages": turns,
        "max_completion_tokens": body.max_output_tokens,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "max_thinking_tokens": body.reasoning.max_tokens if body.reasoning else None,
        "response_format": _response_format(form) if form else None,
        "tools": [_tool(tool) for tool in body.tools] if body.tools else None,
        "tool_choice": _tool_choice(body.tool_choice),
        "motes": body.motes,
    }
    wants_logprobs = LOGPROBS in (body.include or ())
    if wants_logprobs:
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    elif body.top_logprobs:
        ignored.append("top_logprobs")
    if set(body.include or ()) - {LOGPROBS}:
        ignored.append("include")
    if form is not None and form.type != "json_schema":
        ignored += (
            f"text.format.{name}" for name in form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
        )
    given = {name: value for name, value in fields.items() if value is not None}
    request = validated(given, ChatRequest, NAMES)
    return request, [*ignored, *(client_field(name, NAMES) for name in request.idle_fields)]


def _add_turn(turns: list[dict[str, Any]], item: Any) -> None:
    """Add an item to the turns of a chat. Calls belong to the assistant's turn before them."""
    match item:
        case MessageItem():
            turns.append({"role": item.role, "content": _text(item.content)})
        case FunctionCallItem():
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": item.arguments}
            calls = turns[-1].setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        case FunctionCallOutputItem():
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})


def _text(contents: list[Content]) -> str:
    return "".join(content.text if isinstance(content, TextContent) else content.refusal for content in contents)


def _response_format(form: TextFormat) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "json_schema": form.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)}


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}


def _tool_choice(choice: str | NamedFunction | None) -> Any:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedFunction) else choice
