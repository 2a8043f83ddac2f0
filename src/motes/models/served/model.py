"""A language model behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from motes.concurrency import Batcher, Pending
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    MotesError,
    RejectedError,
    ServerError,
    UnknownNameError,
)
from motes.http import Address, Client, flag, may_be_of_one, now, whole_number
from motes.models.served.capabilities import Capabilities
from motes.models.served.native import WIRES
from motes.models.served.probe import probe
from motes.models.served.profiles import PROFILES
from motes.models.served.prompts import renderer
from motes.models.served.refusals import is_about, is_about_length, limits, unsupported
from motes.models.served.stream import Call
from motes.models.served.wires import Completions, Drawn, Prompt, Request, Wire
from motes.steps import divided, drawn_before, end_at_limit
from motes.types import Failure, Sampling, Step, Trajectory, Usage

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

Seeding = Literal["particle", "group", "none"]

PROMPTS_PER_CALL = 256
"""Prompts of one merged request at most."""

ADAPTATIONS = 20
"""How often a request is asked in another way."""


OF_ITS_PROMPT = (ServerError, ContextLengthError)
"""Errors of one request, which the others may not share."""


@dataclass(eq=False)
class PendingStep(Pending[Step | Failure]):
    """One trajectory to be extended.

    Attributes:
        wasted: what attempts cost that failed on its behalf.
        is_drawn: whether its answer has come, and is becoming a step: what fails later does not concern it.
    """

    trajectory: Trajectory
    sampling: Sampling
    seed: int
    wasted: Usage = Usage()  # noqa: RUF009 (frozen)
    is_drawn: bool = False


class HTTPLanguageModel:
    """A language model behind an OpenAI-compatible server.

    Args:
        client, address: of the server.
        capabilities: what it can do, see `motes.models.served.probe.probe`.
        vocabulary: its tokenizer on this side, where the server cannot render conversations.
        seeds: how draws are seeded.
            "particle": every particle's own seed is sent, a request each. The same (trajectory, sampling, seed) gives
            the same step, as far as the server keeps its word. The default where it draws by seeds.
            "group": particles at one and the same node of a run become one prompt with as many answers, drawn by the
            seed of the first. The same run with the same seed gives the same result; a step alone does not depend on
            its seed alone.
            "none": no seeds. As "group", and the prompts of all runs travel in one request where the server takes
            several and answers each as it ends. Nothing can be repeated. The default where seeds mean nothing.
            Whatever is chosen, particles that are alike are drawn apart; at temperature 0 they are drawn once.
        logprobs: whether log-probabilities are asked for; by default where they cost little, and elsewhere at
            temperature 1, unfiltered, where they are what the power filter needs.
        shares_prefixes: whether what the server has computed of a prompt is kept for the next one, so that a run needs
            it once; by default what its engine does unless it is told otherwise.
    """

    merges_calls = True
    proposal_logprobs = False

    def __init__(
        self,
        client: Client,
        address: Address,
        capabilities: Capabilities,
        *,
        vocabulary: Vocabulary | None = None,
        seeds: Seeding | None = None,
        logprobs: bool | None = None,
        shares_prefixes: bool | None = None,
    ) -> None:
        if seeds is not None and seeds not in get_args(Seeding):
            raise UnknownNameError("way to seed", str(seeds), get_args(Seeding))
        self.client = client
        self.address = address
        self.capabilities = capabilities
        self.profile = PROFILES[capabilities.engine]
        self.seeds: Seeding = seeds or ("particle" if capabilities.seeds else "none")
        self.logprobs = capabilities.logprobs and (self.profile.logprobs if logprobs is None else logprobs)
        self.shares_prefixes = self.profile.shares_prefixes if shares_prefixes is None else shares_prefixes
        self._logprobs_of_the_model = capabilities.logprobs and logprobs is not False
        completes = capabilities.route in ("ids", "text") and self.profile.wire is not None
        name = self.profile.wire if completes and self.profile.wire is not None else "chat"
        self._wire: Wire = WIRES[name](address, capabilities.model, self.profile)
        self._cutter: Wire = (
            self._wire if self._wire.streams else Completions(address, capabilities.model, self.profile)
        )
        self._renderer = renderer(
            capabilities.engine,
            client,
            address,
            capabilities.model,
            vocabulary,
            kind=capabilities.rendering if completes else "messages",
            ids=self.profile.takes_ids,
        )
        self._most: int | None = None  # tokens of one answer, once the server has said so
        self._batcher: Batcher[PendingStep, Step | Failure] = Batcher(self._process)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        engine: str | None = None,
        tokenizer: str | None = None,
        seeds: Seeding | None = None,
        logprobs: bool | None = None,
        shares_prefixes: bool | None = None,
        context_length: int | None = None,
        **connection: Any,
    ) -> HTTPLanguageModel:
        """Open a served model: ask the server what it can do.

        Args:
            path: its address, "http://HOST:PORT/v1#MODEL".
            engine: "vllm", "sglang", "llama.cpp", "tgi", "transformers", "ollama" or "openai", where the server gives
                no sign of which it is.
            tokenizer: the model's tokenizer, a folder or a name that the hub knows (extra `local`), for servers that
                complete prompts but do not render conversations.
            seeds, logprobs, shares_prefixes: see the class.
            context_length: where the server does not tell it.
            connection: see `motes.http.Client.open`.

        Raises:
            UnreachableError: nothing answers.
            UnauthorizedError: it wants a key.
            UnknownNameError: it has no such model.
            ConfigurationError: it is no OpenAI-compatible server, or an option is out of its range.
        """
        if logprobs is not None:
            logprobs = flag("logprobs", logprobs)
        if shares_prefixes is not None:
            shares_prefixes = flag("shares_prefixes", shares_prefixes)
        if context_length is not None:
            context_length = whole_number("context_length", context_length)
        address = Address.parse(path)
        client = Client.open(address, **connection)
        vocabulary = None if tokenizer is None else _vocabulary(tokenizer)
        found = now(probe(client, address, engine=engine, vocabulary=vocabulary))
        if context_length is not None:
            found = replace(found, context_length=context_length)
        return cls(
            client,
            address,
            found,
            vocabulary=vocabulary,
            seeds=seeds,
            logprobs=logprobs,
            shares_prefixes=shares_prefixes,
        )

    @property
    def continues_prefixes(self) -> bool:
        """Whether it can be used step by step; otherwise it writes whole answers only."""
        return self.capabilities.continues_prefixes

    def gives_logprobs(self, sampling: Sampling) -> bool:
        """Whether steps carry log-probabilities: streams that are cut on this side may have none."""
        return self._wants_logprobs(sampling) and not (self._cuts(sampling) and self._cutter is not self._wire)

    def _wants_logprobs(self, sampling: Sampling) -> bool:
        """Whether log-probabilities are asked for: always, or only where they are those of the draws, too."""
        own = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
        return self.logprobs or (self._logprobs_of_the_model and own)

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        """See `motes.protocols.LanguageModel`. What concurrent calls ask for in one turn of the event loop is asked of
        the server together. Cancelling a call closes its requests at once, unless others wait for them too.

        Raises:
            ConfigurationError: the server cannot sample so, or cannot continue what is begun.
            UnauthorizedError: the server does not accept the key any more.
            ContextLengthError: no prompt fits.
        """
        self.profile.sampling_fields(sampling)
        if not self.continues_prefixes and any(trajectory.depth for trajectory in trajectories):
            raise ConfigurationError(f"{self!r} cannot continue an answer: draw whole ones")
        asks = [PendingStep(trajectory, sampling, seed) for trajectory, seed in zip(trajectories, seeds, strict=True)]
        outcomes = await self._batcher.submit(asks)
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if errors and len(errors) == len(outcomes) and all(isinstance(error, ContextLengthError) for error in errors):
            raise errors[0]
        return outcomes

    async def ready(self) -> None:
        """Ask the server for a sign of life, once.

        Raises:
            ServerError, UnauthorizedError: it gives none.
        """
        await self.client.get(f"{self.address.base}/models", attempts=1)

    async def aclose(self) -> None:
        """Close this event loop's connections; otherwise they are closed with the loop."""
        await self.client.aclose()

    async def _process(self, asks: list[PendingStep]) -> None:
        """Everything that one turn of the event loop asks for."""
        groups: dict[int, list[PendingStep]] = {}
        for ask in asks:
            groups.setdefault(id(ask.trajectory), []).append(ask)
        prompts = await asyncio.gather(*(self._prompt(group) for group in groups.values()), return_exceptions=True)
        merged: dict[tuple[Any, ...], list[tuple[Prompt, list[PendingStep]]]] = {}
        for prompt, group in zip(prompts, groups.values(), strict=True):
            if isinstance(prompt, OF_ITS_PROMPT):
                for ask in group:
                    ask.settle(Failure(prompt))
            elif isinstance(prompt, BaseException):
                raise prompt
            else:
                self._ask(prompt, group, merged)
        for (sampling, limit, n, seed, *_), parts in merged.items():
            for start in range(0, len(parts), PROMPTS_PER_CALL):
                part = parts[start : start + PROMPTS_PER_CALL]
                cut = self._cuts(sampling)
                request = Request(
                    prompts=tuple(prompt for prompt, _ in part),
                    sampling=sampling,
                    limit=limit,
                    n=n,
                    seed=seed,
                    logprobs=self.gives_logprobs(sampling),
                    cut=cut,
                )
                # Each answer's asks: one, or all that are alike, where they are drawn once.
                receivers = [ask for _, group in part for ask in ([[a] for a in group] if n == len(group) else [group])]
                flat = [ask for _, group in part for ask in group]
                self._start(self._call(request, receivers), flat)

    async def _prompt(self, group: list[PendingStep]) -> Prompt:
        """The prompt of a node. The tokens of a text are counted where they may be more than the context has room for:
        a token is no shorter than a byte."""
        prompt = await self._renderer.extended(group[0].trajectory)
        context = self.capabilities.context_length
        if context is None or prompt.text is None:
            return prompt
        wanted = max(ask.sampling.max_step_tokens for ask in group)
        if len(prompt.text.encode()) + wanted < context:
            return prompt
        return replace(prompt, length=await self._renderer.count(prompt.text))

    def _start(self, work: Coroutine[Any, Any, None], asks: Sequence[PendingStep]) -> None:
        """Do `work` for `asks` beside everything else. Where it fails, they fail, and no others."""

        async def run() -> None:
            try:
                await work
            except OF_ITS_PROMPT as error:
                for ask in asks:
                    if not ask.is_drawn:
                        ask.settle(Failure(error, ask.wasted))

        self._batcher.start(run(), asks)

    def _ask(
        self,
        prompt: Prompt,
        group: list[PendingStep],
        merged: dict[tuple[Any, ...], list[tuple[Prompt, list[PendingStep]]]],
    ) -> None:
        """Put asks for one and the same node into requests: `merged` by what a request's prompts must share."""
        by_sampling: dict[Sampling, list[PendingStep]] = {}
        for ask in group:
            by_sampling.setdefault(ask.sampling, []).append(ask)
        for sampling, asks in by_sampling.items():
            if (step := drawn_before(prompt.before, sampling)) is not None:
                for ask in asks:
                    ask.settle(step)
                continue
            limit = self._limit(asks[0].trajectory, prompt, sampling)
            if isinstance(limit, ContextLengthError) or limit < 1:
                for ask in asks:
                    ask.settle(Failure(limit) if isinstance(limit, ContextLengthError) else Step("", "length"))
                continue
            # A request of its own, also for a stream that is cut: where one ends, the server must not go on with it.
            alone = () if self._merges_prompts and not self._cuts(sampling) else (len(merged),)
            if sampling.temperature == 0:
                merged.setdefault((sampling, limit, 1, None, "drawn once", *alone), []).append((prompt, asks))
                continue
            size = self.capabilities.choices if self._shares_prompts else 1
            for start in range(0, len(asks), size):
                part = asks[start : start + size]
                if self.seeds == "none" and size > 1:
                    merged.setdefault((sampling, limit, len(part), None, *alone, start), []).append((prompt, part))
                else:
                    merged[sampling, limit, len(part), self._seed(part[0]), id(part[0])] = [(prompt, part)]

    def _seed(self, ask: PendingStep) -> int | None:
        return None if self.seeds == "none" else ask.seed % self.profile.seed_below

    @property
    def _shares_prompts(self) -> bool:
        """Whether particles that are alike are drawn as several answers to one prompt: only where these differ."""
        differ = self.seeds == "none" or (self.seeds == "group" and self.profile.choices_differ)
        return differ and self.capabilities.choices > 1

    @property
    def _merges_prompts(self) -> bool:
        """Whether prompts of different runs travel together: only where none has to wait for the slowest."""
        return self.capabilities.several_prompts and self.profile.stream_interval

    def _cuts(self, sampling: Sampling) -> bool:
        """Whether ends of steps are found on this side."""
        most, texts = self.profile.max_stops, len(sampling.delimiters) + len(sampling.stops)
        too_many = most is not None and texts > most
        loses_logprobs = not self.profile.logprobs_of_stops and self._wants_logprobs(sampling)
        return sampling.pattern is not None or (
            texts > 0 and (too_many or loses_logprobs or not self.capabilities.tells_end)
        )

    def _limit(self, trajectory: Trajectory, prompt: Prompt, sampling: Sampling) -> int | ContextLengthError:
        """Tokens that the next step may have."""
        limit = sampling.max_step_tokens
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens - trajectory.num_tokens)
        if self._most is not None:
            limit = min(limit, self._most)
        context = self.capabilities.context_length
        length = prompt.length if prompt.ids is None else len(prompt.ids)
        if context is not None and length is not None:
            if length >= context and not trajectory.depth:
                return ContextLengthError(
                    f"the prompt has {length} tokens and {self!r} a context of {context}: shorten the question"
                )
            limit = min(limit, context - length)
        return limit

    async def _call(self, request: Request, receivers: list[list[PendingStep]]) -> None:
        """One request, asked in another way where the server says how, and what becomes of its answers."""
        for last in (False,) * ADAPTATIONS + (True,):
            try:
                await self._send(request, receivers)
            except OF_ITS_PROMPT as error:
                refused = isinstance(error, RejectedError)
                if refused and request.n > 1 and is_about(str(error), "n"):
                    self._ask_one_by_one(request, receivers)
                elif refused and not last and self._wire.leave_out(unsupported(str(error)), request):
                    continue
                elif len(request.prompts) > 1 and may_be_of_one(error):
                    self._split(request, receivers)
                elif not last and (limit := self._lower_limit(request, error)) > 0:
                    request = replace(request, limit=limit)
                    continue
                elif isinstance(error, ContextLengthError):
                    for ask in _all(receivers):  # what was begun is as long as it can be
                        ask.settle(Step("", "length") if ask.trajectory.depth else Failure(error, ask.wasted))
                else:
                    raise
            return

    def _lower_limit(self, request: Request, error: MotesError) -> int:
        """How many tokens to ask for instead, after a refusal; 0: it is not about that, or the context is full.

        Where the server's sentence is not understood half as many are tried: an answer ends only where not a single
        token is granted.
        """
        full = isinstance(error, ContextLengthError)
        if not full and not (isinstance(error, RejectedError) and is_about_length(str(error))):
            return 0
        told = limits(str(error))
        if told.most is not None and told.most < request.limit:
            self._most = told.most
        known = self.capabilities.context_length
        if told.context is not None and (known is None or told.context < known):
            self.capabilities = replace(self.capabilities, context_length=told.context)
        if told.room is not None and told.room < request.limit:
            return max(0, told.room)
        return request.limit // 2

    def _ask_one_by_one(self, request: Request, receivers: list[list[PendingStep]]) -> None:
        """A request for each answer, where the server draws one at a time: from now on, too."""
        self.capabilities = replace(self.capabilities, choices=1)
        for i, asks in enumerate(receivers):
            alone = replace(request, prompts=(request.prompts[i // request.n],), n=1, seed=self._seed(asks[0]))
            self._start(self._call(alone, [asks]), asks)

    def _split(self, request: Request, receivers: list[list[PendingStep]]) -> None:
        """Ask in two halves: the prompt that was refused fails by itself, and the others are answered."""
        waiting = []  # a prompt with the asks of its answers
        for i, prompt in enumerate(request.prompts):
            asks = receivers[i * request.n : (i + 1) * request.n]
            if not all(ask.is_drawn or ask.future.done() for ask in _all(asks)):
                waiting.append((prompt, asks))
        middle = -(-len(waiting) // 2)
        for half in (waiting[:middle], waiting[middle:]):
            if half:
                part = replace(request, prompts=tuple(prompt for prompt, _ in half))
                answers = [ask for _, asks in half for ask in asks]
                self._start(self._call(part, answers), _all(answers))

    async def _send(self, request: Request, receivers: list[list[PendingStep]]) -> None:
        def settle(index: int, drawn: Drawn) -> None:
            for ask in receivers[index]:
                ask.is_drawn = True
            self._start(self._finish(request, index, drawn, receivers[index]), receivers[index])

        wire = self._cutter if request.cut else self._wire
        call = Call(wire, request, settle)
        try:
            if request.cut or (request.count > 1 and self.profile.stream_interval):
                answers = await self.client.stream(wire.url, wire.asked(request, streamed=True), call.follow)
            else:
                answers = await self.client.post(wire.url, wire.asked(request), read=call.read)
        finally:
            rest = [index for index in range(request.count) if index not in call.settled]
            receivers[rest[0]][0].wasted += call.wasted
        await asyncio.gather(*(self._finish(request, i, answers[i], receivers[i]) for i in rest))

    async def _finish(self, request: Request, index: int, drawn: Drawn, asks: list[PendingStep]) -> None:
        """An answer becomes a step."""
        before = request.prompts[index // request.n].before
        text, ahead, end = before + drawn.text, "", drawn.end
        if end == "step" and drawn.token_ids and not drawn.whole:
            with suppress(*OF_ITS_PROMPT):  # the step's ids, which are what is continued, are right all the same
                text += await self._renderer.rest_of_token(drawn.text, drawn.token_ids)
        if end == "step":
            text, ahead, end = divided(text, request.sampling, len(before))
        elif end == "length":
            end = end_at_limit(request.sampling, request.limit)
        prefix = self._prefix_tokens(request, index, drawn)
        step = Step(text, end, drawn.token_ids, drawn.logprob, ahead=ahead, prefix_tokens=prefix)
        usage = self._usage(request, index, drawn)
        for ask in asks:
            ask.settle(replace(step, usage=usage + ask.wasted))
            usage = Usage()  # drawn once, paid for once

    def _prefix_tokens(self, request: Request, index: int, drawn: Drawn) -> int:
        """Those of the answer's prompt, which several answers to it have but once; what the server counts them to be
        where nobody else knows."""
        prompt = request.prompts[index // request.n]
        if index % request.n:
            return 0
        if prompt.ids is None and prompt.length is None and request.count == request.n and drawn.prompt_tokens:
            return drawn.prompt_tokens
        return prompt.num_tokens

    def _usage(self, request: Request, index: int, drawn: Drawn) -> Usage:
        prompt = drawn.prompt_tokens
        told_once = request.count > 1 and self.profile.stream_interval and not request.cut
        if prompt is None and index % request.n == 0 and not told_once:
            prompt = request.prompts[index // request.n].num_tokens
        cached = min(drawn.cached_tokens or 0, prompt or 0)
        return Usage(
            generated_tokens=drawn.num_tokens, prefill_tokens=(prompt or 0) - cached, prefill_tokens_cached=cached
        )

    def __repr__(self) -> str:
        return f"HTTPLanguageModel({str(self.address)!r})"


def _all(receivers: Iterable[list[PendingStep]]) -> list[PendingStep]:
    return [ask for asks in receivers for ask in asks]


def _vocabulary(path: str) -> Vocabulary:
    try:
        from motes.vocabulary import Vocabulary
    except ImportError as error:
        raise MissingExtraError("a tokenizer on this side", "tokenizer") from error
    try:
        return Vocabulary.load(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"there is no tokenizer at {path!r}: {error}") from error
