"""The bodies of requests: OpenAI's chat completions and completions, with the field `motes` added.

Every field has its effect, or an error names it; none is silently ignored. Only values that request nothing
(`logprobs: false`, `tools: []`, a penalty of 0) and labels (`user`, `metadata`) have no effect. A gateway that is not
strict leaves out other fields before, and says so: see `motes.gateway.leniency`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from motes.models.served.turns import ToolCall
from motes.text import well_formed_values


class AcceptOnly:
    """Restricts a field that the gateway does not support to null and to `values`, which request nothing.

    Args:
        may_be_ignored: whether a gateway that is not strict ignores other values: they change no more than how an
            answer is drawn.
    """

    def __init__(self, *values: Any, may_be_ignored: bool = False) -> None:
        self._values, self.may_be_ignored = values, may_be_ignored

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._values]}

    def accepts(self, value: Any) -> bool:
        # In Python 0 == False, in JSON not; 0 and 0.0 are the same number in both.
        same = (value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in self._values)
        return value is None or any(same)

    def _check(self, value: Any) -> Any:
        if not self.accepts(value):
            raise ValueError("this is not supported: leave it out")
        return value


class ExpectedInput:
    """Gives a field of a union type one error message, instead of one for each member of the union."""

    def __init__(self, expected: str) -> None:
        self._expected = expected

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        error = {"custom_error_type": "none_of_them", "custom_error_message": f"Input should be {self._expected}"}
        return {**handler(source), **error}


def whole_float_as_integer(value: Any) -> Any:
    """A float without a fraction as an integer. Other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Flag = Annotated[bool, Strict()]  # neither 1 nor "yes"
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict(), BeforeValidator(whole_float_as_integer)]
Unsupported = Annotated[Any, AcceptOnly()]
UnsupportedFlag = Annotated[Any, AcceptOnly(False)]
Ignorable = Annotated[Any, AcceptOnly(may_be_ignored=True)]
IgnorableFlag = Annotated[Any, AcceptOnly(False, may_be_ignored=True)]
IgnorableNumber = Annotated[Any, AcceptOnly(0.0, may_be_ignored=True)]
IgnorableList = Annotated[Any, AcceptOnly([], may_be_ignored=True)]
Positive = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1), BeforeValidator(whole_float_as_integer)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Progress = Annotated[Flag | Literal["particles"], ExpectedInput('true, false or "particles"')]


MAX_STOP = 256
"""Maximum number of characters of a stop text: the end of an answer is compared with it again and again."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(Part):
    type: Literal["text"]
    text: str


class Function(Part):
    """A tool. `parameters` is the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
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
            raise ValueError("json_schema: needs a `schema`")
        return self


class Message(Part):
    """One turn of a conversation: text, and calls of tools with their results. The role "developer" means the same as
    "system". An assistant's turn may have no content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | Annotated[list[TextPart], Field(fail_fast=True)],
        ExpectedInput('a text, or a list of {"type": "text", "text": …} and nothing else'),
    ] = ""
    name: Ignorable = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] | None = None
    tool_call_id: Name | None = None
    refusal: Ignorable = None
    annotations: IgnorableList = None  # clients send answers back as received
    audio: Ignorable = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise ValueError("content: Field required")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("tool_calls: only an assistant calls tools")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id: a tool's turn needs it, and no other has it")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

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
    def needs_turns(self) -> str | None:
        """The field for which answers must be whole turns, see `motes.gateway.turns`; None: texts will do."""
        return None


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

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
            raise ValueError("max_tokens says something else: give one of them")
        return tokens

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

    def fields_of_turns(self) -> dict[str, Any]:
        """The fields of a request to a server for a whole turn."""
        fields = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs")
        body = self.model_dump(include=set(fields), exclude_none=True, exclude_unset=True, by_alias=True)
        return {"messages": [message.raw() for message in self.messages], **body}

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def effort(self) -> str | None:
        return self.reasoning_effort


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
