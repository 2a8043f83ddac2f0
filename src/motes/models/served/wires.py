"""The request formats of engines: how a request continues a prompt, and what a response to it contains.

This module has what all formats share, and OpenAI's two; `native` has the others, and `WIRES` with all of them.

    completions   POST /v1/completions        vLLM (token ids), transformers serve, unknown servers
    chat          POST /v1/chat/completions   where nothing else works
    llama.cpp     POST /completion            token ids, `stop_type`
    sglang        POST /generate              token ids, `finish_reason.matched`
    tgi           POST /generate              text, `details.finish_reason`
    ollama        POST /api/generate          text, raw prompts

A format has one reader for whole responses and for the events of a stream: `Wire.deltas`. Either message contains
pieces of answers, and a whole response contains each answer as a single piece.

Some formats do not say whether a delimiter or the end of sequence ended an answer. Requests in these have no
delimiters: the answer comes as a stream, and this side cuts it at the delimiter (`Request.is_cut`). The same goes for
steps that end at a match of a pattern, in every format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from motes.core import Sampling, StepEnd
from motes.models.served.ends import end_of
from motes.models.served.messages import Piece, pieces_of
from motes.models.served.profiles import Profile
from motes.transport import Address, value_at

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Values that OpenAI's format defines for fields that a request omits."""


@dataclass(frozen=True)
class Prompt:
    """A conversation and the answer so far: as token ids, as text, or as messages and a prefix of the answer.

    Attributes:
        before: text at the end of the prompt that belongs to the next step: the previous token's text behind the end of
            the previous step, or the tag with which a chat template opens the answer.
        length: number of tokens of `text`, if it is known.
    """

    ids: tuple[int, ...] | None = None
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    prefix: str = ""
    before: str = ""
    length: int | None = None

    @property
    def content(self) -> list[int] | str:
        """The token ids or the text, as a request contains them."""
        return list(self.ids) if self.ids is not None else self.text or ""

    @property
    def known_tokens(self) -> int | None:
        return self.length if self.ids is None else len(self.ids)

    @property
    def num_tokens(self) -> int:
        """The number of tokens, or an estimate where it is unknown."""
        texts = (self.text or "", self.prefix, *(message["content"] for message in self.messages))
        return estimate(texts) if self.known_tokens is None else self.known_tokens


