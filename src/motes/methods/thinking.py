r"""Bounds on thoughts, the same for every engine that can continue a prefix ("budget forcing", arXiv 2501.19393).

    the budget is spent     The step that reaches `Sampling.max_thinking_tokens` is cut there. The tag that closes its
                            thought, in its usual form ("\n</think>\n\n"; in harmony the end of the channel and the
                            beginning of the final one), is appended as text that costs no tokens, and the step ends.
                            No more tokens are sampled than the budget allows.
    the time is up          `Limits.answer_share` of the time, and of a token budget, is kept for answers. When it
                            begins, calls for open thoughts are cancelled, and the thoughts are closed in the same way.
                            What was sampled by finished calls stays; a call for a thought takes `PIECE` tokens at most.
    a thought is too short  A thought that ends before `Sampling.min_thinking_tokens` loses its closing tag and what
                            follows it, and gets `Sampling.wait` instead, at most `Sampling.max_waits` times. The step
                            ends there. Its tokens are known as text from then on, and are tokenised anew.

A step that needs none of this is the same, token for token, as without bounds. To count tokens, a step may take several
calls; where they meet, it goes on. Whole answers, which are one step otherwise, have a step more for each thought that
is closed or continued; such steps do not count for `max_steps`.

Target of particle methods: appended text has probability 1. The target is that of the model which, having thought so
many tokens, closes its thought, or, having closed it too early, waits: p(x) in `motes.methods.potential` is the product
of the probabilities of the sampled tokens. Weights change by the score of the step alone, which the reward model reads
with the text that was appended. A deadline depends on the clock: it has no target.

A thought that nothing opened, neither the model nor the chat template, is known as one only when it is closed: no bound
holds it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from motes.concurrency import gather
from motes.core import Certainty, Failure, Problem, Sampling, Step, Trajectory, Usage
from motes.core.hidden import join_states
from motes.core.thinking import Thinking
from motes.errors import ContextLengthError, ServerError
from motes.methods.limits import Limits
from motes.protocols import LanguageModel, LanguageModelTraits
from motes.steps import first_cut
from motes.thoughts import FINAL, HARMONY, TAGS, THINKING

PIECE = Sampling.max_step_tokens
"""Maximum number of tokens of a call for a thought while a deadline is set."""

FIRST_CLOSINGS = (THINKING[1], "[/THINK]", HARMONY[4])
"""Tags that may close the first thought of an answer, whose form is not known yet."""

Draw = Callable[[Sequence[Trajectory], Sampling, Sequence[int]], Coroutine[Any, Any, Sequence[Step | Failure]]]
"""The steps that extend trajectories, with these seeds."""


class Form:
    """The form in which a language model thinks, as far as it is known.

    Attributes:
        opening: the tag that opens its thoughts, or harmony's first token; "" while no thought was seen.
    """

    def __init__(self) -> None:
        self.opening = ""
        self._is_asked = False

    async def ask(self, lm: LanguageModel, problem: Problem) -> None:
        """Ask the model how an answer begins to think, once."""
        function = LanguageModelTraits(lm).thought_opening
        if not self._is_asked and not self.opening and function is not None:
            self._is_asked = True
            with suppress(ServerError, ContextLengthError):  # the first step fails as well, with the reason
                opening = await function(problem)
                self.opening = opening if opening in TAGS or opening == HARMONY[1] else ""


_FORMS: WeakKeyDictionary[LanguageModel, Form] = WeakKeyDictionary()


def form_of(lm: LanguageModel) -> Form:
    """What is known of a language model, by all its runs."""
    try:
        return _FORMS.setdefault(lm, Form())
    except TypeError:  # it can be no key
        return Form()


@dataclass(eq=False)
class Bounds:
    """What a run needs to bound thoughts.

    Args:
        draw: calls the language model, and counts the cost.
        spent: number of tokens that the run has generated.
    """

    sampling: Sampling
    limits: Limits
    draw: Draw
    spent: int
    form: Form

    async def steps(self, parents: Sequence[Trajectory], seeds: Sequence[int]) -> list[Step | Failure]:
        """The next step of each trajectory."""
        items = [_Item(self, parent, seed) for parent, seed in zip(parents, seeds, strict=True)]
        while waiting := [item for item in items if item.outcome is None]:
            # 1. Find out how each goes on; some thoughts end without a call.
            groups: dict[tuple[Sampling, bool, bool], list[_Item]] = {}
            for item in waiting:
                if (plan := item.plan()) is not None:
                    groups.setdefault((plan, item.is_timed, item.can_close), []).append(item)
            # 2. Those with equal settings share a call.
            await gather(self._call(group, plan, is_timed) for (plan, is_timed, _), group in groups.items())
        return [item.outcome for item in items if item.outcome is not None]

    async def _call(self, items: list[_Item], sampling: Sampling, is_timed: bool) -> None:
        nodes, seeds = [item.node for item in items], [item.next_seed() for item in items]
        call = self.draw(nodes, sampling, seeds)
        pieces = await (self._until_answers_are_due(call, items) if is_timed else call)
        for item, piece in zip(items, pieces, strict=True):
            item.add(piece)

    async def _until_answers_are_due(
        self, call: Coroutine[Any, Any, Sequence[Step | Failure]], items: list[_Item]
    ) -> Sequence[Step | Failure]:
        """The result of a call. When thoughts have to end, it is cancelled and the thoughts are closed; nothing is
        returned then. A call for answers of which nobody knows yet whether they begin with a thought goes on."""
        task = asyncio.ensure_future(call)
        try:
            async with self.limits.thinking_timeout() as timeout:
                return await asyncio.shield(task)
        except TimeoutError:
            if not timeout.expired():
                raise  # raised by a model itself
            if not all(item.can_close for item in items):
                return await task
            for item in items:
                item.close()
            items.clear()
            return []
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


class _Item:
    """A trajectory whose next step is drawn, in one call or several.

    Attributes:
        node: the trajectory that the next call extends: the parent, or one that ends within the step.
        joined: the step so far.
        is_timed: whether the next call may end when thoughts have to end.
        outcome: the step; None while it is not complete.
    """

    def __init__(self, bounds: Bounds, parent: Trajectory, seed: int) -> None:
        self._bounds, self._sampling, self._parent, self._seed = bounds, bounds.sampling, parent, seed
        self._num_calls = 0
        self._most = 0  # number of tokens of the next call
        self._ends: tuple[str, ...] = ()  # texts that end it
        self.node = parent
        self.joined: Step | None = None
        self.is_timed = False
        self.outcome: Step | Failure | None = None

    @property
    def _state(self) -> Thinking:
        """The state after what was sampled so far."""
        step, before, num_tokens = self.joined, self._parent.thinking, self._parent.num_tokens
        if step is None:
            return before.after(self._overrun, 0, 0, 0, num_tokens) if self._overrun else before
        return before.after(step.text + step.overrun, 0, step.num_tokens, step.thought_tokens, num_tokens)

    @property
    def can_close(self) -> bool:
        """Whether a thought is open, or will be opened by all that is known of the model."""
        state = self._state
        return state.is_open or (not state.reading.has_begun and bool(self._bounds.form.opening))

    def next_seed(self) -> int:
        """The seed of the next call: the step's own for the first."""
        number, self._num_calls = self._num_calls, self._num_calls + 1
        return self._seed if not number else int(np.random.default_rng([self._seed, number]).integers(2**63))

    def plan(self) -> Sampling | None:
        """The sampling of the next call; None if the step is complete."""
        sampling, limits, state = self._sampling, self._bounds.limits, self._state
        may_think = state.is_open or not state.reading.has_begun or bool(state.reading.pending)
        # 1. The time, or the budget, is up.
        if self.can_close and limits.answer_is_due(self._bounds.spent):
            self.close()
            return None
        left = None if sampling.max_thinking_tokens is None else sampling.max_thinking_tokens - state.tokens
        if state.is_open and left is not None and left <= 0:
            self.close()
            return None
        # 2. The number of tokens, and further texts that end the call.
        natural = sampling.max_step_tokens - (0 if self.joined is None else self.joined.num_tokens)
        most, ends = natural, tuple[str, ...]()
        if may_think:
            if left is not None:
                most = min(most, max(1, left))  # the mark that opens a thought may be longer than the budget
            if limits.deadline is not None and self.can_close:
                most = min(most, PIECE)
            if self._waits_left(state):
                ends = self._closings(state)
        elif left is not None and left < natural and state.reading.opening:
            ends = (state.reading.opening if state.reading.form == "tags" else "<|channel|>analysis",)
        self.is_timed = may_think and limits.thinking_deadline is not None
        self._most, self._ends = most, ends
        if not ends and most == sampling.max_step_tokens:
            return sampling
        seen = len(self._overrun) if self.joined is None else len(self.joined.text + self.joined.overrun)
        return sampling.replace(max_step_tokens=most, delimiter=_with_ends(sampling, ends, seen))

    def add(self, piece: Step | Failure) -> None:
        """Add the result of the planned call."""
        if isinstance(piece, Failure):
            self.outcome = piece
            return
        before = self._state
        seen = len(self._overrun if self.joined is None else self.joined.text + self.joined.overrun)
        piece = _counted(piece, before, seen)
        self.joined = step = piece if self.joined is None else _join(self.joined, piece)
        state = self._state
        if self._node_thinks(state):
            self._bounds.form.opening = state.reading.opening
        may_have_closed = before.is_open or not before.reading.has_begun
        if may_have_closed and _has_closed(state) and self._waits_left(state) and self._wait(state):
            return
        if not self._goes_on(piece, seen):
            self._end(state)
            return
        so_far = replace(step, text="", overrun=step.text + step.overrun, end="step")
        self.node = self._parent.extend(replace(so_far, usage=Usage(generated_tokens=step.num_tokens)))

    def close(self) -> None:
        """End the open thought, and with it the step."""
        state, step = self._state, self.joined
        if step is None:  # nothing was sampled
            step = Step(self._overrun, "step", logprob=0.0, usage=Usage(), proposal_logprob=0.0)
        text = step.text + step.overrun
        if state.is_open:
            ending = state.reading.ending(text or self._parent.text[-1:])
        else:  # it has not begun
            opening = self._bounds.form.opening
            ending = FINAL[FINAL.index(HARMONY[1]) :] if opening == HARMONY[1] else f"{opening}\n\n{TAGS[opening]}\n\n"
        self.outcome = replace(step, text=text + ending, overrun="", end="step", appended=ending)

    @property
    def _overrun(self) -> str:
        return self._parent.step.overrun if self._parent.step is not None else ""

    def _node_thinks(self, state: Thinking) -> bool:
        return state.is_open and bool(state.reading.opening)

    def _waits_left(self, state: Thinking) -> bool:
        """Whether a thought that ended now would be continued."""
        sampling = self._sampling
        if state.tokens >= sampling.min_thinking_tokens:
            return False
        waits = sum(node.step is not None and node.step.appended == sampling.wait for node in self._parent.path)
        return waits < sampling.max_waits

    def _closings(self, state: Thinking) -> tuple[str, ...]:
        if not state.is_open:
            return FIRST_CLOSINGS
        return (TAGS[state.reading.opening],) if state.reading.form == "tags" else (HARMONY[4],)

    def _wait(self, state: Thinking) -> bool:
        """Put `wait` in the place of the tag that closed the thought, and of what follows it. False: there is none."""
        step, before = self.joined, self._parent.thinking
        assert step is not None
        text, place = step.text + step.overrun, -len(before.reading.pending)
        closing = None
        for part in before.reading.read(text, is_last=True)[1]:
            if part.kind == "mark" and (part.text in TAGS.values() or part.text in FINAL):
                closing = place
                break
            place += len(part.text)
        if closing is None:
            return False
        wait = self._sampling.wait
        self.outcome = Step(
            text[: max(0, closing)].rstrip() + wait,
            "step",
            logprob=step.logprob,
            usage=Usage(generated_tokens=step.num_tokens),
            proposal_logprob=step.proposal_logprob,
            thought_tokens=state.tokens - before.tokens,
            appended=wait,
            certainty=step.certainty,
            hidden=step.hidden,
        )
        return True

    def _goes_on(self, piece: Step, seen: int) -> bool:
        """Whether the step goes on, because a limit or a text ended the call that does not end the step.

        Args:
            seen: number of characters of the step before this call.
        """
        step, own = self.joined, self._sampling
        assert step is not None
        if piece.end == "eos" or not piece.num_tokens or step.num_tokens >= own.max_step_tokens:
            return False
        text = step.text + step.overrun
        cut = None if own.delimiter is None else first_cut(text, own)
        if cut is not None and (own.pattern is None or cut.end <= len(step.text)):
            return False
        if piece.num_tokens >= self._most and (piece.end == "length" or own.delimiter is None):
            return True
        by_texts = own.replace(delimiter=self._ends, stop=()) if self._ends else None
        return piece.end == "step" and by_texts is not None and first_cut(text, by_texts, seen) is not None

    def _end(self, state: Thinking) -> None:
        """Complete the step; if it has spent the budget in a thought, end the thought."""
        step, own = self.joined, self._sampling
        assert step is not None
        budget = own.max_thinking_tokens
        if step.end != "eos" and budget is not None and state.is_open and state.tokens >= budget:
            self.close()
            return
        by_tokens = own.delimiter is None and step.num_tokens >= own.max_step_tokens and step.end == "length"
        self.outcome = replace(step, end="step") if by_tokens else step


