"""What clients send: OpenAI's chat completions and completions, and motes' own fields beside theirs.

Every field is honoured, or makes the request one that names it; none is dropped in silence. Taken without effect are
only values that ask for nothing (`logprobs: false`, `tools: []`, a penalty of 0) and labels (`user`, `metadata`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from motes.errors import MissingExtraError
from motes.text import well_formed_values

try:
    from pydantic import (
        AfterValidator,
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
except ImportError as error:
    raise MissingExtraError("the gateway", "serve") from error


class Only:
    """Of a field that cannot be honoured: the values, besides null, that ask for nothing."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self._values]}

    def _check(self, value: Any) -> Any:
        if value is None or any(type(value) is type(nothing) and value == nothing for nothing in self._values):
            return value
        raise ValueError("this cannot be honoured here: leave it out")


class Either:
    """Of a field that may be one of several things: what is said where it is none of them, instead of what is wrong
    with it as each."""

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        words = {"custom_error_type": "none_of_them", "custom_error_message": f"Input should be {self._wanted}"}
        return {**handler(source), **words}


def counted(value: Any) -> Any:
    """A whole number in JSON may be 0 or 0.0; true is none."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def whole(value: Any) -> Any:
    """The same the other way round."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Flag = Annotated[bool, Strict()]  # neither 1 nor "yes"
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict(), BeforeValidator(whole)]
Refused = Annotated[Any, Only()]
Switch = Annotated[Any, Only(False)]
Penalty = Annotated[Any, AfterValidator(counted), Only(0.0)]
Positive = Annotated[int, Strict(), Field(ge=1), BeforeValidator(whole)]
Progress = Annotated[Flag | Literal["particles"], Either('true, false or "particles"')]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(Part):
    type: Literal["text"]
    text: str


class Message(Part):
    """One turn of a conversation, text alone. "developer" is another word for "system"."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | list[TextPart], Either('a text, or a list of {"type": "text", "text": …} and nothing else')
    ]
    name: Refused = None
    tool_calls: Annotated[Any, Only([])] = None
    tool_call_id: Refused = None
    refusal: Refused = None
    annotations: Annotated[Any, Only([])] = None  # these, as clients send back what they were sent
    audio: Refused = None
    function_call: Refused = None

    def turn(self) -> dict[str, str]:
        """As `motes.Problem` has it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Part):
    """`include_usage`: a last chunk that holds nothing but the usage."""

    include_usage: Flag | None = None
    include_obfuscation: Switch = None


class Own(Part):
    """The field `motes` of a request.

    Attributes:
        method: one of the methods that the model allows. particles: the number of trajectories.
        deadline: seconds until the best answer so far is given.
        progress: in a stream, tell of each round of the population: true, how it is; "particles", all of it, as
            `motes.lab.Round` has it, and at the end what the answer was selected from.
    """

    method: str | None = None
    particles: Positive | None = None
    deadline: Annotated[Number, Field(gt=0)] | None = None
    progress: Progress = False


class Request(Part):
    """What both endpoints take.

    Attributes:
        temperature: the language model's, for each particle. 0 stands for the model's own setting: it would make all
            particles the same, and what it is meant for, the same answer again, a `seed` gives at any temperature.
        top_p: the language model's, for each particle.
        n: answers, those with the most posterior mass; fewer where there are fewer.
        seed: the same one gives the same answer, as far as the model behind keeps its word.
        stop: up to four texts that end an answer; none of them is part of it.
        user, metadata, safety_identifier, service_tier: labels, without effect.
    """

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Positive | None = None
    seed: Whole | None = None
    stop: Annotated[str | list[str], Either("a text or a list of texts")] | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    motes: Own = Own()

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None

    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: Annotated[Any, Only({})] = None

    @model_validator(mode="before")
    @classmethod
    def _well_formed(cls, body: Any) -> Any:
        """Half of a surrogate pair, which clients that count in UTF-16 send, becomes U+FFFD."""
        return well_formed_values(body)

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 4 or not all(texts):
            raise ValueError("at most four texts, none of them empty")
        return stop

    @field_validator("stream_options")
    @classmethod
    def _in_streams(cls, options: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if options is not None and not others.data.get("stream"):
            raise ValueError("goes with stream: true")
        return options

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def turns(self) -> list[dict[str, str]]:
        """The conversation, as `motes.Problem` has it."""
        raise NotImplementedError

    @property
    def longest(self) -> int | None:
        """Tokens of one answer at most."""
        return self.max_tokens


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None

    audio: Refused = None
    function_call: Annotated[Any, Only("none")] = None
    functions: Annotated[Any, Only([])] = None
    logprobs: Switch = None
    modalities: Annotated[Any, Only(["text"])] = None
    parallel_tool_calls: Flag | None = None
    prediction: Refused = None
    reasoning_effort: Refused = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    store: Switch = None
    tool_choice: Annotated[Any, Only("none", "auto")] = None
    tools: Annotated[Any, Only([])] = None
    top_logprobs: Annotated[Any, AfterValidator(counted), Only(0.0)] = None

    @field_validator("messages")
    @classmethod
    def _asks(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user" or not messages[-1].turn()["content"].strip():
            raise ValueError("the last message must be the user's, and not empty")
        return messages

    @field_validator("max_completion_tokens")
    @classmethod
    def _once(cls, tokens: int | None, others: ValidationInfo) -> int | None:
        if tokens is not None and others.data.get("max_tokens") not in (None, tokens):
            raise ValueError("max_tokens says something else: give one of them")
        return tokens

    def turns(self) -> list[dict[str, str]]:
        return [message.turn() for message in self.messages]

    @property
    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Request):
    """`POST /v1/completions`. The prompt is the user's turn: what answers is a chat model, not one that goes on."""

    prompt: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=1)], Either("a text, or a list of one text")
    ]

    best_of: Annotated[Any, Only(1)] = None
    echo: Switch = None
    logprobs: Refused = None
    suffix: Annotated[Any, Only("")] = None

    @field_validator("prompt")
    @classmethod
    def _asks(cls, prompt: str | list[str]) -> str | list[str]:
        if not (prompt if isinstance(prompt, str) else prompt[0]).strip():
            raise ValueError("must not be empty")
        return prompt

    def turns(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt if isinstance(self.prompt, str) else self.prompt[0]}]
