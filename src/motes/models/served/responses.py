"""From responses to answers: whole responses, and streams, whose answers end one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from motes.core import Certainty, StepEnd, Usage
from motes.errors import BadResponseError, TooLargeError
from motes.models.served.ends import end_of
from motes.models.served.messages import Writer, pieces_of
from motes.models.served.prompts import Prompt, estimate
from motes.models.served.wires import Delta, Request, Wire
from motes.steps import first_cut
from motes.thoughts import without_end
from motes.transport import MALFORMED, Events, unknown_form

MOST_CHARACTERS, CHARACTERS_PER_TOKEN = 1 << 20, 1024
"""Of an answer, and more for each token that was asked for. No tokenizer has longer tokens: an answer beyond that has
more tokens than were asked for."""


@dataclass(eq=False)
class Answer:
    """One answer, which grows piece by piece until it ends.

    In one answer of a call, `prompt_tokens` and `cached_tokens` count all prompts of the call; in the others they are 0
    and None.
    """

    request: Request
    prompt: Prompt
    text: str = ""  # with the delimiter or stop text that ended it
    end: StepEnd = "step"  # for a stop text, too
    token_ids: list[int] = field(default_factory=list)  # of all tokens; empty where the server does not return them
    logprobs: list[float] = field(default_factory=list)  # likewise
    certainties: list[Certainty] = field(default_factory=list)  # of its pieces, as far as they have one
    is_cut: bool = False  # whether this side ended it
    last: Delta | None = None  # its last piece
    prompt_tokens: int = 0
    cached_tokens: int | None = None  # None: the server does not return it
    thought_tokens: int | None = None  # of `num_tokens`; None: the server does not return it

    def __post_init__(self) -> None:
        self._writer = Writer(self.prompt.prefix)
        self._num_pieces = 0

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far, as exactly as it is known."""
        counted = None if self.last is None else self.last.num_tokens
        if self.token_ids and counted in (None, len(self.token_ids)):
            return len(self.token_ids)
        return counted or self._num_pieces

    @property
    def logprob(self) -> float | None:
        return sum(self.logprobs) if self.logprobs else None

    @property
    def usage(self) -> Usage:
        cached = min(self.cached_tokens or 0, self.prompt_tokens)
        prefill = self.prompt_tokens - cached
        return Usage(generated_tokens=self.num_tokens, prefill_tokens=prefill, prefill_tokens_cached=cached)

    def add(self, delta: Delta) -> bool:
        """Add a piece. Returns whether the answer is complete."""
        if self.is_cut or (self.last is not None and self.last.finish):  # a piece after the end
            return True
        if delta.is_cumulative:
            text = "".join(piece.text for piece in delta.pieces)
            delta = replace(
                delta,
                pieces=pieces_of(text[len(self.text) :]),
                token_ids=delta.token_ids[len(self.token_ids) :],
                logprobs=delta.logprobs[len(self.logprobs) :],
                certainty=delta.certainty and delta.certainty[sum(map(len, self.certainties)) :],
            )
        before, sampling = self.prompt.before, self.request.sampling
        seen = len(before) + len(self.text)
        self.text += self._writer.write(delta.pieces)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.certainty is not None:
            self.certainties.append(delta.certainty)
        self._num_pieces += bool(delta.pieces or delta.token_ids)
        self.last = delta
        size = len(self.text) + len(self.token_ids) + len(self.logprobs)
        if size > MOST_CHARACTERS + CHARACTERS_PER_TOKEN * self.request.limit:
            raise TooLargeError(
                f"an answer has {len(self.text):,} characters, although the request asks for {self.request.limit} "
                "tokens: the server does not obey the limit on tokens. Look into its log"
            )
        if self.request.is_cut and (cut := first_cut(before + self.text, sampling, seen)) is not None:
            self.is_cut = True
            if not cut.is_stop and sampling.delimiters and len(delta.token_ids) != 1:
                # The ids cannot be cut where the text is cut.
                self.token_ids, self.logprobs, self.text = [], [], self.text[: cut.end - len(before)]
        return self.is_cut or bool(delta.finish)

    def finish(self, url: str) -> None:
        """Find out what ended the answer, see `end_of`. Drop the ids or the log-probabilities if some are missing."""
        if not self.is_cut:
            last = self.last or Delta()
            is_full = self.num_tokens >= self.request.limit
            by_text = isinstance(last.stop, str) and bool(self.request.stops)
            self.end = end_of(last.finish, url, is_full=is_full, by_text=by_text)
            if self.end != "length":
                self.text += self._writer.close()
            if self.end == "eos" and self.request.in_harmony:
                self.text = without_end(self.text)
        if self.request.is_streamed and len(self.logprobs) != self.num_tokens:
            self.logprobs = []
        if len(self.token_ids) != self.num_tokens:
            self.token_ids = []


