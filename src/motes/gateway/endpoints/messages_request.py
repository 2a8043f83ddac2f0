"""The bodies of requests for Anthropic's messages, as requests to chat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from motes.gateway.bodies import client_field, validated
from motes.gateway.fields import (
    AcceptOnly,
    Flag,
    Ignorable,
    Name,
    Number,
    Part,
    Positive,
    Unsupported,
    Whole,
    fault_in,
)
from motes.gateway.unions import ByType
from motes.gateway.wire import ChatRequest, MotesOptions

NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "reasoning_effort": "thinking",
    "max_thinking_tokens": "thinking.budget_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    r"response_format(\.json_schema)?": "output_config.format",
    r"tools\.(\d+)\.function\.parameters": r"tools.\1.input_schema",
    r"tools\.(\d+)\.function": r"tools.\1",
}
"""The names that fields of the chat request have in the body."""

EFFORTS: Mapping[str, int] = {"low": 4096, "medium": 16384}
"""The most tokens of thought (`thinking.budget_tokens`) that are this effort; more are "high"."""

Label = Any
"""A field without effect, which servers send."""


class TextBlock(Part):
    type: Literal["text"]
    text: str
    cache_control: Ignorable = None
    citations: Label = None


class ThinkingBlock(Part):
    """What the assistant thought. It is left out: models do not see their earlier thoughts."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: Label = None
    signature: Label = None
    data: Label = None


class ToolUseBlock(Part):
    """The assistant's call of a tool."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]
    cache_control: Ignorable = None
    caller: Label = None


def _text_as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Texts = Annotated[
    list[TextBlock],
    Field(fail_fast=True),
    BeforeValidator(_text_as_blocks, json_schema_input_type=str | list[TextBlock]),
]


class ToolResultBlock(Part):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: Texts = Field(default_factory=list)
    is_error: Annotated[Any, AcceptOnly(False, may_be_ignored=True)] = None
    cache_control: Ignorable = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, ByType()]
Blocks = Annotated[
    list[Block], Field(fail_fast=True), BeforeValidator(_text_as_blocks, json_schema_input_type=str | list[Block])
]


class Turn(Part):
    role: Literal["user", "assistant", "system"]
    content: Blocks


class Tool(Part):
    """A tool of the client's. `input_schema` is the JSON schema of its arguments."""

    type: Literal["custom"] = "custom"
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: Flag | None = None
    cache_control: Ignorable = None


class ToolChoice(Part):
    """`any`: one of the tools must be called; `tool`: the one with the name."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: Flag | None = None

    @model_validator(mode="after")
    def _check_name(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise fault_in("name", 'required with type "tool", not allowed otherwise')
        return self


class Thinking(Part):
    """How much the model should think: `budget_tokens` is the thinking budget, and an effort, see `EFFORTS`. "adaptive"
    leaves it to `output_config.effort`."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Positive | None = None
    display: Ignorable = None

    @property
    def limit(self) -> int | None:
        """The thinking budget, in tokens."""
        return self.budget_tokens if self.type == "enabled" else None

    @property
    def effort(self) -> str | None:
        if self.type != "enabled" or self.budget_tokens is None:
            return None
        return next((name for name, most in EFFORTS.items() if self.budget_tokens <= most), "high")


class OutputFormat(Part):
    """`schema` is the JSON schema of the answer."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Part):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesRequest(Part):
    """`POST /v1/messages`, with `seed` and `motes` added."""

    model: Name
    max_tokens: Positive
    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    system: Texts = Field(default_factory=list)
    stop_sequences: Annotated[list[str], Field(fail_fast=True)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Whole | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    stream: Flag | None = None
    motes: MotesOptions = MotesOptions()

    metadata: Label = None
    service_tier: Label = None

    container: Unsupported = None
    mcp_servers: Annotated[Any, AcceptOnly([])] = None
    top_k: Ignorable = None

    @property
    def effort(self) -> str | None:
        """How much the model should think."""
        stated = self.output_config.effort if self.output_config else None
        return stated or (self.thinking.effort if self.thinking else None)


def to_request(body: MessagesRequest) -> tuple[ChatRequest, list[str]]:
    """The request to chat that a body makes, and the names of fields that are ignored with it."""
    system = _text(body.system)
    turns = [{"role": "system", "content": system}] if system else []
    ignored = []
    for turn in body.messages:
        turns += _turns(turn)
        if any(isinstance(block, ThinkingBlock) for block in turn.content):
            ignored.append("messages.content.thinking")
    if body.thinking is not None and body.thinking.type != "enabled" and body.thinking.budget_tokens is not None:
        ignored.append("thinking.budget_tokens")
    form = body.output_config.format if body.output_config else None
    fields: dict[str, Any] = {
        **body.model_dump(include={"model", "temperature", "top_p", "seed", "stream"}),
        "messages": turns,
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "reasoning_effort": body.effort,
        "max_thinking_tokens": body.thinking.limit if body.thinking else None,
        "response_format": _response_format(form) if form else None,
        "tools": [_tool(tool) for tool in body.tools] if body.tools else None,
        "motes": body.motes,
    }
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
        fields["parallel_tool_calls"] = False if body.tool_choice.disable_parallel_tool_use else None
    given = {name: value for name, value in fields.items() if value is not None}
    names = {**NAMES, r"messages\..*": "messages"}  # turns of a chat have other places than those in the body
    request = validated(given, ChatRequest, names)
    return request, [*ignored, *(client_field(name, NAMES) for name in request.idle_fields)]


def _turns(turn: Turn) -> list[dict[str, Any]]:
    """The turns of a chat that one turn makes: the results of calls come before the text beside them."""
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _text(block.content)}
        for block in turn.content
        if isinstance(block, ToolResultBlock)
    ]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}
        for block in turn.content
        if isinstance(block, ToolUseBlock)
    ]
    texts = [block for block in turn.content if isinstance(block, TextBlock)]
    if results and not texts and not calls:
        return results
    return [*results, {"role": turn.role, "content": _text(texts)} | ({"tool_calls": calls} if calls else {})]


def _text(blocks: list[TextBlock]) -> str:
    return "".join(block.text for block in blocks)


def _response_format(form: OutputFormat) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.schema_}}


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.model_dump(include={"name", "description", "strict"}, exclude_none=True)
    return {"type": "function", "function": {**function, "parameters": tool.input_schema}}


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.name is not None:
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