@dataclass(frozen=True)
class Request:
    """One call of a server.

    Attributes:
        prompts: (P,); n: answers to each prompt. The P·n answers are in the order of their prompts.
        limit: tokens of each answer at most.
        seed: None: the server chooses one.
        is_cut: whether this side finds the ends of steps, in a stream.
        streams_several: whether several answers come as a stream, so that each arrives when it ends.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    limit: int
    n: int = 1
    seed: int | None = None
    logprobs: bool = False
    is_cut: bool = False
    streams_several: bool = False

    @property
    def num_answers(self) -> int:
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def is_streamed(self) -> bool:
        return self.is_cut or (self.streams_several and self.num_answers > 1)

    @property
    def stops(self) -> list[str]:
        """Stop strings for the server."""
        return [] if self.is_cut else [*self.sampling.delimiters, *self.sampling.stops]


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: in a whole response all of it, in an event of a stream usually a token.

    Attributes:
        index: which answer of the call; None: the message does not say.
        pieces: texts and thoughts, in formats with separate thoughts; `text` is empty there.
        finish: the server's finish reason. None and "" also stand in pieces that are not the last.
        stop: the stop string that ended the answer, or the token's id, if the engine returns it.
        is_cumulative: whether text, ids and log-probabilities repeat the answer from its beginning.
        num_tokens: tokens of the answer so far, if the server counts them: a stream may omit some of their ids.
    """

    index: int | None = None
    text: str = ""
    pieces: tuple[Piece, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: str | None = None
    stop: str | int | None = None
    is_cumulative: bool = False
    num_tokens: int | None = None

    @property
    def estimated_tokens(self) -> int:
        return estimate((self.text, *(piece.text for piece in self.pieces)))

    def end(self, request: Request, url: str, num_tokens: int) -> StepEnd:
        """What ended the answer of `num_tokens` tokens whose last piece this is."""
        by_text = isinstance(self.stop, str) and bool(request.stops)
        return end_of(self.finish, url, is_full=num_tokens >= request.limit, by_text=by_text)


class Counts(NamedTuple):
    """Numbers of tokens that a server returns for a call; None where it does not."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None

    def updated(self, later: Counts) -> Counts:
        """The later counts, and the earlier ones where those are None."""
        return Counts(*(old if new is None else new for old, new in zip(self, later, strict=True)))


class Wire(ABC):
    """A request format.

    Attributes:
        route: its path below the server's root (of OpenAI's formats: below the address).
        limit_field, seed_field: its names of the limit on tokens and of the seed.
        streams: whether answers can come as a stream.
        has_whole_tokens: whether the text of a response ends where its last token ends. Otherwise the text of a step
            ends with its delimiter, and the rest of the token that completed the delimiter is missing.
        event_key: a field of all events with a piece of an answer. Others only keep the connection alive.
        count_paths: fields with the counts of a call: of the prompt's tokens, of the answer's, and of those of the
            prompt that were in the prefix cache.
        omitted: fields that the server has refused (`omit`).
    """

    route: ClassVar[str]
    limit_field: str = "max_tokens"
    seed_field: ClassVar[str] = "seed"
    streams: ClassVar[bool] = True
    has_whole_tokens: ClassVar[bool] = False
    event_key: ClassVar[str | None] = None
    count_paths: ClassVar[tuple[Sequence[str], Sequence[str], Sequence[str]]]

    def __init__(self, address: Address, model: str, profile: Profile) -> None:
        self.address = address
        self.model = model
        self.profile = profile
        self.omitted: set[str] = set()

    @property
    def url(self) -> str:
        return f"{self.address.root}/{self.route}"

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON body of a request, without omitted fields."""
        return {field: value for field, value in self._body(request).items() if field not in self.omitted}

    def omit(self, field: str, request: Request) -> bool:
        """Omit this field from now on, if it has its default. Returns whether that changes the body."""
        if field not in DEFAULTS or self.body(request).get(field) != DEFAULTS[field]:
            return False
        self.omitted.add(field)
        return True

    def deltas(self, message: Any, request: Request) -> list[Delta]:
        """The pieces of answers in a whole response, or in an event of a stream.

        Raises:
            motes.transport.MALFORMED: the message has another form.
        """
        if request.is_streamed and self.event_key is not None and self.event_key not in message:
            return []  # an event that keeps the connection alive
        return [self._delta(item, request) for item in _items(message)]

    def counts(self, message: Any) -> Counts:
        """The counts in a whole response, or in an event of a stream, whatever its form. Several answers with counts of
        their own have the prompt in common."""
        items = [item for item in _items(message) if isinstance(item, dict)] or [{}]
        items.sort(key=lambda item: whole_number_of(item.get("index")) or 0)
        prompts, completions, cached = (
            [whole_number_of(value_at(i, path)) for i in items] for path in self.count_paths
        )
        known = [count for count in completions if count is not None]
        return Counts(prompts[0], sum(known) if known else None, cached[0])

    @abstractmethod
    def _body(self, request: Request) -> dict[str, Any]: ...

    def _options(self, request: Request) -> dict[str, Any]:
        """The fields that most formats have, under their own names."""
        options = {**self.profile.sampling_fields(request.sampling), self.limit_field: request.limit}
        if request.stops:
            options["stop"] = request.stops
            if self.profile.keeps_stop is not None:
                options[self.profile.keeps_stop] = True
        if request.n > 1 and self.profile.choices:
            options[self.profile.choices] = request.n
        if request.seed is not None:
            options[self.seed_field] = request.seed
        return options

    @abstractmethod
    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        """A piece of one answer."""


