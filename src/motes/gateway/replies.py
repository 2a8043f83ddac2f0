"""What a client gets, whatever its format: a `Reply`. And the bodies of OpenAI's chat completions and completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from motes import __version__
from motes.core import Result, Trajectory
from motes.gateway.answering import ParsedRequest, Served
from motes.gateway.thoughts import split_thoughts
from motes.gateway.wire import ChatRequest, Request


@dataclass(frozen=True)
class Answer:
    """One of the answers that a client sees.

    Attributes:
        text: all of it, as the model wrote it.
        thoughts: what the model thinks, if that is kept apart; `content` is then the rest of the text.
        finish_reason: "length" if a limit on tokens, steps or time cut the answer off, else "stop".
    """

    text: str
    content: str
    thoughts: str = ""
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Reply:
    """The answers to a request, and what is said about the run.

    Attributes:
        prompt_tokens, cached_tokens, completion_tokens: the language model's, for all particles. Each step's prompt
            counts, cached or not, as servers count it.
        summary: the field `motes`.
    """

    answers: Sequence[Answer]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    summary: dict[str, Any]


def reply_to(request: ParsedRequest, result: Result) -> Reply:
    """The reply of a result. Raises the errors of `ParsedRequest.answers`."""
    trajectories, total = request.answers(result), result.usage
    return Reply(
        answers=[_answer(request, trajectory) for trajectory in trajectories],
        prompt_tokens=total.prefill_tokens + total.prefill_tokens_cached,
        cached_tokens=total.prefill_tokens_cached,
        completion_tokens=total.generated_tokens,
        summary=_summary(request, result, trajectories),
    )


def _answer(request: ParsedRequest, trajectory: Trajectory) -> Answer:
    text, finish_reason = trajectory.text, "stop" if trajectory.finished in ("eos", "answer") else "length"
    thoughts, content = split_thoughts(text) if request.separates_thoughts else ("", text)
    return Answer(text, content, thoughts, finish_reason)


def _summary(request: ParsedRequest, result: Result, answers: Sequence[Trajectory]) -> dict[str, Any]:
    """The field `motes`: everything about a run except its texts."""
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "posterior": [{"answer": answer, "mass": mass} for answer, mass in result.posterior.items()],
        "method": request.spec,
        "particles": request.particles,
        "rounds": len(result.records),
        "dropped": len(result.dropped),
        "log_evidence": result.log_evidence,
        "seed": request.seed,
        "stopped": result.stopped,
        "usage": {
            "visible_tokens": sum(step.num_tokens for trajectory in answers for step in trajectory.steps),
            **result.usage.to_dict(),
        },
    }


def response_body(request: ParsedRequest, reply: Reply) -> dict[str, Any]:
    """The body of the response to a request that does not stream."""
    choices = []
    for i, answer in enumerate(reply.answers):
        content: dict[str, Any] = {"text": answer.text}
        if isinstance(request.body, ChatRequest):
            message = {"role": "assistant", "content": answer.content, "refusal": None}
            content = {"message": message | ({"reasoning_content": answer.thoughts} if answer.thoughts else {})}
        choices.append({"index": i, **content, "finish_reason": answer.finish_reason, "logprobs": None})
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
    }


def model_card(served: Served, created: int) -> dict[str, Any]:
    """A virtual model's entry in the list of models: what a request may choose; nothing about the upstream models."""
    settings = served.settings
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "motes",
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
