"""A process reward model behind a server, of any family that servers can score; see `motes.rewards.served.routes`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from motes.checkpoint import checkpoint_config
from motes.concurrency import Batcher, Pending
from motes.core import Failure, Trajectory
from motes.errors import ConfigurationError, ContextLengthError, RejectedError, ServerError
from motes.rewards.families import FAMILIES, Family, NextToken, family
from motes.rewards.format import Format
from motes.rewards.reading import ANSWERS, QUESTION, Key, Prefix, Reader, Reading, wants_self_test
from motes.rewards.served.probe import family_of, serves_pooling
from motes.rewards.served.routes import ROUTES, Pooling, Route
from motes.transport import Address, Client, ServedModel, Server, identify, may_be_of_one, now, whole_number
from motes.vocabulary import Vocabulary

Values = list[float]


@dataclass(eq=False)
class _Reading(Reading, Pending[Values | Failure]):
    """A text that waits for its scores."""


class ServedPRM(ServedModel):
    """A process reward model behind a server.

    Args:
        client, address: of the server.
        server: see `motes.transport.identify`.
        vocabulary: the model's tokenizer, on this side: text that spells a tag must stay text, and a step must get the
            same tokens whatever is before it. The servers' `/tokenize` guarantees neither.
        format: the model's family, by name or as your own declaration.
        prefix: "steps" or "whole", see `motes.rewards.reading.Reader`.

    Raises:
        ConfigurationError: servers of this engine cannot score this family.
    """

    merges_calls = True

    def __init__(
        self,
        client: Client,
        address: Address,
        server: Server,
        vocabulary: Vocabulary,
        *,
        format: str | Family,
        prefix: Prefix = "steps",
    ) -> None:
        super().__init__(client, address)
        self.server = server
        self.vocabulary = vocabulary
        self.format = Format(family(format), vocabulary)
        self.prefix = prefix
        self.route: Route = _route(server, self.format.family)(client, address, server.model, self.format.words)
        self.context_length = None if server.context_length is None else server.context_length - self.route.extra_tokens
        self._reader = Reader(
            self.format,
            prefix,
            name=server.model,
            context_length=self.context_length,
            reading=_Reading,
            keeps=self.route.has_cache,
        )
        self._batcher: Batcher[_Reading, Values | Failure] = Batcher(self._process)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        format: str | Family | None = None,
        tokenizer: str | None = None,
        prefix: Prefix = "steps",
        self_test: bool = True,
        engine: str | None = None,
        context_length: int | None = None,
        **connection: Any,
    ) -> ServedPRM:
        """Open a served reward model: find out which requests its server needs, and let it score four short answers.

        Args:
            path: its address, "http://HOST:PORT#MODEL"; with or without /v1.
            format: its family; by default the family of its architecture or its name.
            tokenizer: the model's tokenizer, a folder or a name on the hub; by default the one from which the server
                has loaded its model, if this side can open it, too.
            prefix: see `motes.rewards.reading.Reader`.
            self_test: whether to refuse a model whose scores do not vary (0 or 1).
            engine: "vllm", "sglang" or "llama.cpp", if the server gives no sign which one it is.
            context_length: if the server does not report it.
            connection: see `motes.transport.Client.open`.

        Raises:
            UnreachableError: nothing answers.
            UnauthorizedError: the server wants a key.
            UnknownNameError: it has no such model, or there is no such format.
            ConfigurationError: its family or its tokenizer is unknown, its server cannot score it or was started for
                something else, or its scores do not vary.
            BadResponseError: a response contains no scores.
        """
        wants_test = wants_self_test(self_test)
        if context_length is not None:
            context_length = whole_number("context_length", context_length)
        address = Address.parse(path)
        client = Client.open(address, **connection)
        server = now(identify(client, address, engine))
        if context_length is not None:
            server = replace(server, context_length=context_length)
        # 1. Whether it is a reward model. Only then does the hub have anything to add.
        has_pooling = now(serves_pooling(client, address))
        chosen_family = family(format) if format is not None else _find_family(server, tokenizer, address, has_pooling)
        if _route(server, chosen_family) is Pooling and not has_pooling:
            now(_require_pooling(client, address))
        # 2. Its tokenizer, and its scores.
        prm = cls(client, address, server, _load_vocabulary(server, tokenizer), format=chosen_family, prefix=prefix)
        now(prm._self_test(wants_test))
        return prm

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. Texts of concurrent calls share requests, and equal texts are sent once. A
        step with a score is not read again.

        Raises:
            UnauthorizedError: the server no longer accepts the key.
            ContextLengthError: a problem alone does not fit the context.
        """
        return await self._reader.score(trajectories, self._batcher.submit)

    def forget(self) -> None:
        """See `motes.protocols.RewardModel`."""
        self._reader.forget()

    def findings(self) -> list[tuple[str, bool, str]]:
        """The server's capabilities that matter, each as its name, whether it has it, and the loss without it."""
        spared = "its prefix cache does not serve this route: each score costs the whole answer up to its step"
        cached = "usage counts every text as computed: an upper bound"
        context = "what does not fit is known only when the server refuses it"
        findings = [
            ("reads new steps only", self.route.has_cache, spared),
            ("counts tokens from its prefix cache", self.route.counts_cached, cached),
            ("several texts in one request", self.route.texts_per_call > 1, "more requests, each with its overhead"),
            ("tells its context length", self.context_length is not None, context),
        ]
        return findings if self.route.has_cache else [findings[0], *findings[2:]]

    async def _process(self, readings: list[_Reading]) -> None:
        """Read the texts of one turn of the event loop, equal ones once. The first request for a text pays for it."""
        by_key: dict[Key, list[_Reading]] = {}
        for reading in readings:
            by_key.setdefault(reading.key, []).append(reading)
        by_rounds: dict[int, list[list[_Reading]]] = {}
        for group in by_key.values():
            by_rounds.setdefault(self.route.rounds(group[0]), []).append(group)
        size = self.route.texts_per_call
        for groups in by_rounds.values():
            for start in range(0, len(groups), size):
                self._start(groups[start : start + size])

    def _start(self, groups: list[list[_Reading]]) -> None:
        self._batcher.start(self._call(groups), [reading for group in groups for reading in group])

    async def _call(self, groups: list[list[_Reading]]) -> None:
        """Send the requests for these texts. If one of several texts may be the cause of an error, send each by itself,
        so that the others do not fail with it."""
        outcomes: Sequence[Values | Failure]
        try:
            outcomes = await self.route.read([group[0] for group in groups])
        except (ContextLengthError, ServerError) as error:
            if len(groups) > 1 and may_be_of_one(error):
                for group in groups:
                    self._start([group])
                return
            outcomes = [Failure(error)] * len(groups)
        for group, outcome in zip(groups, outcomes, strict=True):
            for reading in group:
                reading.settle(outcome)

    async def _self_test(self, self_test: bool) -> None:
        """Check that both sides have the same tokenizer, and that the server returns scores, which vary."""
        await self._compare_tokenizers()
        scores: list[float] = []
        for outcome in await self._batcher.submit(self._reader.texts(QUESTION, ANSWERS)):
            if isinstance(outcome, Failure):
                if not isinstance(outcome.error, RejectedError):
                    raise outcome.error
                raise ConfigurationError(
                    f"{self!r} gives no scores of the family {self.format.family.name}: start the server as "
                    f"`{self.route.start}`. {outcome.error}"
                ) from outcome.error
            scores += outcome
        if self_test:
            self._reader.refuse_constant(scores)

    async def _compare_tokenizers(self) -> None:
        """Check that tokens of this side's tokenizer have the same text on the server, if it can decode them."""
        text = f"{QUESTION.question} {' '.join(ANSWERS)}"
        body = {"model": self.server.model, "tokens": self.vocabulary.encode(text, special=False)}
        try:
            response = await self.client.post(f"{self.address.root}/detokenize", body, attempts=2)
        except ServerError:
            return
        keys = ("prompt", "text", "content")
        texts = [response[key] for key in keys if key in response] if isinstance(response, dict) else []
        if texts and str(texts[0]).strip() != text.strip():
            raise ConfigurationError(
                f"the tokenizer on this side is not that of {self!r}, which reads {str(texts[0])[:60]!r} where "
                f"{text[:60]!r} was written: name the right one with tokenizer=PATH_OR_NAME"
            )