def _items(message: Any) -> list[Any]:
    """The answers of a response, which are a list if there are several."""
    return message if isinstance(message, list) else [message]


class Completions(Wire):
    """OpenAI's format; with vLLM's `stop_reason`, `return_token_ids` and `include_stop_str_in_output`."""

    route = "completions"
    count_paths = (
        ("usage", "prompt_tokens"),
        ("usage", "completion_tokens"),
        ("usage", "prompt_tokens_details", "cached_tokens"),
    )

    @property
    def url(self) -> str:
        return f"{self.address.base}/{self.route}"

    def _body(self, request: Request) -> dict[str, Any]:
        prompts = [prompt.content for prompt in request.prompts]
        body = {"prompt": prompts[0] if len(prompts) == 1 else prompts, **self._options(request)}
        if self.profile.takes_ids:
            body |= {"return_token_ids": True, "add_special_tokens": False}
        if request.logprobs:
            body["logprobs"] = 0
        return body

    def _options(self, request: Request) -> dict[str, Any]:
        options = {"model": self.model, "stream": request.is_streamed, **super()._options(request)}
        if request.is_streamed and not request.is_cut:  # this side leaves a stream that it cuts before the usage comes
            options |= {"stream_options": {"include_usage": True}, "stream_interval": 1 << 16}
        return options

    def deltas(self, message: Any, request: Request) -> list[Delta]:
        return [self._delta(choice, request) for choice in message.get("choices") or ()]

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        index = item.get("index")
        if index is not None and int(index) < 0:
            raise ValueError(f"an index of {index}")
        has_content = any(item.get(name) is not None for name in ("message", "delta", "text"))
        if not (request.is_streamed or item.get("finish_reason") or has_content):
            raise KeyError("message")
        # Log-probabilities have the form of completions, or that of chats, as llama.cpp returns them.
        tokens = value_at(item, ("logprobs", "content")) or ()
        logprobs = value_at(item, ("logprobs", "token_logprobs")) or [token.get("logprob") for token in tokens]
        return Delta(
            index=None if index is None else int(index),
            text=str(item.get("text") or ""),
            pieces=pieces_of(item.get("message") or item.get("delta")),
            token_ids=whole_numbers_of(item.get("token_ids")),
            logprobs=logprobs_of(logprobs),
            finish=item.get("finish_reason"),
            stop=item.get("stop_reason", item.get("matched_stop")),  # vLLM's name, SGLang's name
        )

    def counts(self, message: Any) -> Counts:
        counts = super().counts(message)
        if counts.cached is None:
            counts = counts._replace(cached=whole_number_of(value_at(message, ("usage", "prompt_cache_hit_tokens"))))
        return counts  # DeepSeek's name


class Chat(Completions):
    """OpenAI's chat. The answer's prefix is a last message of the assistant, which the server continues."""

    route = "chat/completions"

    def __init__(self, address: Address, model: str, profile: Profile) -> None:
        super().__init__(address, model, profile)
        self.limit_field = profile.chat_limit

    def _body(self, request: Request) -> dict[str, Any]:
        (prompt,) = request.prompts
        if not prompt.prefix:
            return {"messages": list(prompt.messages), **self._options(request)}
        messages = [*prompt.messages, {"role": "assistant", "content": prompt.prefix}]
        return {"messages": messages, **self._options(request), **(self.profile.prefill or {})}

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        return replace(super()._delta(item, request), token_ids=(), logprobs=())  # a chat continues text


def estimate(texts: Iterable[str]) -> int:
    """About how many tokens these texts are, four characters to a token."""
    return -(-sum(map(len, texts)) // 4)


def whole_number_of(value: Any) -> int | None:
    """A count, as int or float; None: it is something else."""
    is_count = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if is_count else None


def whole_numbers_of(values: Iterable[Any] | None) -> tuple[int, ...]:
    """Token ids."""
    return tuple(int(value) for value in values or ())


def logprobs_of(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probabilities; none at all if one is missing, as their sum would be that of other tokens."""
    return () if None in values else tuple(float(value) for value in values)
