"""Answers that come piece by piece: each is settled as it ends, and cut where its step ends if the server does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from motes.errors import BadResponseError
from motes.http import MALFORMED, Events
from motes.models.served.messages import Writer
from motes.models.served.wires import Delta, Drawn, Request, Wire, cached_tokens, number
from motes.steps import first_cut
from motes.types import Sampling, Usage

Settle = Callable[[int, Drawn], None]


NOTHING = Delta()
"""What an answer is before its first piece."""


@dataclass
class _Answer:
    """One answer as far as it has come.

    Attributes:
        sampling: what ends its step; None: the server finds that.
        before: what the step's text begins with, before this one.
        writer: puts thoughts between their tags.
    """

    sampling: Sampling | None
    before: str
    writer: Writer = field(default_factory=Writer)
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: int = 0
    cut: bool = False
    last: Delta = NOTHING

    @property
    def ended(self) -> bool:
        return self.cut or bool(self.last.finish)

    @property
    def has_begun(self) -> bool:
        return self.last is not NOTHING

    @property
    def count(self) -> int:
        """How many tokens were drawn, as far as it is known."""
        told = self.last.count in (None, len(self.token_ids))
        return len(self.token_ids) if told and self.token_ids else self.last.count or self.pieces

    def drawn(self, request: Request, url: str) -> Drawn:
        """The answer, which has ended."""
        told = self.last.count in (None, len(self.token_ids))
        end = "step" if self.cut else self.last.end(request, url, self.count)
        closing = "" if self.cut or end == "length" else self.writer.close()
        return Drawn(
            text=self.text + closing,
            end=end,
            token_ids=tuple(self.token_ids) if told else (),
            num_tokens=self.count,
            logprob=sum(self.logprobs) if self.logprobs and len(self.logprobs) == self.count else None,
            whole=self.cut or not self.token_ids,
        )

    def add(self, delta: Delta) -> None:
        if self.ended:  # what comes behind the cut
            return
        if delta.so_far:
            delta = replace(
                delta,
                text=delta.text[len(self.text) :],
                token_ids=delta.token_ids[len(self.token_ids) :],
                logprobs=delta.logprobs[len(self.logprobs) :],
            )
        seen = len(self.before) + len(self.text)
        self.text += delta.text + self.writer.write(delta.pieces)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.pieces += bool(delta.text or delta.pieces or delta.token_ids)
        self.last = delta
        if self.sampling is None:
            return
        cut = first_cut(self.before + self.text, self.sampling, seen)
        self.cut = cut is not None
        if cut is not None and not cut.is_stop and self.sampling.delimiters and len(delta.token_ids) != 1:
            # ids that cannot be cut where the text is
            self.token_ids, self.logprobs, self.text = [], [], self.text[: cut.end - len(self.before)]


@dataclass(eq=False)
class Call:
    """One request over all its attempts: each answer is settled as it ends, once.

    Args:
        settle: called with each answer of a stream but one as it ends; that one waits for what the server says of the
            whole call, and carries it.

    Attributes:
        wasted: what attempts that broke off cost, and answers that had been drawn before.
    """

    wire: Wire
    request: Request
    settle: Settle
    settled: set[int] = field(default_factory=set)
    wasted: Usage = Usage()  # noqa: RUF009 (frozen)

    def read(self, answer: Any) -> list[Drawn]:
        """Every answer of a call that is answered as a whole, in order.

        Raises:
            BadResponseError: see `Wire.read`.
        """
        try:
            return self.wire.read(answer, self.request)
        except BadResponseError:
            prompt, drawn = self.wire.spent(answer)
            self.wasted += Usage(failed_prefill_tokens=prompt, failed_generated_tokens=drawn)
            raise

    async def follow(self, events: Events) -> list[Drawn]:
        """Every answer of a streamed call, in order.

        Raises:
            BadResponseError: the stream ended before the answers, or is in no form that is known.
        """
        request = self.request
        sampling = request.sampling if request.cut else None
        answers = [
            _Answer(sampling, prompt.before, writer=Writer(prompt.prefix))
            for prompt in request.prompts
            for _ in range(request.n)
        ]
        drawn: dict[int, Drawn] = {}
        before = frozenset(self.settled)
        is_used = False
        try:
            await self._receive(events, answers, drawn)
            is_used = True
        finally:
            of_use = (self.settled - before) | (set(range(len(answers))) - before if is_used else set())
            computed = not is_used and any(answer.has_begun for answer in answers)
            self.wasted += Usage(
                failed_generated_tokens=sum(answer.count for i, answer in enumerate(answers) if i not in of_use),
                failed_prefill_tokens=sum(prompt.num_tokens for prompt in request.prompts) if computed else 0,
            )
        return [drawn[index] for index in range(len(answers))]

    async def _receive(self, events: Events, answers: list[_Answer], drawn: dict[int, Drawn]) -> None:
        usage: Mapping[str, Any] = {}
        wanted = set(range(len(answers))) - self.settled
        last = -1

        def end(index: int) -> None:
            nonlocal last
            drawn[index] = answers[index].drawn(self.request, self.wire.url)
            if index in wanted:
                wanted.discard(index)
                last = index
                if wanted:
                    self.settled.add(index)
                    self.settle(index, drawn[index])

        async for event in events:
            try:
                for index, delta in self.wire.delta(event):
                    if delta.usage is not None:
                        usage = delta.usage
                        continue
                    if index is None and len(answers) > 1:
                        raise KeyError("index")
                    index = index or 0
                    answers[index].add(delta)
                    if answers[index].ended and index not in drawn:
                        end(index)
            except MALFORMED as error:
                raise self.wire.misread(event, error) from error
            if len(drawn) == len(answers) and self.request.cut:
                break  # closes the connection, and so stops the server
        if events.is_complete:  # some servers give no reason with the last piece
            for index, answer in enumerate(answers):
                if index not in drawn and answer.has_begun:
                    end(index)
        if len(drawn) < len(answers):
            missing = len(answers) - len(drawn)
            raise BadResponseError(f"{self.wire.url} broke off {missing} of {len(answers)} answers: look into its log")
        if last >= 0 and (not self.request.cut or len(answers) == 1):  # one that is left early may tell of some only
            prompts = sum(prompt.num_tokens for prompt in self.request.prompts)
            drawn[last] = _with_usage(drawn[last], {"prompt_tokens": prompts, **usage}, alone=len(answers) == 1)


def _with_usage(drawn: Drawn, usage: Mapping[str, Any], *, alone: bool) -> Drawn:
    """With what the server counted for the whole call."""
    counted = number(usage.get("completion_tokens"))
    return replace(
        drawn,
        num_tokens=counted if alone and counted and not drawn.token_ids else drawn.num_tokens,
        prompt_tokens=number(usage.get("prompt_tokens")),
        cached_tokens=cached_tokens(usage),
    )
