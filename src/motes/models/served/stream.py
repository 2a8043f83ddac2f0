"""Answers that come piece by piece: each is settled as it ends, and cut where its step ends if the server does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from motes.errors import BadResponseError
from motes.models.served.wires import Delta, Drawn, Request, Wire, cached_tokens, end_of
from motes.steps import first_cut
from motes.types import Sampling

Settle = Callable[[int, Drawn], None]


@dataclass
class _Answer:
    """One answer as far as it has come.

    Attributes:
        sampling: what ends its step; None: the server finds that.
        before: what the step's text begins with, before this one.
    """

    sampling: Sampling | None
    before: str
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: int = 0
    cut: bool = False
    last: Delta = field(default_factory=Delta)

    @property
    def ended(self) -> bool:
        return self.cut or self.last.finish is not None

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
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.pieces += bool(delta.text or delta.token_ids)
        self.last = delta
        if self.sampling is None:
            return
        cut = first_cut(self.before + self.text, self.sampling, seen)
        self.cut = cut is not None
        if cut is not None and not cut.is_stop and self.sampling.delimiters and len(delta.token_ids) != 1:
            # ids that cannot be cut where the text is
            self.token_ids, self.logprobs, self.text = [], [], self.text[: cut.end - len(self.before)]


async def follow(events: AsyncIterator[dict[str, Any]], wire: Wire, request: Request, settle: Settle) -> list[Drawn]:
    """Every answer of a streamed call, in order; `settle` is told of each but the last as it ends.

    The last one to end waits for what the server says of the whole call, and carries it.

    Raises:
        BadResponseError: the stream ended before the answers, or is in no form that is known.
    """
    sampling = request.sampling if request.cut else None
    answers = [_Answer(sampling, prompt.before) for prompt in request.prompts for _ in range(request.n)]
    drawn: dict[int, Drawn] = {}
    usage: Mapping[str, Any] = {}
    async for event in events:
        try:
            deltas = wire.delta(event)
            for index, delta in deltas:
                if index < 0:
                    usage = delta.usage or {}
                    continue
                answers[index].add(delta)
                if answers[index].ended and index not in drawn:
                    drawn[index] = _drawn(answers[index], request, wire.url)
                    if len(drawn) < len(answers):
                        settle(index, drawn[index])
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise wire.misread(event, error) from error
        if len(drawn) == len(answers) and request.cut:
            break  # closes the connection, and so stops the server
    if len(drawn) < len(answers):
        raise BadResponseError(f"{wire.url} broke off {len(answers) - len(drawn)} of {len(answers)} answers")
    if not request.cut or len(answers) == 1:  # a stream that is left early may tell of some of its answers only
        latest = next(reversed(drawn))
        drawn[latest] = _with_usage(drawn[latest], usage, alone=len(answers) == 1)
    return [drawn[index] for index in range(len(answers))]


def _drawn(answer: _Answer, request: Request, url: str) -> Drawn:
    told = answer.last.count in (None, len(answer.token_ids))
    return Drawn(
        text=answer.text,
        end="step" if answer.cut else end_of(answer.last, request, url),
        token_ids=tuple(answer.token_ids) if told else (),
        num_tokens=len(answer.token_ids) if told and answer.token_ids else answer.last.count or answer.pieces,
        logprob=sum(answer.logprobs) if answer.logprobs else None,
        whole=answer.cut or not answer.token_ids,
    )


def _with_usage(drawn: Drawn, usage: Mapping[str, Any], *, alone: bool) -> Drawn:
    """With what the server counted for the whole call."""
    counted = usage.get("completion_tokens")
    prompt = usage.get("prompt_tokens")
    return replace(
        drawn,
        num_tokens=int(counted) if alone and counted and not drawn.token_ids else drawn.num_tokens,
        prompt_tokens=None if prompt is None else int(prompt),
        cached_tokens=cached_tokens(usage),
    )
