"""What a server can do, as a value: found once by asking it, shown to the user, consulted by the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Route = Literal["ids", "text", "chat", "answers"]
Rendering = Literal["server", "tokenizer", "messages"]

ROUTES: dict[Route, str] = {
    "ids": "completes a prompt of token ids",
    "text": "completes a prompt of text",
    "chat": "continues the last message of a chat",
    "answers": "answers a chat, whole",
}


@dataclass(frozen=True)
class Capabilities:
    """What was found.

    Attributes:
        engine, version, model, models, context_length, origin: see `motes.http.Server`.
        route: how an answer is continued; the best of those that the server has. "answers": it cannot be.
        rendering: who makes a prompt of a conversation: the server, a tokenizer on this side, or nobody: messages.
        token_ids: whether the ids of drawn tokens are told.
        tells_end: whether it says if a delimiter or the end of sequence ended an answer.
        seeds: whether a request's seed decides its tokens.
        choices: how many answers one prompt can have in one request; 1: one at a time.
        several_prompts: whether one request can have several prompts.
        logprobs: whether log-probabilities are told.
        cached_tokens: whether it says what its prefix cache spared.
    """

    engine: str
    version: str | None
    model: str
    models: tuple[str, ...]
    context_length: int | None
    route: Route
    rendering: Rendering = "messages"
    token_ids: bool = False
    tells_end: bool = False
    seeds: bool = False
    choices: int = 1
    several_prompts: bool = False
    logprobs: bool = False
    cached_tokens: bool = False
    origin: str | None = None

    @property
    def continues_prefixes(self) -> bool:
        return self.route != "answers"

    def findings(self) -> list[tuple[str, bool, str]]:
        """Each capability that matters: what it is, whether it is there, and what is lost where it is not."""
        findings = [
            (
                "continues an answer step by step",
                self.continues_prefixes,
                "only methods that draw whole answers work: greedy, majority, bon, wbon",
            ),
            (
                "takes token ids as prompts",
                self.route == "ids",
                "every step's text is tokenised anew, which can change what the model would have written, and misses "
                "the prefix cache" + (self._chat_loss if self.route == "chat" else ""),
            ),
            (
                "tells the ids of drawn tokens",
                self.token_ids,
                "tokens are counted as the server says, or estimated by the pieces of a stream",
            ),
            (
                "tells a delimiter from the end of the answer",
                self.tells_end,
                "answers come as a stream that is cut on this side: a few tokens are drawn for nothing at each step",
            ),
            (
                "draws by the seed of a request",
                self.seeds,
                "runs cannot be repeated: the same seed gives other tokens",
            ),
            (
                "several answers to one prompt",
                self.choices > 1,
                "particles that are alike are asked for one by one; the server's prefix cache has to do the sharing",
            ),
            ("several prompts in one request", self.several_prompts, "more requests, each with its overhead"),
            ("log-probabilities", self.logprobs, "the power filter cannot be used"),
            (
                "tells what its cache spared",
                self.cached_tokens,
                "usage counts every prefix as computed: prefill_tokens is an upper bound",
            ),
            (
                "tells its context length",
                self.context_length is not None,
                "what does not fit is known only when the server refuses it",
            ),
        ]
        whole = (0, 4, 5, 9)  # what matters for whole answers
        return findings if self.continues_prefixes else [findings[i] for i in whole]

    _chat_loss = (
        "; where the chat template trims messages, a step that ends in blank lines loses them, and the next one may "
        "come out empty"
    )

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.engine}{version}, {self.model}: {ROUTES[self.route]}"
