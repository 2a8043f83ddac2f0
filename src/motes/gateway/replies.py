"""The bodies of responses: OpenAI's objects, with the field `motes` added."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from motes import __version__
from motes.core import Result, Trajectory
from motes.gateway.answering import ParsedRequest, Served

FINGERPRINT = f"motes-{__version__}"


def identifier(chat: bool) -> str:
    return f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(14)}"


def response_body(
    name: str, chat: bool, request: ParsedRequest, result: Result, answers: Sequence[Trajectory]
) -> dict[str, Any]:
    """The body of the response to a request that does not stream."""
    return {
        "id": identifier(chat),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": FINGERPRINT,
        "choices": [_choice(i, chat, trajectory) for i, trajectory in enumerate(answers)],
        "usage": usage(result),
        "motes": run_summary(request, result, answers),
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
            "temperature": served.default_sampling.temperature,
            "examples": list(settings.examples),
        },
    }


def _choice(index: int, chat: bool, trajectory: Trajectory) -> dict[str, Any]:
    message = {"role": "assistant", "content": trajectory.text, "refusal": None}
    content = {"message": message} if chat else {"text": trajectory.text}
    return {"index": index, **content, "finish_reason": finish_reason(trajectory), "logprobs": None}


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


def error_body(message: str, kind: str, *, field: str | None = None, code: str | None = None) -> Mapping[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}
