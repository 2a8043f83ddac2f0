"""The request formats of engines: how a request continues a prompt, and what a response to it contains.

This module has what all formats share, OpenAI's two, and what an engine needs (`Profile`); `engines` has the others.

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

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from motes.core import Certainty, Sampling
from motes.core.certainty import certainty_of_pairs
from motes.errors import ConfigurationError
from motes.models.served.messages import Piece, pieces_of
from motes.models.served.prompts import Prompt, ServerRenderer
from motes.transport import Address, value_at, whole_number_of

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Values that OpenAI's format defines for fields that a request omits."""

LARGEST_LOGPROB, ROUNDING = 1e6, 1e-2
"""Bounds of log-probabilities: servers write a large negative number for a probability of 0, and a number a little
above 0 for one of 1."""

COUNTS = ("prompt", "completion", "cached")
"""Numbers of tokens that a server may return for a call: in its prompts, in its answers, and in those parts of its
prompts that came from the prefix cache. OpenAI's formats also have "thoughts": in the thoughts of its answers."""


@dataclass(frozen=True)
class Request:
    """One call of a server: `n` answers to each prompt. The P·n answers are in the order of their prompts."""

    prompts: tuple[Prompt, ...]  # (P,)
    sampling: Sampling
    limit: int  # maximum number of tokens of each answer
    n: int = 1
    seed: int | None = None  # None: the server chooses one
    logprobs: bool = False
    is_cut: bool = False  # whether this side finds the ends of steps, in a stream
    streams_several: bool = False  # whether several answers come as a stream, so that each arrives when it ends

    @property
    def num_answers(self) -> int:
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.num_tokens for prompt in self.prompts)

    @property
    def in_harmony(self) -> bool:
        """Whether the texts of answers need harmony's special tokens, which servers leave out unless they are asked."""
        return any(prompt.in_harmony for prompt in self.prompts)

    @property
    def is_streamed(self) -> bool:
        return self.is_cut or (self.streams_several and self.num_answers > 1)

    @property
    def stops(self) -> list[str]:
        """Stop strings for the server."""
        return [] if self.is_cut else [*self.sampling.delimiters, *self.sampling.stops]


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: in a whole response all of it, in an event of a stream usually a token."""

    index: int | None = None  # which answer of the call; None: the message does not say
    pieces: tuple[Piece, ...] = ()  # texts, and thoughts in formats that separate them
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    certainty: Certainty | None = None  # of the tokens for which the message has their likeliest alternatives
    finish: str | None = None  # the server's finish reason; None and "" also stand in pieces that are not the last
    stop: str | int | None = None  # the stop string that ended the answer, or the token's id, if the engine returns it
    is_cumulative: bool = False  # whether text, ids and log-probabilities repeat the answer from its beginning
    num_tokens: int | None = None  # of the answer so far, if the server counts them: a stream may omit some ids


@dataclass(frozen=True)
class Profile:
    """What is known of an engine in advance. `probe` finds out whether it holds for a server."""

    wire: type[Wire]  # the format of requests that continue a prompt; Chat: it has chats only, and continues no message
    renderer: type[ServerRenderer] | None = None  # how it makes prompts and tokens; None: it does not
    filters: tuple[str, ...] = ()  # which of top_k and min_p a request can set; setting one that is missing is an error
    keep_all: int = 0  # the value of top_k that keeps every token
    packed_as: str | None = None  # the field with all sampling parameters, as JSON; None: a field for each
    neutral: Mapping[str, Any] = field(default_factory=dict)  # switches off the server's and the model's own defaults
    max_stops: int | None = 4  # maximum number of stop strings of a request; with more, this side cuts the answers
    tells_end: bool = False  # whether its format says which of a delimiter and the end of sequence ended an answer
    # The field that makes OpenAI's formats keep the stop string at the end of an answer, and so say that it ended the
    # answer; None: there is none, and these formats do not say it.
    keeps_stop: str | None = None
    seeds: bool = False  # whether the seed of a request decides its tokens
    seed_below: int = 2**63  # seeds are less than this
    choices: str | None = None  # the field with the number of answers to one prompt; None: there is one answer
    most_choices: int = 1024  # maximum number of answers to one prompt
    slots: str | None = None  # the field of the server's info that may lower this maximum
    choices_differ: bool = False  # whether several answers to one prompt differ where the request has a seed
    several_prompts: bool = False  # whether a request can have several prompts, and a stream can have large pieces
    takes_ids: bool = False  # whether prompts can be token ids
    # Whether log-probabilities cost little, so that all requests ask for them. Otherwise only those at temperature 1
    # without filters do, where methods can use them.
    logprobs: bool = False
    logprobs_of_stops: bool = True  # whether they include those of the tokens of a stop string
    most_top_logprobs: int = 20  # maximum number of likeliest tokens whose log-probabilities a request can ask for
    prefill: Mapping[str, Any] | None = None  # fields that let a chat continue its last message; None: the probe tries
    chat_limit: str = "max_tokens"  # the field with the limit on tokens in a chat request
    shares_prefixes: bool = False  # whether it has a prefix cache by default
    thinking_field: str | None = None  # the field of a chat request that takes the thinking budget; None: none does

    def sampling_fields(self, sampling: Sampling) -> dict[str, Any]:
        """The fields of a request for these parameters, limits and delimiters left out. Raises ConfigurationError if
        the engine has no field for one of them."""
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, **self.neutral}
        for name, value in (("top_k", sampling.top_k), ("min_p", sampling.min_p)):
            if name in self.filters:
                fields[name] = self.keep_all if name == "top_k" and not value else value
            elif value:
                raise ConfigurationError(f"this server cannot sample with {name}: leave it out, or use another server")
        if self.packed_as is not None:
            packed = {"do_sample": True, **fields} if sampling.temperature > 0 else {"do_sample": False}
            return {self.packed_as: json.dumps(packed)}
        return fields


class Wire(ABC):
    """A request format."""

    route: ClassVar[str]  # its path below the server's root, of OpenAI's formats below the address
    limit_field: str = "max_tokens"
    seed_field: ClassVar[str] = "seed"
    streams: ClassVar[bool] = True  # whether answers can come as a stream
    # Whether the text of a response ends where its last token ends. Otherwise the text of a step ends with its
    # delimiter, and the rest of the token that completed the delimiter is missing.
    has_whole_tokens: ClassVar[bool] = False
    event_key: ClassVar[str | None] = None  # a field of every event with a piece of an answer; None: any event has one
    count_paths: ClassVar[tuple[str, str, str]]  # paths of the fields with the numbers in `COUNTS`; "": it has none

    def __init__(self, address: Address, model: str, profile: Profile) -> None:
        self.address = address
        self.model = model
        self.profile = profile
        self.omitted: set[str] = set()  # fields that the server has refused

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
        """The pieces of answers in a whole response, or in an event of a stream. Raises one of the errors
        `motes.transport.MALFORMED` if the message has another form."""
        if request.is_streamed and self.event_key is not None and self.event_key not in message:
            return []  # an event that keeps the connection alive
        return [self._delta(item, request) for item in _items(message)]

    def counts(self, message: Any) -> dict[str, int]:
        """The counts in a whole response, or in an event of a stream, whatever its form. If several answers have counts
        of their own, their prompt, which is the same, counts once."""
        items = [item for item in _items(message) if isinstance(item, dict)]
        items.sort(key=lambda item: whole_number_of(item.get("index")) or 0)
        counts = {}
        for name, path in zip(COUNTS, self.count_paths, strict=True):
            numbers = [whole_number_of(value_at(item, path.split("."))) for item in items]
            if known := [number for number in numbers if number is not None]:
                counts[name] = sum(known) if name == "completion" else known[0]
        return counts

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
    count_paths = ("usage.prompt_tokens", "usage.completion_tokens", "usage.prompt_tokens_details.cached_tokens")

    @property
    def url(self) -> str:
        return f"{self.address.base}/{self.route}"

    def _body(self, request: Request) -> dict[str, Any]:
        prompts = [prompt.content for prompt in request.prompts]
        body = {"prompt": prompts[0] if len(prompts) == 1 else prompts, **self._options(request)}
        if self.profile.takes_ids:
            body |= {"return_token_ids": True, "add_special_tokens": False}
            if request.in_harmony:
                body["skip_special_tokens"] = False
        if request.logprobs:
            body["logprobs"] = request.sampling.top_logprobs
        return body

    def _options(self, request: Request) -> dict[str, Any]:
        options = {"model": self.model, "stream": request.is_streamed, **super()._options(request)}
        if request.is_streamed and not request.is_cut:  # this side closes a stream that it cuts before the usage comes
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
        tops = [[each.get("logprob") for each in token.get("top_logprobs") or ()] for token in tokens]
        if by_token := value_at(item, ("logprobs", "top_logprobs")):
            tops = [list((alternatives or {}).values()) for alternatives in by_token]
        return Delta(
            index=None if index is None else int(index),
            pieces=pieces_of(item.get("text") or item.get("message") or item.get("delta")),
            token_ids=token_ids_of(item.get("token_ids")),
            logprobs=logprobs_of(logprobs),
            certainty=certainty_of(logprobs, tops, request),
            finish=item.get("finish_reason"),
            stop=item.get("stop_reason", item.get("matched_stop")),  # vLLM's name, SGLang's name
        )

    def counts(self, message: Any) -> dict[str, int]:
        counts = super().counts(message)
        hits = whole_number_of(value_at(message, ("usage", "prompt_cache_hit_tokens")))  # DeepSeek's name
        details = value_at(message, ("usage", "completion_tokens_details", "reasoning_tokens"))
        thoughts = whole_number_of(details) or whole_number_of(value_at(message, ("usage", "reasoning_tokens")))
        if thoughts:  # 0 is also the number of servers that do not count them
            counts = {**counts, "thoughts": thoughts}
        return counts if hits is None else {"cached": hits, **counts}


class Chat(Completions):
    """OpenAI's chat. The answer's prefix is a last message of the assistant, which the server continues."""

    route = "chat/completions"

    def __init__(self, address: Address, model: str, profile: Profile) -> None:
        super().__init__(address, model, profile)
        self.limit_field = profile.chat_limit
        self.thinking_field = profile.thinking_field

    def thinking_fields(self, sampling: Sampling) -> dict[str, Any]:
        """The field with the thinking budget of a whole answer; empty if there is no budget, or no field for it."""
        if sampling.max_thinking_tokens is None or self.thinking_field is None:
            return {}
        value: Any = sampling.max_thinking_tokens
        first, *inner = self.thinking_field.split(".")
        for name in reversed(inner):
            value = {name: value}
        return {first: value}

    def _body(self, request: Request) -> dict[str, Any]:
        (prompt,) = request.prompts
        options = self._options(request)
        if request.logprobs:
            options |= {"logprobs": True, "top_logprobs": request.sampling.top_logprobs}
        if not prompt.prefix:
            return {"messages": list(prompt.messages), **options, **self.thinking_fields(request.sampling)}
        messages = [*prompt.messages, {"role": "assistant", "content": prompt.prefix}]
        return {"messages": messages, **options, **(self.profile.prefill or {})}

    def _delta(self, item: Mapping[str, Any], request: Request) -> Delta:
        return replace(super()._delta(item, request), token_ids=(), logprobs=())  # a chat continues text


def token_ids_of(values: Any) -> tuple[int, ...]:
    """Token ids; None stands for no ids. Raises ValueError or TypeError if one is no token's."""
    ids = tuple(map(int, values or ()))
    if not all(0 <= token < 2**31 for token in ids):
        raise ValueError("a token id out of range")
    return ids


def logprobs_of(values: Sequence[Any]) -> tuple[float, ...]:
    """Log-probabilities; none at all if one is missing or impossible, as their sum would be that of other tokens."""
    logprobs = () if None in values else tuple(float(value) for value in values)
    return logprobs if all(-LARGEST_LOGPROB < value < ROUNDING for value in logprobs) else ()


def certainty_of(logprobs: Sequence[Any], tops: Sequence[Sequence[Any]], request: Request) -> Certainty | None:
    """The certainty of tokens; None if the request does not ask for it, or the response does not contain it.

    Args:
        logprobs: (n,) of the sampled tokens.
        tops: (n,) for each the log-probabilities of the likeliest tokens in its place.
    """
    if not request.sampling.top_logprobs or len(logprobs) != len(tops):
        return None
    pairs = [(logprob, top) for logprob, top in zip(logprobs, tops, strict=True) if None not in (logprob, *top)]
    known = [(float(logprob), list(map(float, top))) for logprob, top in pairs]
    return certainty_of_pairs(known, request.sampling.top_logprobs)