class Call:
    """One request with all its attempts, of which one provides each answer.

    Args:
        settle: called with the index of an answer and the answer as soon as it ends in a stream, unless an earlier
            attempt has settled it; not for the last one, which waits for the server's counts.

    Raises:
        BadResponseError: while reading: there are too few or too many answers, or the server did not complete one.
        UnknownFormError: likewise: a response, or an event of a stream, has another form.
    """

    def __init__(self, wire: Wire, request: Request, settle: Callable[[int, Answer], None] | None = None) -> None:
        self.wire = wire
        self.request = request
        self.settle = settle
        self.waiting = set(range(request.num_answers))  # indices of the answers that `settle` has not received
        self.wasted = Usage()  # of failed attempts, and of answers that an earlier attempt had settled

    def read(self, response: Any) -> list[Answer]:
        """The answers in a whole response, in order."""
        self._begin()
        try:
            self._add(response)
        except BadResponseError:
            prompt, completion = self._counts.get("prompt", 0), self._counts.get("completion", 0)
            self.wasted += Usage(failed_prefill_tokens=prompt, failed_generated_tokens=completion)
            raise
        self._complete()
        return self._answers

    async def follow(self, events: Events) -> list[Answer]:
        """The answers in a stream, in order."""
        self._begin()
        request, answers, waiting = self.request, self._answers, frozenset(self.waiting)
        is_complete = False
        try:
            async for event in events:
                self._add(event)
                if request.is_cut and len(self._ended) == len(answers):
                    break  # closes the connection, which stops the server
            if events.is_complete:  # some servers give no reason with the last piece
                for index, answer in enumerate(answers):
                    if index not in self._ended and answer.last is not None:
                        self._end(index)
            self._complete()
            is_complete = True
        finally:
            used = waiting if is_complete else waiting - self.waiting  # answers that this attempt provides
            has_begun = any(answer.last is not None for answer in answers)
            self.wasted += Usage(
                failed_generated_tokens=sum(answer.num_tokens for i, answer in enumerate(answers) if i not in used),
                failed_prefill_tokens=request.prompt_tokens if has_begun and not is_complete else 0,
            )
        return answers

    def _begin(self) -> None:
        request = self.request
        self._answers = [Answer(request, prompt) for prompt in request.prompts for _ in range(request.n)]
        self._ended: set[int] = set()
        self._counts: dict[str, int] = {}
        self._carrier = self._answers[0]  # the answer with the counts of the call

    def _add(self, message: Any) -> None:
        """Add a whole response, or an event of a stream."""
        self._counts |= self.wire.counts(message)
        is_streamed = self.request.is_streamed
        try:
            deltas = self.wire.deltas(message, self.request)
            if not is_streamed:
                deltas = self._in_response(deltas)
            for delta in deltas:
                if delta.index is None and self.request.num_answers > 1:
                    raise KeyError("index")
                index = delta.index or 0
                has_ended = self._answers[index].add(delta) or not is_streamed
                if has_ended and index not in self._ended:
                    self._end(index)
        except MALFORMED as error:
            raise unknown_form(self.wire.url, f"{type(error).__name__}: {error}", message) from error

    def _in_response(self, deltas: list[Delta]) -> list[Delta]:
        """Whole answers, in order, with the numbers of their tokens: the number of ids, else the server's number, else
        an equal share of its number for the call, else an estimate."""
        num_answers, total = self.request.num_answers, self._counts.get("completion")
        if len(deltas) != num_answers:
            raise BadResponseError(f"{self.wire.url} returned {len(deltas)} answers instead of {num_answers}")
        if self.wire.profile.tells_end and not all(delta.finish for delta in deltas):
            raise BadResponseError(f"{self.wire.url} did not bring an answer to its end: look into its log")
        numbered = [delta if delta.index is not None else replace(delta, index=i) for i, delta in enumerate(deltas)]
        answers = []
        for i, delta in enumerate(sorted(numbered, key=lambda delta: delta.index or 0)):
            num_tokens = len(delta.token_ids) or delta.num_tokens
            if num_tokens is None and total is not None:
                num_tokens = (total + num_answers - 1 - i) // num_answers
            elif num_tokens is None:
                num_tokens = estimate(piece.text for piece in delta.pieces)
            answers.append(replace(delta, index=i, num_tokens=num_tokens))
        return answers

    def _end(self, index: int) -> None:
        answer = self._answers[index]
        answer.finish(self.wire.url)
        self._ended.add(index)
        if index == 0 and self.request.is_cut:  # this side may leave the stream before the server's counts arrive
            answer.prompt_tokens = self.request.prompt_tokens
        if self.settle is not None and self.request.is_streamed and index in self.waiting:
            self._carrier = answer
            if len(self.waiting) > 1:
                self.waiting.discard(index)
                self.settle(index, answer)

    def _complete(self) -> None:
        """Check that all answers have ended, and add the counts of the call to one of them."""
        num_answers, carrier, counts = len(self._answers), self._carrier, self._counts
        if missing := num_answers - len(self._ended):
            raise BadResponseError(f"{self.wire.url} broke off {missing} of {num_answers} answers: look into its log")
        if num_answers == 1 or not self.request.is_cut:
            carrier.prompt_tokens = counts.get("prompt", self.request.prompt_tokens)
            carrier.cached_tokens = counts.get("cached")
        if num_answers == 1 and counts.get("completion") and not carrier.token_ids:
            carrier.last = Delta(num_tokens=counts["completion"])
        if num_answers == 1:
            carrier.thought_tokens = counts.get("thoughts")