def _has_closed(state: Thinking) -> bool:
    """Whether the latest thought is closed; in harmony, the channel's message ends before the final one begins."""
    return not state.is_open or (state.reading.form == "harmony" and not state.reading.in_message)


def _counted(piece: Step, before: Thinking, seen: int) -> Step:
    """A piece with the number of its tokens of thought; its text begins with `seen` characters of earlier ones."""
    if piece.thought_tokens is not None:
        return piece
    new = (piece.text + piece.overrun)[seen:]
    after = before.after(new, 0, piece.num_tokens, None, before.tokens)
    return replace(piece, thought_tokens=after.tokens - before.tokens)


def _with_ends(sampling: Sampling, ends: tuple[str, ...], seen: int) -> str | tuple[str, ...] | re.Pattern[str] | None:
    """The delimiter of a sampling, or one of these texts after the `seen` characters with which the step begins."""
    if not ends:
        return sampling.delimiter
    if sampling.pattern is not None:
        texts = "|".join(map(re.escape, ends))
        return re.compile(f"(?:{sampling.pattern.pattern})|(?<=(?s:.{{{seen}}}))(?:{texts})", sampling.pattern.flags)
    return (*sampling.delimiters, *ends)


def _join(first: Step, second: Step) -> Step:
    """Two pieces of a step; the text of the second begins with that of the first."""

    def total(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    counts = first.thought_tokens, second.thought_tokens
    return replace(
        second,
        token_ids=first.token_ids + second.token_ids if first.token_ids and second.token_ids else (),
        logprob=total(first.logprob, second.logprob),
        proposal_logprob=total(first.proposal_logprob, second.proposal_logprob),
        usage=Usage(generated_tokens=first.num_tokens + second.num_tokens),
        prefix_tokens=first.prefix_tokens,
        thought_tokens=None if counts[0] is None or counts[1] is None else counts[0] + counts[1],
        certainty=Certainty.concatenate(c for c in (first.certainty, second.certainty) if c is not None),
        hidden=join_states(first.hidden, second.hidden, (first.num_tokens, second.num_tokens)),
    )


def num_own_steps(trajectory: Trajectory) -> int:
    """The number of steps that the sampling ended; those that a bound on thoughts ended do not count."""
    return trajectory.depth - sum(node.step is not None and bool(node.step.appended) for node in trajectory.path)
