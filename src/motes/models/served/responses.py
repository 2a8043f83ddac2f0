"""From responses to answers: whole responses, and streams, whose answers end one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from motes.errors import BadResponseError
from motes.http import MALFORMED, Events, unknown_form
from motes.models.served.messages import Writer
from motes.models.served.wires import Counts, Delta, Prompt, Request, Wire
from motes.steps import first_cut
from motes.types import StepEnd, Usage


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: with the delimiter or stop text that ended it.
        end: "step" for a stop text, too.
        token_ids: of all tokens; empty where the server does not return them.
        num_tokens: how many tokens the server sampled.
        prompt_tokens, cached_tokens: of all prompts of the call, in one of its answers; 0 in the others.
            `cached_tokens` is None where the server does not return it.
    """

    text: str
    end: StepEnd
    token_ids: tuple[int, ...]
    num_tokens: int
    logprob: float | None
    prompt_tokens: int = 0
    cached_tokens: int | None = None

    @property
    def usage(self) -> Usage:
        cached = min(self.cached_tokens or 0, self.prompt_tokens)
        prefill = self.prompt_tokens - cached
        return Usage(generated_tokens=self.num_tokens, prefill_tokens=prefill, prefill_tokens_cached=cached)


@dataclass
class _PartialAnswer:
    """An answer as far as its pieces have arrived."""

    request: Request
    prompt: Prompt
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_pieces: int = 0
    is_cut: bool = False
    last: Delta | None = None

    def __post_init__(self) -> None:
        self._writer = Writer(self.prompt.prefix)

    @property
    def has_ended(self) -> bool:
        return self.is_cut or (self.last is not None and bool(self.last.finish))

    @property
    def has_all_ids(self) -> bool:
        return self.last is None or self.last.num_tokens in (None, len(self.token_ids))

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far, as exactly as it is known."""
        if self.token_ids and self.has_all_ids:
            return len(self.token_ids)
        return (self.last and self.last.num_tokens) or self.num_pieces

    def add(self, delta: Delta) -> None:
        if self.has_ended:  # what the server sends after the cut
            return
        if delta.is_cumulative:
            delta = replace(
                delta,
                text=delta.text[len(self.text) :],
                token_ids=delta.token_ids[len(self.token_ids) :],
                logprobs=delta.logprobs[len(self.logprobs) :],
            )
        before, sampling = self.prompt.before, self.request.sampling
        seen = len(before) + len(self.text)
        self.text += delta.text + self._writer.write(delta.pieces)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.num_pieces += bool(delta.text or delta.pieces or delta.token_ids)
        self.last = delta
        if self.request.is_cut and (cut := first_cut(before + self.text, sampling, seen)) is not None:
            self.is_cut = True
            if not cut.is_stop and sampling.delimiters and len(delta.token_ids) != 1:
                # The ids cannot be cut where the text is cut.
                self.token_ids, self.logprobs, self.text = [], [], self.text[: cut.end - len(before)]

    def answer(self, url: str) -> Answer:
        """The answer, which has ended.

        Raises:
            BadResponseError: the server did not complete it, or gives an unknown reason.
        """
        end: StepEnd = "step"
        if not self.is_cut:
            end = (self.last or Delta()).end(self.request, url, self.num_tokens)
        has_all_logprobs = not self.request.is_streamed or len(self.logprobs) == self.num_tokens
        return Answer(
            text=self.text + ("" if self.is_cut or end == "length" else self._writer.close()),
            end=end,
            token_ids=tuple(self.token_ids) if self.has_all_ids else (),
            num_tokens=self.num_tokens,
            logprob=sum(self.logprobs) if self.logprobs and has_all_logprobs else None,
        )


class Call:
    """One request with all its attempts, which use each answer once.

    Args:
        settle: called with the index of an answer and the answer as soon as it ends in a stream, unless an earlier
            attempt has settled it; not for the last one, which waits for the server's counts.

    Attributes:
        waiting: indices of the answers that `settle` has not received.
        wasted: tokens of attempts that failed, and of answers that an earlier attempt had settled.
    """

    def __init__(self, wire: Wire, request: Request, settle: Callable[[int, Answer], None] | None = None) -> None:
        self.wire = wire
        self.request = request
        self.settle = settle
        self.waiting = set(range(request.num_answers))
        self.wasted = Usage()

    def read(self, response: Any) -> list[Answer]:
        """The answers in a whole response, in order.

        Raises:
            BadResponseError: it has too few or too many answers, or the server did not complete one.
            UnknownFormError: it has another form.
        """
        self._begin()
        try:
            self._add(response)
        except BadResponseError:
            prompt, completion, _ = self._counts
            self.wasted += Usage(failed_prefill_tokens=prompt or 0, failed_generated_tokens=completion or 0)
            raise
        return self._in_order()

    async def follow(self, events: Events) -> list[Answer]:
        """The answers in a stream, in order.

        Raises:
            BadResponseError: it ends before all answers do, or the server did not complete one.
            UnknownFormError: an event has another form.
        """
        self._begin()
        request, partials, waiting = self.request, self._partials, frozenset(self.waiting)
        is_complete = False
        try:
            async for event in events:
                self._add(event)
                if request.is_cut and len(self._answers) == request.num_answers:
                    break  # closes the connection, which stops the server
            if events.is_complete:  # some servers give no reason with the last piece
                for index in range(request.num_answers):
                    if index not in self._answers and partials[index].last is not None:
                        self._end(index)
            answers = self._in_order()
            is_complete = True
        finally:
            used = waiting if is_complete else waiting - self.waiting
            begun = [i for i, partial in enumerate(partials) if partial.last is not None]
            self.wasted += Usage(
                failed_generated_tokens=sum(partials[i].num_tokens for i in begun if i not in used),
                failed_prefill_tokens=0 if is_complete or not begun else request.prompt_tokens,
            )
        return answers

    def _begin(self) -> None:
        request = self.request
        self._partials = [_PartialAnswer(request, prompt) for prompt in request.prompts for _ in range(request.n)]
        self._answers: dict[int, Answer] = {}
        self._counts = Counts()
        self._left = set(self.waiting)
        self._carrier = 0  # the answer with the counts of the call

    def _add(self, message: Any) -> None:
        """Add a whole response, or an event of a stream."""
        self._counts = self._counts.updated(self.wire.counts(message))
        is_streamed = self.request.is_streamed
        try:
            deltas = self.wire.deltas(message, self.request)
            for index, delta in self._in_event(deltas) if is_streamed else self._in_response(deltas):
                self._partials[index].add(delta)
                if index not in self._answers and (self._partials[index].has_ended or not is_streamed):
                    self._end(index)
        except MALFORMED as error:
            raise unknown_form(self.wire.url, f"{type(error).__name__}: {error}", message) from error

    def _in_event(self, deltas: list[Delta]) -> list[tuple[int, Delta]]:
        if self.request.num_answers > 1 and any(delta.index is None for delta in deltas):
            raise KeyError("index")
        return [(delta.index or 0, delta) for delta in deltas]

    def _in_response(self, deltas: list[Delta]) -> list[tuple[int, Delta]]:
        """Whole answers, in order, with the numbers of their tokens: the server's, else equal shares of its count for
        the call, else estimates."""
        num_answers, total = self.request.num_answers, self._counts.completion
        if len(deltas) != num_answers:
            raise BadResponseError(f"{self.wire.url} gave {len(deltas)} answers where {num_answers} were asked for")
        if self.wire.profile.tells_end and not all(delta.finish for delta in deltas):
            raise BadResponseError(f"{self.wire.url} did not bring an answer to its end: look into its log")
        places = [i if delta.index is None else delta.index for i, delta in enumerate(deltas)]
        answers = []
        for i, place in enumerate(sorted(range(num_answers), key=places.__getitem__)):
            delta = deltas[place]
            share = delta.estimated_tokens if total is None else (total + num_answers - 1 - i) // num_answers
            num_tokens = len(delta.token_ids) or (share if delta.num_tokens is None else delta.num_tokens)
            answers.append((i, replace(delta, num_tokens=num_tokens)))
        return answers

    def _end(self, index: int) -> None:
        self._answers[index] = self._partials[index].answer(self.wire.url)
        if index == 0 and self.request.is_cut:  # this side may leave the stream before the server's counts arrive
            self._add_prompt_tokens(0, Counts())
        if self.settle is not None and self.request.is_streamed and index in self._left:
            self._left.discard(index)
            self._carrier = index
            if self._left:
                self.waiting.discard(index)
                self.settle(index, self._answers[index])

    def _in_order(self) -> list[Answer]:
        num_answers = self.request.num_answers
        if missing := num_answers - len(self._answers):
            raise BadResponseError(f"{self.wire.url} broke off {missing} of {num_answers} answers: look into its log")
        if num_answers == 1 or not self.request.is_cut:
            self._add_prompt_tokens(self._carrier, self._counts)
        if num_answers == 1 and self._counts.completion and not self._answers[0].token_ids:
            self._answers[0] = replace(self._answers[0], num_tokens=self._counts.completion)
        return [self._answers[index] for index in range(num_answers)]

    def _add_prompt_tokens(self, index: int, counts: Counts) -> None:
        """Add the tokens of all prompts to one answer, as the server counts them, else as this side does."""
        prompts = self.request.prompt_tokens if counts.prompt is None else counts.prompt
        self._answers[index] = replace(self._answers[index], prompt_tokens=prompts, cached_tokens=counts.cached)
