"""A language model behind an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from motes.concurrency import Batcher, gather
from motes.core import Certainty, Failure, Problem, Sampling, Step, Trajectory, Usage
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    MissingExtraError,
    MotesError,
    RejectedError,
    UnknownNameError,
)
from motes.models.served.engines import PROFILES
from motes.models.served.pending import Part, PendingStep, steps_of
from motes.models.served.probe import OF_ONE_REQUEST, Capabilities, probe, renderer
from motes.models.served.prompts import Prompt, Renderer
from motes.models.served.responses import Answer, Call
from motes.models.served.turns import Turn, read_turn
from motes.models.served.wires import Chat, Completions, Request, Wire
from motes.steps import end_at_limit, split_at_end, step_in_overrun
from motes.thoughts import HARMONY
from motes.transport import Address, Client, ServedModel, flag, may_be_of_one, now, whole_number
from motes.transport.refusals import is_about, is_about_length, limits, unsupported_field

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

Seeding = Literal["particle", "group", "none"]

PROMPTS_PER_CALL = 256
"""Maximum number of prompts in one request."""

MAX_TURN = 8192
"""Tokens that a turn without a limit is expected to have at most: for the bound on the response, and its time."""

ADAPTATIONS = 20
"""Maximum number of times that a request is changed after a refusal."""


class HTTPLanguageModel(ServedModel):
    """A language model behind an OpenAI-compatible server.

    Args:
        client, address: of the server.
        capabilities: of the server, see `motes.models.served.probe.probe`.
        vocabulary: its tokenizer on this side, where the server cannot render conversations.
        seeds: how requests are seeded.
            "particle": a request with its own seed for each particle. The same (trajectory, sampling, seed) gives the
            same step, as far as the server guarantees it. The default where the server samples by seeds.
            "group": the particles at one node of a run share a request with one prompt and an answer for each, seeded
            by the first particle. The same run with the same seed gives the same result; a single step depends on more
            than its own seed.
            "none": no seeds. As "group", and prompts of all runs share a request where the server takes several and
            returns each answer when it ends. Nothing can be repeated. The default where seeds have no effect.
            In all three, equal particles have independent steps; at temperature 0 they share one.
        logprobs: whether requests ask for log-probabilities; by default where they cost little, and elsewhere at
            temperature 1 without filters, where the power filter needs them.
        shares_prefixes: whether the server has a prefix cache, so that a run computes each prompt and prefix once; by
            default as its engine has by default.
        thinking_field: the field of a chat request that takes the thinking budget of a whole answer, with dots between
            the names of objects: "reasoning.max_tokens"; by default the engine's, if it has one. Answers that are
            written step by step need none.
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
        thinking_field: str | None = None,
    ) -> None:
        if seeds is not None and seeds not in get_args(Seeding):
            raise UnknownNameError("way to seed", str(seeds), get_args(Seeding))
        super().__init__(client, address)
        self.capabilities = capabilities
        self.profile = PROFILES[capabilities.engine]
        self.seeds: Seeding = seeds or ("particle" if capabilities.seeds else "none")
        self.logprobs = capabilities.logprobs and (self.profile.logprobs if logprobs is None else logprobs)
        self.shares_prefixes = self.profile.shares_prefixes if shares_prefixes is None else shares_prefixes
        self.thinking_field = thinking_field or self.profile.thinking_field
        self._may_ask_logprobs = capabilities.logprobs and logprobs is not False
        is_chat = capabilities.rendering == "messages"
        # A chat may return log-probabilities, but no token ids, so that steps have none.
        self._may_ask_certainty = (capabilities.logprobs or is_chat) and logprobs is not False
        self._renderer = Renderer() if is_chat else renderer(client, address, capabilities, vocabulary)
        self._wire: Wire = self._chat() if is_chat else self.profile.wire(address, capabilities.model, self.profile)
        self._stream_wire = self._wire if self._wire.streams else Completions(address, capabilities.model, self.profile)
        self._max_answer_tokens: int | None = None  # from error messages of the server
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
        thinking_field: str | None = None,
        context_length: int | None = None,
        **connection: Any,
    ) -> HTTPLanguageModel:
        """Open a served model: find out what the server can do.

        Args:
            path: its address, "http://HOST:PORT/v1#MODEL".
            engine: "vllm", "sglang", "llama.cpp", "tgi", "transformers", "ollama" or "openai", where the server gives
                no sign of which it is.
            tokenizer: the model's tokenizer, a folder or a name on the hub (extra `local`), for servers that complete
                prompts but do not render conversations.
            seeds, logprobs, shares_prefixes, thinking_field: see the class.
            context_length: of the model, where the server does not report it.
            connection: see `motes.transport.Client.open`.

        Raises:
            UnreachableError: nothing answers.
            UnauthorizedError: the server wants a key.
            UnknownNameError: it has no such model.
            ConfigurationError: it is not an OpenAI-compatible server, or an option is out of its range.
        """
        logprobs, shares_prefixes = flag("logprobs", logprobs), flag("shares_prefixes", shares_prefixes)
        length = None if context_length is None else whole_number("context_length", context_length)
        address = Address.parse(path)
        client = Client.open(address, **connection)
        vocabulary = None if tokenizer is None else _vocabulary(tokenizer)
        capabilities = now(probe(client, address, engine=engine, vocabulary=vocabulary))
        return cls(
            client,
            address,
            capabilities if length is None else replace(capabilities, context_length=length),
            vocabulary=vocabulary,
            seeds=seeds,
            logprobs=logprobs,
            shares_prefixes=shares_prefixes,
            thinking_field=thinking_field,
        )

    @property
    def takes_thinking_budget(self) -> bool:
        """Whether requests for whole answers have a field for the thinking budget."""
        return self.thinking_field is not None

    def _chat(self) -> Chat:
        wire = Chat(self.address, self.capabilities.model, self.profile)
        wire.thinking_field = self.thinking_field
        return wire

    @property
    def continues_prefixes(self) -> bool:
        """Whether it can write step by step; otherwise it writes whole answers only."""
        return self.capabilities.route != "answers"

    def gives_logprobs(self, sampling: Sampling) -> bool:
        """Whether steps carry log-probabilities. Streams in another format than whole responses do not."""
        return self._wants_logprobs(sampling) and (self._stream_wire is self._wire or not self._is_cut(sampling))

    async def thought_opening(self, problem: Problem) -> str:
        """See `motes.protocols.LanguageModelTraits`."""
        prompt = await self._renderer.prompt(problem)
        return HARMONY[1] if prompt.in_harmony else prompt.before.strip()

    def gives_certainty(self, sampling: Sampling) -> bool:
        """Whether steps carry `Step.certainty`. The tokens of a stop string may have none."""
        has_form = self._stream_wire is self._wire or not self._is_cut(sampling)
        return sampling.top_logprobs > 0 and self._may_ask_certainty and has_form

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        """See `motes.protocols.LanguageModel`. Concurrent calls of one turn of the event loop share requests.
        Cancelling a call closes its requests at once, unless others wait for them, too.

        Raises:
            ConfigurationError: the server cannot sample so, or cannot continue an answer.
            UnauthorizedError: the server does not accept the key any more.
            ContextLengthError: no prompt fits.
        """
        self.profile.sampling_fields(sampling)
        if sampling.step_entropy is not None:
            raise ConfigurationError(
                f"{self!r} cannot end steps where the next token is uncertain, only a local model can: end them by a "
                "number of tokens (`--step-tokens`), a delimiter or a pattern"
            )
        if sampling.top_logprobs > self.profile.most_top_logprobs:
            raise ConfigurationError(
                f"{self!r} returns the log-probabilities of at most {self.profile.most_top_logprobs} tokens in each "
                f"place, not of {sampling.top_logprobs}: ask for fewer (top_logprobs)"
            )
        if not self.continues_prefixes and any(trajectory.depth for trajectory in trajectories):
            raise ConfigurationError(f"{self!r} cannot continue an answer: draw whole ones")
        steps = [PendingStep(trajectory, sampling, seed) for trajectory, seed in zip(trajectories, seeds, strict=True)]
        outcomes = await self._batcher.submit(steps)
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
        if errors and len(errors) == len(outcomes) and all(isinstance(error, ContextLengthError) for error in errors):
            raise errors[0]
        return outcomes

    def prompt_ids(self, problem: Problem) -> Sequence[int]:
        """The token ids of a problem that has been asked; empty if the server's tokens are unknown."""
        return self._renderer.known_ids(problem)

    async def prompt_text(self, problem: Problem) -> str | None:
        """See `motes.protocols.LanguageModelTraits`. None if the server makes the prompt of messages."""
        prompt = await self._renderer.prompt(problem)
        return prompt.text if prompt.ids is None else await self._renderer.decode(prompt.ids)

    async def draw_turn(self, fields: Mapping[str, Any], sampling: Sampling, seed: int) -> Turn:
        """A whole turn of the assistant, which may have tool calls.

        Args:
            fields: of the request, as OpenAI's chat has them: `messages`, `tools`, `response_format` and others.
            sampling: its limits on steps have no effect.

        Raises:
            MotesError: see `motes.transport.Client.post`.
        """
        wire = self._chat()
        body = {"model": self.capabilities.model, **fields, **self.profile.sampling_fields(sampling)}
        body |= wire.thinking_fields(sampling)
        if (limit := sampling.max_tokens) is not None:
            body[wire.limit_field] = limit
        if sampling.stops:
            body["stop"] = list(sampling.stops)
        if self.seeds != "none":
            body["seed"] = seed % self.profile.seed_below
        read = partial(read_turn, wire=wire)
        turn: Turn = await self.client.post(wire.url, body, read=read, num_tokens=sampling.max_tokens or MAX_TURN)
        return turn

    async def _process(self, pending: list[PendingStep]) -> None:
        """Send the requests for all pending steps of one turn of the event loop."""
        # 1. Make a prompt for each node of a run.
        nodes: dict[tuple[int, Sampling], list[PendingStep]] = {}
        for step in pending:
            nodes.setdefault((id(step.trajectory), step.sampling), []).append(step)
        prepared = await gather(self._prepare(node) for node in nodes.values())
        # 2. Put the prompts together that can share a request.
        calls: dict[tuple[Request, int], list[Part]] = {}
        for result, node in zip(prepared, nodes.values(), strict=True):
            if isinstance(result, (Step, Failure)):
                for step in node:
                    step.settle(result)
            else:
                prompt, limit = result
                self._add_parts(prompt, limit, node, calls)
        # 3. Start the calls.
        for (request, _), parts in calls.items():
            for start in range(0, len(parts), PROMPTS_PER_CALL):
                self._start_call(request, parts[start : start + PROMPTS_PER_CALL])

    async def _prepare(self, node: list[PendingStep]) -> Step | Failure | tuple[Prompt, int]:
        """The prompt of a node and the limit on tokens of its next step, or the outcome if it needs no request."""
        trajectory, sampling = node[0].trajectory, node[0].sampling
        limit = sampling.max_step_tokens
        try:
            prompt = await self._renderer.extended(trajectory)
            if (step := step_in_overrun(prompt.before, sampling)) is not None:
                return step
            context = self.capabilities.context_length
            # Tokens of a text are counted where they may fill the context. No token is shorter than a byte.
            if context is not None and prompt.text is not None and len(prompt.text.encode()) + limit >= context:
                prompt = replace(prompt, length=await self._renderer.count(prompt.text))
        except OF_ONE_REQUEST as error:
            return Failure(error)
        length = prompt.known_tokens
        if sampling.max_tokens is not None:
            limit = min(limit, sampling.max_tokens - trajectory.num_tokens)
        if self._max_answer_tokens is not None:
            limit = min(limit, self._max_answer_tokens)
        if context is not None and length is not None:
            if length >= context and not trajectory.depth:
                message = f"the prompt has {length} tokens and {self!r} a context of {context}: shorten the question"
                return Failure(ContextLengthError(message))
            limit = min(limit, context - length)
        return (prompt, limit) if limit > 0 else Step("", "length")

    def _add_parts(
        self, prompt: Prompt, limit: int, node: list[PendingStep], calls: dict[tuple[Request, int], list[Part]]
    ) -> None:
        """Divide a node into parts of requests. `calls` has the parts by the request that they can share."""
        sampling = node[0].sampling
        is_greedy = sampling.temperature == 0
        logprobs = self.gives_logprobs(sampling) or self.gives_certainty(sampling)
        is_cut = self._is_cut(sampling)
        # 1. Each part has a prompt with up to `size` answers; at temperature 0 all steps use the same answer.
        if is_greedy:
            size, groups = len(node), [[node]]
        else:
            differ = self.seeds == "none" or (self.seeds == "group" and self.profile.choices_differ)
            size = self.capabilities.choices if differ else 1
            groups = [[[step] for step in node[start : start + size]] for start in range(0, len(node), size)]
        # 2. Prompts of different runs share a request only where no answer has to wait for the slowest. A stream that
        # this side cuts is closed when its step ends, and cannot be shared, either.
        may_share = is_greedy or (self.seeds == "none" and size > 1)
        is_shared = self.capabilities.several_prompts and not is_cut and may_share
        for i, group in enumerate(groups):
            seed = None if is_greedy else self._seed(group[0][0])
            request = Request((), sampling, limit, len(group), seed, logprobs, is_cut, self.profile.several_prompts)
            calls.setdefault((request, i if is_shared else id(group)), []).append((prompt, group))

    def _seed(self, step: PendingStep) -> int | None:
        return None if self.seeds == "none" else step.seed % self.profile.seed_below

    def _wants_logprobs(self, sampling: Sampling) -> bool:
        """Whether steps need log-probabilities: always, or only where the model's are those of the sampling."""
        parameters = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        return self.logprobs or (self._may_ask_logprobs and parameters == (1.0, 1.0, 0, 0.0))

    def _is_cut(self, sampling: Sampling) -> bool:
        """Whether this side finds the ends of steps."""
        num_texts = len(sampling.delimiters) + len(sampling.stops)
        too_many = self.profile.max_stops is not None and num_texts > self.profile.max_stops
        loses_logprobs = not self.profile.logprobs_of_stops and self._wants_logprobs(sampling)
        cannot_stop = too_many or loses_logprobs or not self.capabilities.tells_end
        return sampling.pattern is not None or (num_texts > 0 and cannot_stop)

    def _start_call(self, request: Request, parts: list[Part]) -> None:
        """Start a call with the prompts of these parts."""
        request = replace(request, prompts=tuple(prompt for prompt, _ in parts))
        self._batcher.start(self._call(request, parts), steps_of(parts))

    async def _call(self, request: Request, parts: list[Part]) -> None:
        """Send a request; after a refusal change it, or divide it, as the error message says."""
        for num_left in reversed(range(ADAPTATIONS + 1)):
            try:
                await self._send(request, [steps for _, group in parts for steps in group])
            except OF_ONE_REQUEST as error:
                is_refused = isinstance(error, RejectedError)
                if is_refused and request.n > 1 and is_about(str(error), "n"):
                    # The server gives only one answer to each prompt: do not ask it for more again.
                    self.capabilities = replace(self.capabilities, choices=1)
                    for prompt, group in parts:
                        for steps in group:
                            self._start_call(replace(request, n=1, seed=self._seed(steps[0])), [(prompt, [steps])])
                elif is_refused and num_left and self._wire.omit(unsupported_field(str(error)), request):
                    continue
                elif len(parts) > 1 and may_be_of_one(error):
                    # In the end only the refused prompt fails.
                    waiting = [part for part in parts if any(step.is_waiting for step in steps_of([part]))]
                    middle = -(-len(waiting) // 2)
                    for half in filter(None, (waiting[:middle], waiting[middle:])):
                        self._start_call(request, half)
                elif num_left and (limit := self._lower_limit(request, error)) > 0:
                    request = replace(request, limit=limit)
                    continue
                else:
                    is_full = isinstance(error, ContextLengthError)
                    for step in steps_of(parts):
                        is_complete = is_full and step.trajectory.depth  # it has begun, and is as long as it can be
                        if step.is_waiting:
                            step.settle(Step("", "length") if is_complete else Failure(error, step.wasted))
            return

    def _lower_limit(self, request: Request, error: MotesError) -> int:
        """A lower limit of tokens to try after a refusal; 0: the error is about something else, or the context is full.

        If the message contains no number that helps, the limit is halved, so that an answer ends only where the server
        does not grant a single token.
        """
        is_full = isinstance(error, ContextLengthError)
        if not is_full and not (isinstance(error, RejectedError) and is_about_length(str(error))):
            return 0
        reported = limits(str(error))
        if reported.most is not None and reported.most < request.limit:
            self._max_answer_tokens = reported.most
        known = self.capabilities.context_length
        if reported.context is not None and (known is None or reported.context < known):
            self.capabilities = replace(self.capabilities, context_length=reported.context)
        if reported.room is not None and reported.room < request.limit:
            return max(0, reported.room)
        return request.limit // 2

    async def _send(self, request: Request, receivers: list[list[PendingStep]]) -> None:
        """Send a request, and settle the steps that use its answers."""

        def settle(index: int, answer: Answer) -> None:
            for step in receivers[index]:
                step.has_answer = True
            self._batcher.start(self._make_step(request, index, answer, receivers[index]), receivers[index])

        wire = self._stream_wire if request.is_cut else self._wire
        call = Call(wire, request, settle)
        try:
            if request.is_streamed:
                answers = await self.client.stream(
                    wire.url, wire.body(request), call.follow, num_tokens=request.num_answers * request.limit
                )
            else:
                answers = await self.client.post(
                    wire.url, wire.body(request), read=call.read, num_tokens=request.num_answers * request.limit
                )
        finally:  # a step that still waits bears the cost of failed attempts
            receivers[min(call.waiting)][0].wasted += call.wasted
        await asyncio.gather(*(self._make_step(request, i, answers[i], receivers[i]) for i in sorted(call.waiting)))

    async def _make_step(self, request: Request, index: int, answer: Answer, steps: list[PendingStep]) -> None:
        """Make a step of an answer, and settle the pending steps that use it."""
        prompt = request.prompts[index // request.n]
        text, overrun, end = prompt.before + answer.text, "", answer.end
        if end == "step" and answer.token_ids and not (request.is_cut or self._wire.has_whole_tokens):
            with suppress(*OF_ONE_REQUEST):  # without the rest, the ids are still right, and the next step needs these
                text += await self._renderer.rest_of_token(answer.text, tuple(answer.token_ids))
        if end == "step":
            text, overrun, end = split_at_end(text, request.sampling, len(prompt.before))
        elif end == "length":
            end = end_at_limit(request.sampling, request.limit)
        prefix_tokens = 0  # the first of several answers to a prompt has the prompt's number
        if index % request.n == 0:
            is_counted_by_server = prompt.known_tokens is None and len(request.prompts) == 1
            prefix_tokens = (answer.prompt_tokens if is_counted_by_server else 0) or prompt.num_tokens
        step = Step(
            text,
            end,
            tuple(answer.token_ids),
            answer.logprob,
            overrun=overrun,
            prefix_tokens=prefix_tokens,
            certainty=self._certainty(request, answer),
            thought_tokens=answer.thought_tokens,
        )
        usage = answer.usage
        for pending in steps:
            pending.settle(replace(step, usage=usage + pending.wasted))
            usage = Usage()  # sampled once, paid for once

    def _certainty(self, request: Request, answer: Answer) -> Certainty | None:
        """How certain the model was of an answer's tokens. A stop string may have been all of it, for whose tokens some
        servers return nothing: then it is known of none of them, which is not the same as unknown."""
        certainty = Certainty.concatenate(answer.certainties)
        k = request.sampling.top_logprobs
        if certainty is None and k and answer.end == "step" and not self.profile.logprobs_of_stops:
            return Certainty.none(k)
        return certainty


def _vocabulary(path: str) -> Vocabulary:
    try:
        from motes.vocabulary import Vocabulary
    except ImportError as error:
        raise MissingExtraError("a tokenizer on this side", "tokenizer") from error
    try:
        return Vocabulary.load(path)
    except Exception as error:  # the libraries that read these files have errors without a common base class
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"there is no tokenizer at {path!r}: {reason}") from error
