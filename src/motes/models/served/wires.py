"""How engines are asked to continue a prompt, and what their answers mean: one small class per format.

Here the ground and OpenAI's two formats; `native` has the others, and all of them by name.

    completions   POST /v1/completions        vLLM (token ids), transformers serve, unknown servers
    chat          POST /v1/chat/completions   the last resort
    llama.cpp     POST /completion            token ids, `stop_type`
    sglang        POST /generate              token ids, `finish_reason.matched`
    tgi           POST /generate              text, `details.finish_reason`
    ollama        POST /api/generate          text, raw prompts

A format that does not tell a delimiter from the end of sequence is asked without delimiters, as a stream that is cut on
this side (`Request.cut`). So is every format for steps that a pattern ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motes.errors import BadResponseError, UnknownFormError
from motes.http import MALFORMED, Address, excerpt
from motes.models.served.ends import end_of
from motes.models.served.messages import Piece, Writer, pieces_of
from motes.models.served.profiles import Profile
from motes.types import Sampling, StepEnd

DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What OpenAI's format says that a field is where it is not sent."""


@dataclass(frozen=True)
class Prompt:
    """A conversation and what is written of the answer, as ids, as text, or as messages with the answer's prefix.

    Attributes:
        before: what the next step's text begins with: drawn with the last step, or opened by the conversation's form.
        length: tokens of a text, where they were counted.
    """

    ids: tuple[int, ...] | None = None
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    prefix: str = ""
    before: str = ""
    length: int | None = None

    @property
    def wired(self) -> list[int] | str:
        """As it stands in a request."""
        return list(self.ids) if self.ids is not None else self.text or ""

    @property
    def num_tokens(self) -> int:
        """Its length; of text an estimate, four characters to a token."""
        if self.ids is not None:
            return len(self.ids)
        if self.length is not None:
            return self.length
        return -(-sum(map(len, (self.text or "", self.prefix, *(m["content"] for m in self.messages)))) // 4)


@dataclass(frozen=True)
class Request:
    """One call of a server.

    Attributes:
        prompts: (P,); n: answers to each; so P·n answers, those of a prompt together.
        limit: tokens of each answer.
        seed: None: the server's own choice.
        cut: whether ends of steps are found on this side, in a stream.
    """

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    limit: int
    n: int = 1
    seed: int | None = None
    logprobs: bool = False
    cut: bool = False

    @property
    def count(self) -> int:
        return len(self.prompts) * self.n


@dataclass(frozen=True)
class Drawn:
    """One answer.

    Attributes:
        text: what was drawn, with the delimiter or stop text that ended it.
        end: "step" for a stop text, too.
        whole: whether the text is that of the tokens to the last letter; otherwise what stands behind a delimiter in
            the token that completed it is missing.
        token_ids: every token drawn; empty where they are not told.
        num_tokens: how many were drawn.
        prompt_tokens, cached_tokens: of its prompt, where told; a prompt's count stands on one of its answers only.
    """

    text: str
    end: StepEnd
    token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    logprob: float | None = None
    whole: bool = True
    prompt_tokens: int | None = None
    cached_tokens: int | None = None


class Wire:
    """A format. What it reads may be malformed in any way: what comes of that (`motes.http.MALFORMED`) is turned into
    `UnknownFormError` by `read`."""

    streams = False

    def __init__(self, address: Address, model: str, profile: Profile) -> None:
        self.address = address
        self.model = model
        self.profile = profile
        self.left_out: set[str] = set()

    @property
    def url(self) -> str:
        raise NotImplementedError

    def body(self, request: Request) -> dict[str, Any]:
        raise NotImplementedError

    def asked(self, request: Request, *, streamed: bool = False) -> dict[str, Any]:
        """The body of a request, without the fields that this server turned out not to take."""
        body = self.streamed(request) if streamed else self.body(request)
        return {field: value for field, value in body.items() if field not in self.left_out}

    def leave_out(self, field: str, request: Request) -> bool:
        """Send this field no more, if what is sent is what everyone means by leaving it out. Whether it will help."""
        value = self.body(request).get(field)
        if field in self.left_out or field not in DEFAULTS or value != DEFAULTS[field]:
            return False
        self.left_out.add(field)
        return True

    def read(self, answer: Any, request: Request) -> list[Drawn]:
        """The answers of a call, in order."""
        try:
            drawn = self._read(answer, request)
        except MALFORMED as error:
            raise self.misread(answer, error) from error
        if len(drawn) != request.count:
            raise BadResponseError(f"{self.url} gave {len(drawn)} answers where {request.count} were asked for")
        return drawn

    def misread(self, answer: Any, error: Exception) -> UnknownFormError:
        return UnknownFormError(
            f"{self.url} answered in a form that is not its own ({type(error).__name__}: {error} in "
            f"{excerpt(answer)}): is another engine behind it? See `engine`"
        )

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        raise NotImplementedError

    def streamed(self, request: Request) -> dict[str, Any]:
        """The body that is answered as a stream in which every answer comes as soon as it has ended."""
        raise NotImplementedError

    def delta(self, event: dict[str, Any]) -> list[tuple[int | None, Delta]]:
        """What an event of a stream adds, to which answer; None: to the only one. An event that adds nothing, sent to
        keep the connection alive, is left out."""
        raise NotImplementedError

    def spent(self, answer: Any) -> tuple[int, int]:
        """The tokens that an answer which cannot be used says that it took: of the prompt, and drawn."""
        try:
            usage = usage_of(answer)
            return number(usage.get("prompt_tokens")) or 0, number(usage.get("completion_tokens")) or 0
        except MALFORMED:
            return 0, 0


@dataclass(frozen=True)
class Delta:
    """A piece of an answer: `finish` with the last one. Or what a stream says of the whole call: `usage`.

    Attributes:
        pieces: texts and thoughts, in formats that tell them apart; beside them there is no `text`.
        finish: why it ended, in the server's words; None and "" are said of answers that go on, too.
        stop: the text that ended it, or a token's id, where the engine says so.
        so_far: whether text, ids and log-probabilities are all that there is, and not what was added.
        count: how many tokens were drawn so far, where it is told: a stream may leave out some of their ids.
    """

    text: str = ""
    pieces: tuple[Piece, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: str | None = None
    stop: str | int | None = None
    usage: Mapping[str, Any] | None = None
    so_far: bool = False
    count: int | None = None

    @property
    def estimate(self) -> int:
        """About how many tokens this is, four characters to a token."""
        return -(-sum(map(len, (self.text, *(piece.text for piece in self.pieces)))) // 4)

    def end(self, request: Request, url: str, num_tokens: int) -> StepEnd:
        """What ended the answer that this is the last piece of."""
        by_text = isinstance(self.stop, str) and bool(stops(request))
        return end_of(self.finish, url, is_full=num_tokens >= request.limit, by_text=by_text)


def stops(request: Request) -> list[str]:
    return [] if request.cut else [*request.sampling.delimiters, *request.sampling.stops]


def of_the_call(usage: Mapping[str, Any]) -> list[tuple[int | None, Delta]]:
    """What a stream says of the whole call."""
    return [(None, Delta(usage=usage))] if usage else []


def number(value: Any) -> int | None:
    """A count as servers write it: null, or a float, or nothing sensible."""
    is_count = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**53
    return int(value) if is_count else None


def usage_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    usage = answer.get("usage")
    return usage if isinstance(usage, dict) else {}


def cached_tokens(usage: Mapping[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    told = number(details.get("cached_tokens")) if isinstance(details, dict) else None
    return number(usage.get("prompt_cache_hit_tokens")) if told is None else told  # DeepSeek's word


class Completions(Wire):
    """OpenAI's format; with vLLM's `stop_reason`, `return_token_ids` and `include_stop_str_in_output`."""

    streams = True

    @property
    def url(self) -> str:
        return f"{self.address.base}/completions"

    def body(self, request: Request) -> dict[str, Any]:
        prompts = [prompt.wired for prompt in request.prompts]
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "max_tokens": request.limit,
            "stream": request.cut,
            **self.profile.sampling_fields(request.sampling),
        }
        self._add(request, body)
        if self.profile.takes_ids:
            body |= {"return_token_ids": True, "add_special_tokens": False}
        if request.logprobs:
            body["logprobs"] = 0
        return body

    def _add(self, request: Request, body: dict[str, Any]) -> None:
        """The fields that both of OpenAI's formats have."""
        if sent := stops(request):
            body["stop"] = sent
            if self.profile.keeps_stop is not None:
                body[self.profile.keeps_stop] = True
        if request.n > 1 and self.profile.choices:
            body["n"] = request.n
        if request.seed is not None:
            body["seed"] = request.seed

    def streamed(self, request: Request) -> dict[str, Any]:
        body = self.body(request)
        if not request.cut:  # a stream that is left early ends before its usage
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            if self.profile.stream_interval:
                body["stream_interval"] = 1 << 16
        return body

    def _read(self, answer: Any, request: Request) -> list[Drawn]:
        usage = usage_of(answer)
        choices = [(i if index is None else index, choice) for i, (index, choice) in enumerate(_choices(answer))]
        choices.sort(key=lambda pair: pair[0])
        for _, choice in choices:
            _require_answer(choice)
        deltas = [self._delta(choice) for _, choice in choices]
        counted = number(usage.get("completion_tokens"))
        shares = [delta.estimate for delta in deltas] if counted is None else _shared(counted, len(deltas))
        return [self._drawn(delta, request, i, usage if i == 0 else {}, shares[i]) for i, delta in enumerate(deltas)]

    def _drawn(self, delta: Delta, request: Request, i: int, usage: Mapping[str, Any], share: int) -> Drawn:
        if not delta.finish and self.profile.tells_end:  # those that always do
            raise BadResponseError(f"{self.url} did not bring an answer to its end: look into its log")
        num_tokens = len(delta.token_ids) or share
        end = delta.end(request, self.url, num_tokens)
        writer = Writer(request.prompts[i // request.n].prefix) if i < request.count else Writer()
        text = delta.text + writer.write(delta.pieces)
        return Drawn(
            text=text if end == "length" else text + writer.close(),
            end=end,
            token_ids=delta.token_ids,
            num_tokens=num_tokens,
            logprob=sum(delta.logprobs) if delta.logprobs else None,
            whole=not delta.token_ids,
            prompt_tokens=number(usage.get("prompt_tokens")),
            cached_tokens=cached_tokens(usage),
        )

    def _delta(self, choice: Mapping[str, Any]) -> Delta:
        return Delta(
            text=str(choice.get("text") or ""),
            token_ids=tuple(int(token) for token in choice.get("token_ids") or ()),
            logprobs=_logprobs(choice),
            finish=choice.get("finish_reason"),
            stop=_stop(choice),
        )

    def delta(self, event: dict[str, Any]) -> list[tuple[int | None, Delta]]:
        deltas = [(index, self._delta(choice)) for index, choice in _choices(event)]
        return [*deltas, *of_the_call(usage_of(event))]


class Chat(Completions):
    """OpenAI's chat, the answer's prefix as a last message of the assistant that is to be continued."""

    @property
    def url(self) -> str:
        return f"{self.address.base}/chat/completions"

    def body(self, request: Request) -> dict[str, Any]:
        (prompt,) = request.prompts
        messages: list[Mapping[str, str]] = list(prompt.messages)
        if prompt.prefix:
            messages.append({"role": "assistant", "content": prompt.prefix})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            self.profile.chat_limit: request.limit,
            "stream": request.cut,
            **self.profile.sampling_fields(request.sampling),
        }
        if prompt.prefix:
            body |= self.profile.prefill or {}
        self._add(request, body)
        return body

    def _delta(self, choice: Mapping[str, Any]) -> Delta:
        pieces = pieces_of(choice.get("message") or choice.get("delta"))
        return Delta(pieces=pieces, finish=choice.get("finish_reason"), stop=_stop(choice))


def _choices(answer: Mapping[str, Any]) -> list[tuple[int | None, Mapping[str, Any]]]:
    """The answers of a call, or pieces of them, with their places, where these are told."""
    choices = []
    for choice in answer.get("choices") or ():
        index = choice.get("index")
        if index is not None and int(index) < 0:
            raise ValueError(f"an index of {index}")
        choices.append((None if index is None else int(index), choice))
    return choices


def _require_answer(choice: Mapping[str, Any]) -> None:
    """Raise KeyError unless a choice of a call that is answered as a whole has an answer: one that ended may be
    empty."""
    if not choice.get("finish_reason") and all(choice.get(name) is None for name in ("message", "delta", "text")):
        raise KeyError("message")


def _stop(choice: Mapping[str, Any]) -> str | int | None:
    """The stop string that ended an answer (or a token's id), where the engine says so in OpenAI's formats."""
    stop: str | int | None = choice.get("stop_reason", choice.get("matched_stop"))  # vLLM's name, SGLang's
    return stop


def _logprobs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    """Those of the tokens: in the completions' own form, or, as llama.cpp gives them, in the chat's. None at all where
    one is missing: their sum would be that of other tokens."""
    told = choice.get("logprobs")
    told = told if isinstance(told, dict) else {}
    values = told.get("token_logprobs") or [token.get("logprob") for token in told.get("content") or ()]
    return () if None in values else tuple(float(value) for value in values)


def _shared(total: int, parts: int) -> list[int]:
    """A total split into near equal parts, for servers that count several answers together."""
    return [total // parts + (i < total % parts) for i in range(parts)] if parts else []