def _find_family(server: Server, tokenizer: str | None, address: Address, has_pooling: bool) -> Family:
    """The family of the model, by its name or its config.json. Unless it may be a reward model, the config is read from
    this machine's disk only, not from the hub."""
    known_family = family_of(server, tokenizer)
    source = tokenizer or server.origin
    if known_family is None and source is not None and (tokenizer or has_pooling or os.path.exists(source)):
        with suppress(ConfigurationError):  # there is only a tokenizer
            known_family = family_of(server, tokenizer, checkpoint_config(source))
    if known_family is not None:
        return known_family
    remedy = f"say its family, as in '…#{server.model}?format=NAME'; known are {', '.join(FAMILIES)}"
    if has_pooling:
        raise ConfigurationError(
            f"cannot tell which family of reward models {server.model!r} is of. If it is one, {remedy}"
        )
    raise ConfigurationError(
        f"{str(address)!r} is no reward model, as far as one can tell: its server ({server.engine}) was started to "
        f"generate text, and neither the name {server.model!r} nor its configuration is that of a known family. Name "
        f"the address of a reward model. If it is one, {remedy}"
    )


def _route(server: Server, family: Family) -> type[Route]:
    """The route by which the server's engine scores this family. Raises ConfigurationError if there is none."""
    head = "next" if isinstance(family.head, NextToken) else family.head
    routes = ROUTES.get(server.engine, {})
    if head not in routes:
        engines = [engine for engine, routes in ROUTES.items() if head in routes]
        raise ConfigurationError(
            f"no way is known to have {server.engine} score reward models of the family {family.name}: use "
            f"{', '.join(engines) or 'hf:PATH_OR_NAME, on this machine'}"
        )
    return routes[head]


async def _require_pooling(client: Client, address: Address) -> None:
    """Raise ConfigurationError if there is no `/pooling`, not even for the method POST."""
    try:
        await client.post(f"{address.root}/pooling", {}, attempts=1)
    except RejectedError as error:
        if error.status == 404:
            raise ConfigurationError(
                f"{str(address)!r} is served as no reward model: start the server as `{Pooling.start}`, or name the "
                f"address of a reward model. {error}"
            ) from error
    except ServerError:  # it does not like the body, or is busy
        pass


def _load_vocabulary(server: Server, tokenizer: str | None) -> Vocabulary:
    path = tokenizer if tokenizer is not None else server.origin
    if path is None:
        raise ConfigurationError(
            f"the tokenizer of {server.model!r} is wanted on this side: name it with tokenizer=PATH_OR_NAME"
        )
    try:
        return Vocabulary.load(path)
    except Exception as error:  # the libraries that read these files have errors without a common base class
        reason = " ".join(str(error).split())[:200]
        problem = f"there is no tokenizer at {path!r}"
        if tokenizer is None:
            problem = f"the server says that its model is {path!r}, and there is no tokenizer of that name on this side"
        raise ConfigurationError(f"{problem} ({reason}): name it with tokenizer=PATH_OR_NAME") from error
