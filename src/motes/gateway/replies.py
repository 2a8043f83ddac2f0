"""What a client gets, whatever its format: a `Reply`. And the bodies of OpenAI's chat completions and completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from motes import __version__
from motes.core import Result, Trajectory
from motes.gateway.answering import ParsedRequest, Served
from motes.gateway.turns import as_text
from motes.gateway.wire import ChatRequest, Request
from motes.models.served.turns import Turn
from motes.tasks.arithmetic import note_on_question
from motes.thoughts import split


@dataclass(frozen=True)
class Answer:
    """One of the answers that a client sees.

    Attributes:
        text: all of it, as the model wrote it.
        thoughts: what the model thinks, if that is kept apart; `content` is then the rest of the text.
        finish_reason: "length" if a limit on tokens, steps or time cut the answer off, "tool_calls" if it calls tools,
            else "stop".
        stop: the text of the request's `stop` that ended it, if the engine tells.
        tool_calls, logprobs: of a whole turn, in OpenAI's form.
    """

    text: str
    content: str
    thoughts: str = ""
    finish_reason: str = "stop"
    stop: str | None = None
    tool_calls: Sequence[dict[str, Any]] = ()
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reply:
    """The answers to a request, and what is said about the run.

    Attributes:
        prompt_tokens, cached_tokens, completion_tokens: the language model's, for all particles. Each step's prompt
            counts, cached or not, as servers count it.
        thought_tokens: of the completion tokens, those of thought, see `motes.core.thinking`.
        summary: the field `motes`.
    """

    answers: Sequence[Answer]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    summary: dict[str, Any]
    thought_tokens: int = 0


def reply_to(request: ParsedRequest, result: Result) -> Reply:
    """The reply of a result. Raises the errors of `ParsedRequest.answers`."""
    trajectories, total = request.answers(result), result.usage
    return Reply(
        answers=[_answer(request, result, trajectory) for trajectory in trajectories],
        prompt_tokens=total.prefill_tokens + total.prefill_tokens_cached,
        cached_tokens=total.prefill_tokens_cached,
        completion_tokens=total.generated_tokens,
        summary=_summary(request, result, trajectories),
        thought_tokens=min(total.thought_tokens, total.generated_tokens),
    )


def _answer(request: ParsedRequest, result: Result, trajectory: Trajectory) -> Answer:
    if request.turns is not None:
        return _answer_of_turn(request.turns.chosen(result, trajectory), request.separates_thoughts)
    text, finish_reason = trajectory.text, "stop" if trajectory.finished in ("eos", "answer") else "length"
    thoughts, content = split(text) if request.separates_thoughts else ("", text)
    rest = trajectory.step.overrun if trajectory.step is not None and trajectory.finished == "eos" else ""
    stop = next((stop for stop in request.sampling.stops if rest.startswith(stop)), None)
    return Answer(text, content, thoughts, finish_reason, stop)


def _answer_of_turn(turn: Turn, separates_thoughts: bool) -> Answer:
    calls = [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments or "{}"},
        }
        for call in turn.tool_calls
    ]
    finish_reason = "length" if turn.end == "length" else "tool_calls" if calls else "stop"
    thoughts = turn.thoughts if separates_thoughts else ""
    content = turn.content if separates_thoughts or not turn.thoughts else as_text(replace(turn, tool_calls=()))
    return Answer(content, content, thoughts, finish_reason, tool_calls=calls, logprobs=turn.logprobs)


def _summary(request: ParsedRequest, result: Result, answers: Sequence[Trajectory]) -> dict[str, Any]:
    """The field `motes`: everything about a run except its texts."""
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "posterior": [{"answer": answer, "mass": mass} for answer, mass in result.posterior.items()],
        "method": request.spec,
        "fallback": request.fallback,
        "particles": request.particles,
        "rounds": len(result.records),
        "dropped": len(result.dropped),
        "log_evidence": result.log_evidence,
        "seed": request.seed,
        "stopped": result.stopped,
        "note": note_on_question(request.served.settings.lm, request.problem.plain.question),
        "usage": {
            "visible_tokens": sum(step.num_tokens for trajectory in answers for step in trajectory.steps),
            "visible_thought_tokens": sum(trajectory.thought_tokens for trajectory in answers),
            **result.usage.to_dict(),
        },
    }


def response_body(request: ParsedRequest, reply: Reply) -> dict[str, Any]:
    """The body of the response to a request that does not stream."""
    choices = []
    for i, answer in enumerate(reply.answers):
        content: dict[str, Any] = {"text": answer.text}
        if isinstance(request.body, ChatRequest):
            message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
            if answer.thoughts:
                message["reasoning_content"] = answer.thoughts
            if answer.tool_calls:
                message |= {"content": answer.content or None, "tool_calls": answer.tool_calls}
            content = {"message": message}
        choices.append({"index": i, **content, "finish_reason": answer.finish_reason, "logprobs": answer.logprobs})
    return {**head(request.body), "choices": choices, "usage": usage(reply), "motes": reply.summary}


def head(request: Request, chat_object: str = "chat.completion") -> dict[str, Any]:
    """The fields that a response, and each chunk of a stream, begins with."""
    prefix, kind = ("chatcmpl", chat_object) if isinstance(request, ChatRequest) else ("cmpl", "text_completion")
    return {
        "id": f"{prefix}-{secrets.token_hex(14)}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": f"motes-{__version__}",
    }


def usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reply.thought_tokens},
    }


def model_card(served: Served, created: int) -> dict[str, Any]:
    """A virtual model's entry in the list of models: what a request may choose; nothing about the upstream models."""
    settings = served.settings
    card = {"id": served.name, "object": "model", "created": created, "owned_by": "motes"}
    if settings.is_passed_through:
        return {**card, "motes": {"methods": [], "deadline": settings.deadline}}
    return {
        **card,
        "motes": {
            "methods": list(dict.fromkeys((settings.method, *settings.methods))),
            "particles": settings.particles,
            "max_particles": settings.most_particles,
            "deadline": settings.deadline,
            "max_deadline": settings.longest_deadline,
            "max_tokens": settings.max_tokens,
            "efforts": dict(settings.efforts),
            "temperature": served.sampling.temperature,
            "examples": list(settings.examples),
        },
    }
