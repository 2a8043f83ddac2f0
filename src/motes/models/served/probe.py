"""The capabilities of a server, as a value, and the few short requests that find them out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from motes.core import Problem, Sampling
from motes.errors import ContextLengthError, ServerError
from motes.models.served.engines import PROFILES
from motes.models.served.prompts import Prompt, Renderer, TokenizerRenderer
from motes.models.served.responses import Answer, Call
from motes.models.served.wires import Chat, Request, Wire
from motes.text import REPLACEMENT
from motes.transport import Address, Client, Server, identify, whole_number_of
from motes.transport.server import loaded_context_length

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

Route = Literal["ids", "text", "chat", "answers"]

ROUTES: dict[Route, str] = {
    "ids": "completes a prompt of token ids",
    "text": "completes a prompt of text",
    "chat": "continues the last message of a chat",
    "answers": "answers a chat, whole",
}

GREETING = Problem("Say hello.")
COUNTING = Problem("Count from 1 to 20, the numbers separated by commas, nothing else.")
NUMBERS = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"
PLAIN = Sampling(temperature=1.0, delimiter=None)
OF_ONE_REQUEST = (ServerError, ContextLengthError)
"""Errors that concern one request, which the server may not support. Other errors, such as a missing key or a wrong
model, concern all requests."""


@dataclass(frozen=True, kw_only=True)
class Capabilities(Server):
    """What a server is, see `motes.transport.Server`, and what it can do."""

    route: Route  # the best way to continue an answer that the server has; "answers": there is none
    # Where a conversation becomes a prompt: on the server, or in a tokenizer on this side. "messages": nowhere, the
    # requests contain the messages.
    rendering: Literal["server", "tokenizer", "messages"] = "messages"
    token_ids: bool = False  # whether responses contain the sampled token ids
    tells_end: bool = False  # whether responses say which of a delimiter and the end of sequence ended an answer
    seeds: bool = False  # whether the seed of a request decides its tokens
    choices: int = 1  # maximum number of answers to one prompt in one request
    several_prompts: bool = False  # whether a request can have several prompts
    logprobs: bool = False  # whether responses contain log-probabilities
    cached_tokens: bool = False  # whether responses count the tokens from the prefix cache

    def findings(self) -> list[tuple[str, bool, str]]:
        """The capabilities that matter: name, whether it is there, what is lost without it."""
        ids = (
            "every step's text is tokenised anew, which can change what the model would have written, and misses the "
            "prefix cache"
        )
        if self.route == "chat":
            ids += (
                "; a chat template that trims messages loses the blank lines at the end of a step, and the next step "
                "may come out empty"
            )
        by_steps = self.route != "answers"
        steps = "only methods that draw whole answers work: greedy, majority, asc, bon, wbon, refine, pdr"
        end = "this side cuts answers, which come as a stream: the server samples a few tokens too many at each step"
        choices = "equal particles need a request each: only the server's prefix cache can share their prompt"
        cached = "usage counts every prefix as computed: prefill_tokens is an upper bound"
        logprobs = "neither the power filter, nor the reward confidence:, nor deepconf can be used"
        context = "what does not fit is known only when the server refuses it"
        table = (  # name, whether it is there, loss, whether it matters for whole answers, too
            ("continues an answer step by step", by_steps, steps, True),
            ("takes token ids as prompts", self.route == "ids", ids, False),
            ("returns the sampled token ids", self.token_ids, "tokens are counted by the server, or estimated", False),
            ("tells a delimiter from the end of the answer", self.tells_end, end, False),
            ("draws by the seed of a request", self.seeds, "runs cannot be repeated: each gives other tokens", True),
            ("several answers to one prompt", self.choices > 1, choices, True),
            ("several prompts in one request", self.several_prompts, "more requests, each with its overhead", False),
            ("log-probabilities", self.logprobs, logprobs, False),
            ("counts tokens from its prefix cache", self.cached_tokens, cached, False),
            ("tells its context length", self.context_length is not None, context, True),
        )
        return [row[:3] for row in table if by_steps or row[3]]

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.engine}{version}, {self.model}: {ROUTES[self.route]}"


LOGPROB_DRAWS = 16
"""Maximum number of further answers that are drawn to find out whether a server gives log-probabilities, as long as
they end within a character."""


async def probe(
    client: Client, address: Address, *, engine: str | None = None, vocabulary: Vocabulary | None = None
) -> Capabilities:
    """The capabilities of the server at an address.

    Args:
        engine: its name, where the server gives no sign of it.
        vocabulary: a tokenizer on this side, for servers that cannot render a conversation.

    Raises:
        UnreachableError, UnauthorizedError, UnknownNameError, ConfigurationError: see `motes.transport.identify`.
        ServerError: it answers neither a completion nor a chat.
    """
    server = await identify(client, address, engine)
    capabilities = await _completion_capabilities(client, address, server, vocabulary)
    if capabilities is None:
        capabilities = await _chat_capabilities(client, address, server)
    # Some servers load a model with the first request, and know its context then.
    loaded = await loaded_context_length(client, address, server)
    return capabilities if loaded is None else replace(capabilities, context_length=loaded)


def renderer(client: Client, address: Address, server: Server, vocabulary: Vocabulary | None) -> Renderer:
    """The renderer of prompts for a server, with the tokenizer on this side if there is one."""
    profile = PROFILES[server.engine]
    if vocabulary is not None:
        return TokenizerRenderer(vocabulary, takes_ids=profile.takes_ids)
    return Renderer() if profile.renderer is None else profile.renderer(client, address, server.model)


async def _completion_capabilities(
    client: Client, address: Address, server: Server, vocabulary: Vocabulary | None
) -> Capabilities | None:
    """The capabilities of a server that completes prompts; None: it does not."""
    profile = PROFILES[server.engine]
    if profile.wire is Chat:
        return None
    wire = profile.wire(address, server.model, profile)
    try:
        prompt = await renderer(client, address, server, vocabulary).prompt(GREETING)
        if prompt.messages:  # nothing renders them
            return None
        one_answer = await _draw(client, wire, Request((prompt,), PLAIN, 1))
    except OF_ONE_REQUEST:
        return None

    async def draw(n: int = 1, num_prompts: int = 1, logprobs: bool = False) -> Answer | None:
        try:
            return await _draw(client, wire, Request((prompt,) * num_prompts, PLAIN, 1, n, logprobs=logprobs))
        except OF_ONE_REQUEST:
            return None

    of_two_answers = await draw(n=2, logprobs=True) if profile.choices else None
    of_two_prompts = await draw(num_prompts=2) if profile.several_prompts else None
    with_logprobs = of_two_answers or await draw(logprobs=True)
    for _ in range(LOGPROB_DRAWS):
        if with_logprobs is None or with_logprobs.logprob is not None or not _is_within_character(with_logprobs):
            break
        with_logprobs = await draw(logprobs=True)
    slots = whole_number_of(server.info.get(profile.slots or "")) or profile.most_choices
    return Capabilities(
        **vars(server),
        route="text" if prompt.ids is None else "ids",
        rendering="server" if vocabulary is None else "tokenizer",
        token_ids=bool(one_answer.token_ids),
        tells_end=profile.tells_end,
        seeds=profile.seeds or bool(server.info.get("enable_deterministic_inference")),  # SGLang's option
        choices=1 if of_two_answers is None else min(profile.most_choices, slots),
        several_prompts=of_two_prompts is not None,
        logprobs=with_logprobs is not None and with_logprobs.logprob is not None,
        cached_tokens=one_answer.cached_tokens is not None,
    )


async def _chat_capabilities(client: Client, address: Address, server: Server) -> Capabilities:
    """The capabilities of a server that answers chats. Raises ServerError if it does not."""
    profile = PROFILES[server.engine]
    wire = Chat(address, server.model, profile)
    greedy = Sampling(temperature=0.0, delimiter=None)

    async def answer(problem: Problem, prefix: str = "") -> str:
        prompt = Prompt(messages=problem.messages, prefix=prefix)
        return (await _draw(client, wire, Request((prompt,), greedy, 8))).text

    route: Route = "answers"
    if profile.wire is not Chat:
        with suppress(*OF_ONE_REQUEST):
            text = await answer(COUNTING, NUMBERS if profile.prefill is None else "Hello")
            # The profiles of some engines say that they continue a message. Others have to prove it.
            if profile.prefill is not None or text.strip().startswith("12"):
                route = "chat"
        if route == "answers":
            await answer(GREETING)
    return Capabilities(
        **vars(server),
        route=route,
        seeds=profile.seeds,
        tells_end=profile.keeps_stop is not None or route == "answers",
        choices=1 if profile.choices is None else profile.most_choices,
    )


def _is_within_character(answer: Answer) -> bool:
    """Whether an answer may end within a character, for which llama.cpp gives no log-probability."""
    return not answer.text or REPLACEMENT in answer.text


async def _draw(client: Client, wire: Wire, request: Request) -> Answer:
    """The first answer to a request."""
    read, num_tokens = Call(wire, request).read, request.num_answers * request.limit
    answers: list[Answer] = await client.post(
        wire.url, wire.body(request), read=read, attempts=2, num_tokens=num_tokens
    )
    return answers[0]
