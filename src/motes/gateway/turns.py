"""Answers that are whole turns of the assistant: tool calls, JSON, and texts with log-probabilities.

Such a turn has no steps. Each particle is one turn, as the text in which models write it; an answer rule reads what the
turn means. So every method works on turns as on other answers: by vote, by reward, within a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from motes.concurrency import gather
from motes.core import Failure, Problem, Result, Sampling, Step, StepEnd, Trajectory
from motes.errors import ContextLengthError, ServerError
from motes.gateway.schemas import Schema, canonical_json
from motes.gateway.wire import ChatRequest
from motes.models.served.turns import ToolCall, Turn
from motes.protocols import AnswerRule, AnswerRuleTraits, LanguageModelTraits, canonical_form
from motes.smc import Weights
from motes.text import finite_json


@dataclass(frozen=True)
class Format:
    """What a turn must be, and when two turns mean the same.

    Attributes:
        offers_tools: whether the request has tools. A text without an answer then means "no call".
        tools: the schema of the arguments of each tool that a turn may call, by its name.
        must_call: whether a turn must call a tool; with a name, that tool.
        parallel: whether a turn may call several tools.
        is_json: whether a text must be JSON; with a schema, of that schema.
        schema: see `is_json`.
        ignored_arguments: names of arguments that do not count when calls are compared.
        by_name: whether calls of the same tools mean the same, whatever their arguments; among them the arguments with
            the largest weight are chosen.
        rule: reads the answer of a text.
    """

    offers_tools: bool
    tools: Mapping[str, Schema]
    must_call: bool | str
    parallel: bool
    is_json: bool
    schema: Schema | None
    ignored_arguments: Sequence[str]
    by_name: bool
    rule: AnswerRule

    @classmethod
    def of(cls, request: ChatRequest, rule: AnswerRule, *, by_name: bool, ignored_arguments: Sequence[str]) -> Format:
        """The format that a request asks for."""
        tools = {tool.function.name: Schema(tool.function.parameters) for tool in request.tools or ()}
        must_call: bool | str = request.tool_choice == "required"
        if request.tool_choice is not None and not isinstance(request.tool_choice, str):
            must_call = request.tool_choice.function.name
        form = request.response_format
        described = None if form is None else form.schema_
        return cls(
            offers_tools=bool(tools),
            tools={} if request.tool_choice == "none" else tools,
            must_call=must_call,
            parallel=request.parallel_tool_calls is not False,
            is_json=form is not None and form.type != "text",
            schema=None if described is None else Schema(described),
            ignored_arguments=ignored_arguments,
            by_name=by_name,
            rule=rule,
        )

    def meaning(self, turn: Turn, *, whole: bool = False) -> str | None:
        """What a turn means: equal texts for equal meanings; None if it is not what the request asks for.

        Args:
            whole: include arguments even if calls are compared by name.
        """
        if turn.end == "length" and (turn.tool_calls or self.is_json or self.must_call):
            return None  # the rest is missing
        if turn.tool_calls:
            return self._meaning_of_calls(turn.tool_calls, whole)
        if self.must_call:
            return None
        if not self.is_json:
            answer = self._answer_in_words(turn)
            return (answer or "") if self.offers_tools else answer
        try:
            value = finite_json(turn.content)
            canonical = canonical_json(value)
        except (ValueError, RecursionError):
            return None
        is_right = isinstance(value, dict) if self.schema is None else self.schema.accepts(value)
        return canonical if is_right else None

    def is_in_words(self, turn: Turn) -> bool:
        """Whether the rule reads and compares what a turn means: it is a text, neither calls nor JSON."""
        return not turn.tool_calls and not self.is_json

    def _answer_in_words(self, turn: Turn) -> str | None:
        if turn.end != "length":
            return self.rule.answer(turn.content)
        traits = AnswerRuleTraits(self.rule)
        return None if traits.needs_end else (traits.answer_when_cut or self.rule.answer)(turn.content)

    def _meaning_of_calls(self, calls: Sequence[ToolCall], whole: bool) -> str | None:
        if len(calls) > 1 and not self.parallel:
            return None
        if isinstance(self.must_call, str) and any(call.name != self.must_call for call in calls):
            return None
        meanings = []
        for call in calls:
            schema = self.tools.get(call.name)
            try:
                arguments = finite_json(call.arguments or "{}")
            except ValueError:
                return None
            if schema is None or not isinstance(arguments, dict) or not schema.accepts(arguments):
                return None
            meaning: dict[str, Any] = {"name": call.name}
            if whole or not self.by_name:
                kept = {name: value for name, value in arguments.items() if name not in self.ignored_arguments}
                meaning["arguments"] = kept
            meanings.append(canonical_json(meaning))
        return f"[{','.join(sorted(meanings))}]"


def as_text(turn: Turn) -> str:
    """A turn as models write it."""
    thoughts = f"<think>\n{turn.thoughts}\n</think>\n\n" if turn.thoughts else ""
    return thoughts + "\n".join([*([turn.content] if turn.content else []), *(call.text for call in turn.tool_calls)])


class TurnModel:
    """The language model of a run over turns: a step is a whole turn. Also its answer rule. It gets the conversation as
    the request has it; a prompt of the method itself, in the place of the last message, follows as another one.

    Args:
        lm: has the method `draw_turn`, see `motes.protocols.LanguageModelTraits`.
        fields: of each request to it.
    """

    merges_calls = True
    continues_prefixes = False

    def __init__(self, lm: Any, fields: Mapping[str, Any], form: Format) -> None:
        self._draw, self._fields, self._form = lm.draw_turn, fields, form
        self.shares_prefixes = LanguageModelTraits(lm).shares_prefixes
        self.takes_thinking_budget = LanguageModelTraits(lm).takes_thinking_budget
        self.turns: dict[str, Turn] = {}  # by text
        self._in_words: set[str] = set()  # meanings of texts, not of calls or JSON

    def gives_logprobs(self, sampling: Sampling) -> bool:
        return False

    gives_certainty = gives_logprobs

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        pairs = zip(trajectories, seeds, strict=True)
        return await gather(self._draw_step(trajectory.problem, sampling, seed) for trajectory, seed in pairs)

    async def _draw_step(self, problem: Problem, sampling: Sampling, seed: int) -> Step | Failure:
        fields = self._fields
        if problem.plain is not problem:  # a prompt of the method, such as that of a refinement: one more message
            fields = {**fields, "messages": [*fields["messages"], dict(problem.messages[-1])]}
        try:
            turn: Turn = await self._draw(fields, sampling, seed)
        except (ServerError, ContextLengthError) as error:
            return Failure(error)
        if not self._form.offers_tools:
            turn = replace(turn, tool_calls=())  # some servers return calls of tools that nobody offered
        text = as_text(turn)
        self.turns.setdefault(text, turn)
        end: StepEnd = "length" if turn.end == "length" else "eos"
        thought_tokens = turn.usage.thought_tokens or None
        return Step(text, end, logprob=turn.logprob, usage=turn.usage, thought_tokens=thought_tokens)

    @property
    def must_mean_something(self) -> bool:
        """Whether a turn that means nothing is no answer."""
        return self._form.offers_tools or self._form.is_json

    # The answer rule.

    def answer(self, text: str) -> str | None:
        turn = self.turns.get(text)
        if turn is None:
            return None
        meaning = self._form.meaning(turn)
        if meaning and self._form.is_in_words(turn):
            self._in_words.add(meaning)
        return meaning

    def equivalent(self, first: str, second: str) -> bool:
        return self.canonical(first) == self.canonical(second)

    def canonical(self, answer: str) -> str:
        """By the rule, if a text states the answer; meanings of calls and of JSON are canonical already."""
        form = canonical_form(self._form.rule) if answer in self._in_words else None
        return answer if form is None else form(answer)

    def chosen(self, result: Result, trajectory: Trajectory) -> Turn:
        """The turn of one of the trajectories that the client sees. Where calls are compared by name, it is the one
        whose arguments have the largest weight among the turns that mean the same."""
        turn = self.turns[trajectory.text]
        if not (self._form.by_name and turn.tool_calls):
            return turn
        meaning = self._form.meaning(turn)
        totals: dict[str | None, tuple[float, Turn]] = {}  # weight of each whole meaning, and the first such turn
        weights = Weights(result.log_weights).normalized
        for other, weight in zip(result.trajectories, np.nan_to_num(weights).tolist(), strict=True):
            drawn = self.turns.get(other.text)
            if drawn is not None and drawn.tool_calls and self._form.meaning(drawn) == meaning:
                key = self._form.meaning(drawn, whole=True)
                total, first = totals.get(key, (0.0, drawn))
                totals[key] = (total + weight, first)
        return max(totals.values(), key=lambda total: total[0])[1]
