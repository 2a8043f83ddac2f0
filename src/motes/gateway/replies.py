"""The bodies of responses: OpenAI's objects, with the field `motes` added."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from motes import __version__
from motes.core import Result, Trajectory
from motes.gateway.answering import ParsedRequest, Served
from motes.gateway.thoughts import split_thoughts
from motes.gateway.wire import ChatRequest, Request


def response_body(request: ParsedRequest, result: Result) -> dict[str, Any]:
    """The body of the response to a request that does not stream. Raises the errors of `ParsedRequest.answers`."""
    answers, choices = request.answers(result), []
    for i, trajectory in enumerate(answers):
        content: dict[str, Any] = {"text": trajectory.text}
        if isinstance(request.body, ChatRequest):
            content = {"message": {"role": "assistant", **_said(request, trajectory), "refusal": None}}
        choices.append({"index": i, **content, "finish_reason": finish_reason(trajectory), "logprobs": None})
    summary = run_summary(request, result, answers)
    return {**head(request.body), "choices": choices, "usage": usage(result), "motes": summary}


def _said(request: ParsedRequest, trajectory: Trajectory) -> dict[str, str]:
    """The content of a message, and what the model thought, if it did."""
    if not request.separates_thoughts:
        return {"content": trajectory.text}
    thoughts, content = split_thoughts(trajectory.text)
    return {"content": content, "reasoning_content": thoughts} if thoughts else {"content": content}


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
            "temperature": served.sampling.temperature,
            "examples": list(settings.examples),
        },
    }


def finish_reason(trajectory: Trajectory) -> str:
    """ "length" if a limit on tokens, steps or time cut the answer off, else "stop"."""
    return "stop" if trajectory.finished in ("eos", "answer") else "length"


def usage(result: Result) -> dict[str, Any]:
    """The language model's tokens for all particles. Each step's prompt counts, cached or not, as servers count it."""
    total = result.usage
    prompt = total.prefill_tokens + total.prefill_tokens_cached
    return {
        "prompt_tokens": prompt,
        "completion_tokens": total.generated_tokens,
        "total_tokens": prompt + total.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": total.prefill_tokens_cached},
    }


def run_summary(request: ParsedRequest, result: Result, answers: Sequence[Trajectory]) -> dict[str, Any]:
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
