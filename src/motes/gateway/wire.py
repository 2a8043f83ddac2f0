"""The bodies of requests: OpenAI's chat completions and completions, with the field `motes` added.

Every field has its effect, or an error names it; none is silently ignored. Only values that request nothing
(`logprobs: false`, `tools: []`, a penalty of 0) and labels (`user`, `metadata`) have no effect. A gateway that is not
strict leaves out other fields before, and says so: see `motes.gateway.leniency`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationInfo, field_validator, model_validator

from motes.gateway.fields import (
    AcceptOnly,
    ExpectedInput,
    Flag,
    Ignorable,
    IgnorableFlag,
    IgnorableList,
    IgnorableNumber,
    Name,
    Number,
    Part,
    Positive,
    Unsupported,
    UnsupportedFlag,
    Whole,
    fault_in,
    whole_float_as_integer,
)
from motes.gateway.schemas import MAX_SCHEMA_VALUES, check_schema, num_values
from motes.models.served.turns import ToolCall
from motes.text import well_formed_values

MAX_STOP = 256
"""Maximum number of characters of a stop text: the end of an answer is compared with it again and again."""

Progress = Annotated[Flag | Literal["particles"], ExpectedInput('true, false or "particles"')]


WITH_TOOLS = ("tool_choice", "parallel_tool_calls")
"""Fields that have an effect only with tools."""


class TextPart(Part):
    type: Literal["text"]
    text: str


class Function(Part):
    """A tool. `parameters` is the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] = Field({"type": "object", "properties": {}})
    strict: Flag | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    name: Name


class NamedTool(Part):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Part):
    name: Name
    arguments: str


class Call(Part):
    """A call of a tool in an assistant's turn."""

    id: Name
    type: Literal["function"] = "function"
    function: CalledFunction


class JSONSchema(Part):
    """`schema` is the schema itself."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None


class ResponseFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise fault_in("json_schema", "needs a `schema`")
        return self

    @property
    def schema_(self) -> dict[str, Any] | None:
        """The schema of the answer."""
        return None if self.json_schema is None or self.type == "text" else self.json_schema.schema_


class Message(Part):
    """One turn of a conversation: text, and calls of tools with their results. The role "developer" means the same as
    "system". An assistant's turn may have no content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            str | Annotated[list[TextPart], Field(fail_fast=True)],
            ExpectedInput('a text, or a list of {"type": "text", "text": …} and nothing else'),
        ]
        | None
    ) = None
    name: Ignorable = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] | None = None
    tool_call_id: Name | None = None
    refusal: Ignorable = None
    annotations: IgnorableList = None  # clients send answers back as received
    audio: Ignorable = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.role != "assistant" and self.content is None:
            raise fault_in("content", "Field required")
        if self.tool_calls and self.role != "assistant":
            raise fault_in("tool_calls", 'allowed only with role "assistant"')
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise fault_in("tool_call_id", 'required with role "tool", not allowed otherwise')
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def turn(self) -> dict[str, str]:
        """The turn as a text, in the form that `motes.Problem` takes."""
        calls = [ToolCall(call.function.name, call.function.arguments).text for call in self.tool_calls or ()]
        text = "\n".join([*([self.text] if self.text else []), *calls])
        if self.role == "tool":
            return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
        return {"role": "system" if self.role == "developer" else self.role, "content": text}

    def raw(self) -> dict[str, Any]:
        """The turn as servers take it."""
        turn: dict[str, Any] = {"role": self.turn()["role"] if self.role != "tool" else "tool", "content": self.text}
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        return turn


class StreamOptions(Part):
    """`include_usage`: send the usage in a last chunk of its own."""

    include_usage: Flag | None = None
    include_obfuscation: IgnorableFlag = None


class MotesOptions(Part):
    """The field `motes` of a request.

    Attributes:
        method: one of the methods that the model allows.
        particles: the number of trajectories.
        deadline: seconds after which the best answer so far is returned.
        progress: what a stream sends after each round: true, the state of the population in numbers; "particles", the
            whole population as well, in the format of `motes.lab.Round`, and at the end all trajectories that the
            answer was selected from.
    """

    method: Name | None = None
    particles: Positive | None = None
    deadline: Annotated[Number, Field(gt=0)] | None = None
    progress: Progress = False


