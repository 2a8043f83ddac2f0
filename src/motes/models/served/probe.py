"""Find out what a server can do, once. Costs a few requests of one token each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from motes.errors import ContextLengthError, ServerError
from motes.http import Address, Client, Server, identify
from motes.http.server import loaded_context_length
from motes.models.served.capabilities import Capabilities, Rendering, Route
from motes.models.served.native import WIRES
from motes.models.served.profiles import PROFILES, Profile
from motes.models.served.prompts import RENDERERS, Renderer, renderer
from motes.models.served.wires import Chat, Drawn, Prompt, Request, Wire
from motes.types import Problem, Sampling

if TYPE_CHECKING:
    from motes.vocabulary import Vocabulary

GREETING = Problem("Say hello.")
COUNTING = Problem("Count from 1 to 20, the numbers separated by commas, nothing else.")
COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,"
PLAIN = Sampling(temperature=1.0, delimiter=None)
LEFT_OUT = (ServerError, ContextLengthError)  # what it cannot do; a missing key or a wrong model is raised


async def probe(
    client: Client, address: Address, *, engine: str | None = None, vocabulary: Vocabulary | None = None
) -> Capabilities:
    """What the server can do.

    Args:
        engine: its name, where it gives no sign of itself.
        vocabulary: a tokenizer on this side, for servers that cannot render a conversation.

    Raises:
        UnreachableError, UnauthorizedError, UnknownNameError, ConfigurationError: see `motes.http.identify`.
        ServerError: it answers neither a completion nor a chat.
    """
    server = await identify(client, address, engine)
    found = await _abilities(client, address, server, vocabulary)
    loaded = await loaded_context_length(client, address, server)  # only now that something was drawn
    return found if loaded is None else replace(found, context_length=loaded)


async def _abilities(client: Client, address: Address, server: Server, vocabulary: Vocabulary | None) -> Capabilities:
    profile = PROFILES[server.engine]
    known = Capabilities(
        engine=server.engine,
        version=server.version,
        model=server.model,
        models=server.models,
        context_length=server.context_length,
        route="answers",
        origin=server.origin,
    )
    rendering = await _rendering(client, address, server, vocabulary)
    if profile.wire is not None and rendering != "messages":
        made = renderer(server.engine, client, address, server.model, vocabulary, kind=rendering, ids=profile.takes_ids)
        wire = WIRES[profile.wire](address, server.model, profile)
        found = await _completes(client, wire, profile, made, replace(known, rendering=rendering))
        if found is not None:
            deterministic = bool(server.told.get("enable_deterministic_inference"))  # SGLang's word for it
            slots = server.told.get(profile.slots or "") or profile.most_choices
            most = min(profile.most_choices, int(slots)) if found.choices > 1 else 1
            return replace(found, seeds=profile.seeds or deterministic, choices=most)
    return await _chats(client, Chat(address, server.model, profile), profile, known)


async def _rendering(client: Client, address: Address, server: Server, vocabulary: Vocabulary | None) -> Rendering:
    """Who can make a prompt of a conversation."""
    if vocabulary is not None:
        return "tokenizer"
    if server.engine in RENDERERS:
        try:
            await RENDERERS[server.engine](client, address, server.model).prompt(GREETING)
        except LEFT_OUT:
            return "messages"
        return "server"
    return "messages"


async def _completes(
    client: Client, wire: Wire, profile: Profile, made: Renderer, known: Capabilities
) -> Capabilities | None:
    """What the completion of a prompt can do; None where there is no such thing."""
    prompt = await made.prompt(GREETING)

    async def drawn(**options: object) -> list[Drawn] | None:
        request = replace(Request((prompt,), PLAIN, limit=1), **options)  # type: ignore[arg-type]
        try:
            answers: list[Drawn] = await client.post(
                wire.url, wire.body(request), read=lambda answer: wire.read(answer, request), attempts=2
            )
        except LEFT_OUT:
            return None
        return answers

    one = await drawn()
    if one is None:
        return None
    two = await drawn(n=2, logprobs=True) if profile.choices else None
    both = await drawn(prompts=(prompt, prompt)) if profile.several_prompts else None
    scored = two or await drawn(logprobs=True)
    return replace(
        known,
        route="ids" if prompt.ids is not None else "text",
        token_ids=bool(one[0].token_ids),
        tells_end=profile.tells_end,
        choices=1 if two is None else profile.most_choices,
        several_prompts=both is not None,
        logprobs=scored is not None and scored[0].logprob is not None,
        cached_tokens=one[0].cached_tokens is not None,
    )


async def _chats(client: Client, chat: Chat, profile: Profile, known: Capabilities) -> Capabilities:
    """What a chat can do."""
    route: Route = "answers"
    if not profile.closed:
        prefix = COUNTED if profile.prefill is None else "Hello"
        try:
            text = await _said(client, chat, Prompt(messages=COUNTING.messages, prefix=prefix))
        except LEFT_OUT:
            text = None
        # An engine whose profile says so continues; of others only a continuation is a proof.
        if text is not None and (profile.prefill is not None or text.strip().startswith("12")):
            route = "chat"
    if route == "answers" and not profile.closed:
        await _said(client, chat, Prompt(messages=GREETING.messages))  # raises where even that fails
    return replace(
        known,
        route=route,
        seeds=profile.seeds,
        tells_end=profile.keeps_stop is not None or route == "answers",
        choices=1 if profile.choices is None else profile.most_choices,
    )


async def _said(client: Client, chat: Chat, prompt: Prompt) -> str:
    request = Request((prompt,), Sampling(temperature=0.0, delimiter=None), limit=8)
    answers: list[Drawn] = await client.post(
        chat.url, chat.body(request), read=lambda answer: chat.read(answer, request), attempts=2
    )
    return answers[0].text
