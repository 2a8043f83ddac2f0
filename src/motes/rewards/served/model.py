"""A process reward model behind a server, of any family that servers can score; see `motes.rewards.served.routes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from motes.checkpoint import checkpoint_config
from motes.concurrency import Batcher, Pending
from motes.errors import (
    ConfigurationError,
    ContextLengthError,
    RejectedError,
    ServerError,
)
from motes.http import Address, Client, Server, identify, may_be_of_one, now, whole_number
from motes.rewards.families import FAMILIES, Family, family
from motes.rewards.format import Format
from motes.rewards.reading import Key, Prefix, Reader, Reading
from motes.rewards.served.probe import family_of
from motes.rewards.served.routes import ROUTES, Route, kind
from motes.rewards.variation import ANSWERS, QUESTION, is_wanted, refuse_constant
from motes.types import Failure, Trajectory
from motes.vocabulary import Vocabulary

Values = list[float]


@dataclass(eq=False)
class _PendingReading(Pending[Values | Failure]):
    """A text to be read."""

    reading: Reading


class ServedPRM:
    """A process reward model behind a server.

    Args:
        client, address: of the server.
        server: what was found there, see `motes.http.identify`.
        vocabulary: the model's tokenizer, on this side: text that spells a tag must stay text, and a step must get the
            same tokens whatever stands before it. What servers offer (`/tokenize`) can do neither.
        format: its family, by name or as a declaration of your own.
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
        self.client = client
        self.address = address
        self.server = server
        self.vocabulary = vocabulary
        self.format = Format(family(format), vocabulary)
        self.prefix = prefix
        head = kind(self.format.family.head)
        routes = ROUTES.get(server.engine, {})
        if head not in routes:
            able = [engine for engine, routes in ROUTES.items() if head in routes]
            raise ConfigurationError(
                f"no way is known to have {server.engine} score reward models of the family "
                f"{self.format.family.name}: use {', '.join(able) or 'hf:PATH_OR_NAME, on this machine'}"
            )
        self.route: Route = routes[head](client, address, server.model, self.format.words)
        self.context_length = None if server.context_length is None else server.context_length - self.route.drawn
        self._reader = Reader(
            self.format,
            prefix,
            name=server.model,
            context_length=self.context_length,
            reading=Reading,
            keeps=self.route.spares,
        )
        self._batcher: Batcher[_PendingReading, Values | Failure] = Batcher(self._process)

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
        """Open a served reward model: find out how its server is asked, and have four short answers scored.

        Args:
            path: its address, "http://HOST:PORT#MODEL"; with or without /v1.
            format: its family; by default what its architecture or its name says.
            tokenizer: the model's tokenizer, a folder or a name that the hub knows; by default what the server says
                that its model was loaded from, if that can be opened here, too.
            prefix: see `motes.rewards.reading.Reader`.
            self_test: whether to refuse a model whose scores do not vary (0 or 1).
            engine: "vllm", "sglang" or "llama.cpp", where the server gives no sign of which it is.
            context_length: where the server does not tell it.
            connection: see `motes.http.Client.open`.

        Raises:
            UnreachableError: nothing answers.
            UnauthorizedError: it wants a key.
            UnknownNameError: it has no such model, or there is no such format.
            ConfigurationError: its family or its tokenizer is not known, its server cannot score it or was started for
                something else, or its scores do not vary.
            BadResponseError: what it answers are no scores.
        """
        tested = is_wanted(self_test)
        if context_length is not None:
            context_length = whole_number("context_length", context_length)
        address = Address.parse(path)
        client = Client.open(address, **connection)
        return now(
            cls.connect(
                client,
                address,
                format=format,
                tokenizer=tokenizer,
                prefix=prefix,
                self_test=tested,
                engine=engine,
                context_length=context_length,
            )
        )

    @classmethod
    async def connect(
        cls,
        client: Client,
        address: Address,
        *,
        format: str | Family | None = None,
        tokenizer: str | None = None,
        prefix: Prefix = "steps",
        self_test: bool = True,
        engine: str | None = None,
        context_length: int | None = None,
    ) -> ServedPRM:
        """`open`, with a client that is there already."""
        server = await identify(client, address, engine)
        if context_length is not None:
            server = replace(server, context_length=context_length)
        form = family(format) if format is not None else _family(server, tokenizer or server.origin)
        prm = cls(client, address, server, _vocabulary(server, tokenizer), format=form, prefix=prefix)
        await prm._try(self_test)
        return prm

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. The texts of concurrent calls travel together, equal texts once. A step
        that has a score is not read again.

        Raises:
            UnauthorizedError: the server does not accept the key any more.
            ContextLengthError: a problem alone does not fit the context.
        """
        return await self._reader.score(trajectories, self._read)

    def forget(self) -> None:
        """See `motes.protocols.RewardModel`."""
        self._reader.forget()

    def findings(self) -> list[tuple[str, bool, str]]:
        """What matters of the server: what it is, whether it is there, and what is lost where it is not."""
        spares, tells = self.route.spares, self.route.tells_spared
        cached = ("tells what its cache spared", tells, "usage counts every text as computed: an upper bound")
        return [
            (
                "reads new steps only",
                spares,
                "its prefix cache does not serve this route: each score costs the whole answer up to its step",
            ),
            *([cached] if spares else []),
            ("several texts in one request", self.route.texts_per_call > 1, "more requests, each with its overhead"),
            (
                "tells its context length",
                self.context_length is not None,
                "what does not fit is known only when the server refuses it",
            ),
        ]

    async def ready(self) -> None:
        """Ask the server for a sign of life, once.

        Raises:
            ServerError, UnauthorizedError: it gives none.
        """
        await self.client.get(f"{self.address.base}/models", attempts=1)

    async def aclose(self) -> None:
        """Close this event loop's connections; otherwise they are closed with the loop."""
        await self.client.aclose()

    async def _read(self, readings: list[Reading]) -> list[Values | Failure]:
        return await self._batcher.submit([_PendingReading(reading) for reading in readings])

    async def _process(self, requests: list[_PendingReading]) -> None:
        """Read the texts of one turn of the event loop, equal ones once: the first to request a text pays for it."""
        equal: dict[Key, list[_PendingReading]] = {}
        for request in requests:
            equal.setdefault(request.reading.key, []).append(request)
        by_rounds = sorted(equal.values(), key=lambda group: self.route.rounds(group[0].reading))
        for _, groups in groupby(by_rounds, key=lambda group: self.route.rounds(group[0].reading)):
            together = list(groups)
            size = self.route.texts_per_call
            for start in range(0, len(together), size):
                self._start(together[start : start + size])

    def _start(self, groups: list[list[_PendingReading]]) -> None:
        self._batcher.start(self._call(groups), [request for group in groups for request in group])

    async def _call(self, groups: list[list[_PendingReading]]) -> None:
        """One request, or as many as its texts take rounds. Where one of several texts may be what was wrong, each is
        sent by itself, so that the others do not fail with it."""
        outcomes: Sequence[Values | Failure]
        try:
            outcomes = await self.route.read([group[0].reading for group in groups])
        except (ContextLengthError, ServerError) as error:
            if len(groups) > 1 and may_be_of_one(error):
                for group in groups:
                    self._start([group])
                return
            outcomes = [Failure(error)] * len(groups)
        for group, outcome in zip(groups, outcomes, strict=True):
            for request in group:
                request.settle(outcome)

    async def _try(self, self_test: bool) -> None:
        """Find out whether tokens mean there what they mean here, and whether there are scores, which vary."""
        await self._compare_tokenizers()
        scores: list[float] = []
        for outcome in await self._read(self._reader.texts(QUESTION, ANSWERS)):
            if isinstance(outcome, Failure):
                if not isinstance(outcome.error, RejectedError):
                    raise outcome.error
                raise ConfigurationError(
                    f"{self!r} gives no scores of the family {self.format.family.name}: start the server as "
                    f"`{self.route.start}`. {outcome.error}"
                ) from outcome.error
            scores += outcome
        if self_test:
            refuse_constant(scores, self.server.model, self.format.family.name)

    async def _compare_tokenizers(self) -> None:
        """Raise unless tokens of this side's tokenizer spell the same text on the server's side, where it can be asked.

        Raises:
            ConfigurationError: they do not.
        """
        text = f"{QUESTION.question} {' '.join(ANSWERS)}"
        body = {"model": self.server.model, "tokens": self.vocabulary.encode(text, special=False)}
        try:
            told = await self.client.post(f"{self.address.root}/detokenize", body, attempts=2)
        except ServerError:
            return
        spelt = [told[key] for key in ("prompt", "text", "content") if key in told] if isinstance(told, dict) else []
        if spelt and str(spelt[0]).strip() != text.strip():
            raise ConfigurationError(
                f"the tokenizer on this side is not that of {self!r}, which reads {str(spelt[0])[:60]!r} where "
                f"{text[:60]!r} was written: name the right one with tokenizer=PATH_OR_NAME"
            )

    def __repr__(self) -> str:
        return f"ServedPRM({str(self.address)!r})"


def _family(server: Server, tokenizer: str | None) -> Family:
    try:
        config = checkpoint_config(tokenizer) if tokenizer is not None else {}
    except ConfigurationError:  # a tokenizer alone
        config = {}
    found = family_of(server, tokenizer, config)
    if found is None:
        raise ConfigurationError(
            f"cannot tell which family of reward models {server.model!r} is of. If it is one, say which, as in "
            f"'…#{server.model}?format=NAME'; known are {', '.join(FAMILIES)}"
        )
    return found


def _vocabulary(server: Server, tokenizer: str | None) -> Vocabulary:
    path = tokenizer if tokenizer is not None else server.origin
    if path is None:
        raise ConfigurationError(
            f"the tokenizer of {server.model!r} is wanted on this side: name it with tokenizer=PATH_OR_NAME"
        )
    try:
        return Vocabulary.load(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        said = f"there is no tokenizer at {path!r}"
        if tokenizer is None:
            said = f"the server says that its model is {path!r}, and there is no tokenizer of that name on this side"
        raise ConfigurationError(f"{said} ({reason}): name it with tokenizer=PATH_OR_NAME") from error