class _Request(Part):
    """The fields that both endpoints take.

    Attributes:
        temperature: the language model's, for each particle. 0 means the configured temperature, since at 0 all
            particles would be the same, and a seed that depends on the request alone, so that the same request gets the
            same answer, as with `seed`.
        top_p: the language model's, for each particle.
        n: number of answers: those with the most posterior mass, fewer if the run has fewer.
        seed: the same seed gives the same answer, as far as the upstream models honour seeds.
        stop: up to four texts of up to 256 characters that end an answer; the answer does not contain them.
        user, metadata, safety_identifier, service_tier: labels, without effect.
    """

    model: Name
    max_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Positive | None = None
    seed: Whole | None = None
    stop: (
        Annotated[str | Annotated[list[str], Field(fail_fast=True)], ExpectedInput("a text or a list of texts")] | None
    ) = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    motes: MotesOptions = MotesOptions()

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None

    frequency_penalty: IgnorableNumber = None
    presence_penalty: IgnorableNumber = None
    logit_bias: Annotated[Any, AcceptOnly({}, may_be_ignored=True)] = None

    @model_validator(mode="before")
    @classmethod
    def _replace_surrogates(cls, body: Any) -> Any:
        """Replace halves of surrogate pairs by U+FFFD. Clients that cut texts in UTF-16 send such halves."""
        return well_formed_values(body)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(texts):
            raise ValueError("at most four texts, none of them empty")
        if any(len(text) > MAX_STOP for text in texts):
            raise ValueError(f"at most {MAX_STOP} characters each")
        return stop

    @field_validator("stream_options")
    @classmethod
    def _check_stream(cls, options: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if options is not None and not info.data.get("stream"):
            raise ValueError("is allowed only with stream: true")
        return options

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def token_limit(self) -> int | None:
        """The maximum number of tokens of one answer."""
        return self.max_tokens

    @property
    def effort(self) -> str | None:
        """How much the model should think."""
        return None

    @property
    def thinking_limit(self) -> int | None:
        """The thinking budget, in tokens."""
        return None

    @property
    def needs_turns(self) -> str | None:
        """The field for which answers must be whole turns, see `motes.gateway.turns`; None: texts will do."""
        return None

    @property
    def idle_fields(self) -> list[str]:
        """The fields that have no effect because another field is missing."""
        return [] if self.stream or not self.motes.progress else ["motes.progress"]


class Reasoning(Part):
    """`max_tokens`: the thinking budget, in OpenRouter's form. `effort`: see `reasoning_effort`."""

    max_tokens: Positive | None = None
    effort: str | None = None
    exclude: IgnorableFlag = None
    enabled: Ignorable = None


class ChatRequest(_Request):
    """`POST /v1/chat/completions`.

    Attributes:
        max_thinking_tokens: the thinking budget, see `motes.Sampling`; at most the virtual model's. Also written
            `thinking_token_budget`, as vLLM does, and `reasoning: {"max_tokens": …}`.
    """

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Positive | None = None

    audio: Unsupported = None
    function_call: Annotated[Any, AcceptOnly("none")] = None
    functions: Annotated[Any, AcceptOnly([])] = None
    logprobs: Flag | None = None
    modalities: Annotated[Any, AcceptOnly(["text"])] = None
    parallel_tool_calls: Flag | None = None
    prediction: Ignorable = None
    reasoning_effort: str | None = None
    max_thinking_tokens: Positive | None = None
    thinking_token_budget: Positive | None = None
    reasoning: Reasoning | None = None
    response_format: ResponseFormat | None = None
    store: IgnorableFlag = None
    tool_choice: (
        Annotated[
            Literal["none", "auto", "required"] | NamedTool,
            ExpectedInput('"none", "auto", "required" or a tool by its name'),
        ]
        | None
    ) = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=20), BeforeValidator(whole_float_as_integer)] | None = None

    @field_validator("messages")
    @classmethod
    def _check_prompt(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role not in ("user", "tool") or not messages[-1].turn()["content"].strip():
            raise ValueError("the last message must be the user's or a tool's, and not empty")
        return messages

    @field_validator("tools")
    @classmethod
    def _check_names(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools

    @field_validator("max_completion_tokens")
    @classmethod
    def _check_limits_agree(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if tokens is not None and info.data.get("max_tokens") not in (None, tokens):
            raise ValueError("differs from max_tokens: send only one of them")
        return tokens

    @model_validator(mode="after")
    def _check_tool_choice(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise fault_in("tool_choice", f"`tools` has no tool {self.tool_choice.function.name!r}")
        if self.tool_choice == "required" and not names:
            raise fault_in("tool_choice", '"required" needs `tools`')
        return self

    @model_validator(mode="after")
    def _check_schemas(self) -> ChatRequest:
        schemas = {
            f"tools.{i}.function.parameters": tool.function.parameters for i, tool in enumerate(self.tools or ())
        }
        if self.response_format is not None and (described := self.response_format.schema_) is not None:
            schemas["response_format.json_schema.schema"] = described
        if num_values(schemas.values()) > MAX_SCHEMA_VALUES:
            reason = f"the schemas of a request have at most {MAX_SCHEMA_VALUES:,} values together"
            raise fault_in(max(schemas, key=lambda place: num_values([schemas[place]])), reason)
        for place, schema in schemas.items():
            try:
                check_schema(schema)
            except ValueError as error:
                raise fault_in(place, str(error)) from None
        return self

    def turns(self) -> list[dict[str, str]]:
        """The conversation in the form that `motes.Problem` takes."""
        return [message.turn() for message in self.messages]

    @property
    def needs_turns(self) -> str | None:
        if self.tools:
            return "tools"
        if any(message.tool_calls or message.role == "tool" for message in self.messages):
            return "messages"
        if self.response_format is not None and self.response_format.type != "text":
            return "response_format"
        return "logprobs" if self.logprobs else None

    @property
    def idle_fields(self) -> list[str]:
        fields = [] if self.tools else [name for name in WITH_TOOLS if getattr(self, name) is not None]
        if self.top_logprobs and not self.logprobs:
            fields.append("top_logprobs")
        form = self.response_format
        if form is not None and form.type == "text" and form.json_schema is not None:
            fields.append("response_format.json_schema")
        return [*fields, *super().idle_fields]

    def fields_of_turns(self) -> dict[str, Any]:
        """The fields of a request to a server for a whole turn."""
        fields = {"tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs"}
        fields -= {name.partition(".")[0] for name in self.idle_fields}
        body = self.model_dump(include=fields, exclude_none=True, exclude_unset=True, by_alias=True)
        return {"messages": [message.raw() for message in self.messages], **body}

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def effort(self) -> str | None:
        inner = self.reasoning.effort if self.reasoning else None
        return inner if self.reasoning_effort is None else self.reasoning_effort

    @property
    def thinking_limit(self) -> int | None:
        inner = self.reasoning.max_tokens if self.reasoning else None
        budgets = (self.max_thinking_tokens, self.thinking_token_budget, inner)
        return min((budget for budget in budgets if budget is not None), default=None)


class CompletionRequest(_Request):
    """`POST /v1/completions`. The prompt becomes the user's turn of a chat: the model answers, it does not continue the
    text."""

    prompt: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=1)], ExpectedInput("a text, or a list of one text")
    ]

    best_of: Annotated[Any, AcceptOnly(1, may_be_ignored=True)] = None
    echo: UnsupportedFlag = None
    logprobs: Unsupported = None
    suffix: Annotated[Any, AcceptOnly("")] = None

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | list[str]) -> str | list[str]:
        if not (prompt if isinstance(prompt, str) else prompt[0]).strip():
            raise ValueError("must not be empty")
        return prompt

    def turns(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt if isinstance(self.prompt, str) else self.prompt[0]}]


Request = ChatRequest | CompletionRequest
