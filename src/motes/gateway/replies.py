"""What clients get: OpenAI's objects, and in the field `motes` what a run knows besides."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from motes import __version__
from motes.core import Result, Trajectory
from motes.gateway.answering import Asked, Served

FINGERPRINT = f"motes-{__version__}"


def identifier(chat: bool) -> str:
    return f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(14)}"


def reply(name: str, chat: bool, asked: Asked, result: Result, shown: Sequence[Trajectory]) -> dict[str, Any]:
    """The whole answer to a request that does not stream."""
    return {
        "id": identifier(chat),
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": FINGERPRINT,
        "choices": [_choice(i, chat, trajectory) for i, trajectory in enumerate(shown)],
        "usage": usage(result),
        "motes": about(asked, result, shown),
    }


def card(served: Served, created: int) -> dict[str, Any]:
    """A virtual model, as the list of models shows it: what a request may choose, and nothing of what stands behind."""
    told = served.told
    return {
        "id": served.name,
        "object": "model",
        "created": created,
        "owned_by": "motes",
        "motes": {
            "methods": list(dict.fromkeys((told.method, *told.methods))),
            "particles": told.particles,
            "max_particles": told.most_particles,
            "deadline": told.deadline,
            "max_deadline": told.longest,
            "max_tokens": told.max_tokens,
            "temperature": served.base.temperature,
            "examples": list(told.examples),
        },
    }


def _choice(index: int, chat: bool, trajectory: Trajectory) -> dict[str, Any]:
    message = {"role": "assistant", "content": trajectory.text, "refusal": None}
    said = {"message": message} if chat else {"text": trajectory.text}
    return {"index": index, **said, "finish_reason": finish_reason(trajectory), "logprobs": None}


def finish_reason(trajectory: Trajectory) -> str:
    """ "length" where a limit on tokens, steps or time cut it."""
    return "stop" if trajectory.finished in ("eos", "answer") else "length"


def usage(result: Result) -> dict[str, Any]:
    """What the language model did for all particles. Each step's prompt counts, cached or not, as servers count it."""
    spent = result.usage
    prompt = spent.prefill_tokens + spent.prefill_tokens_cached
    return {
        "prompt_tokens": prompt,
        "completion_tokens": spent.generated_tokens,
        "total_tokens": prompt + spent.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.prefill_tokens_cached},
    }


def about(asked: Asked, result: Result, shown: Sequence[Trajectory]) -> dict[str, Any]:
    """What a run knows besides its text."""
    return {
        "answer": result.answer,
        "confidence": result.confidence,
        "posterior": [{"answer": answer, "mass": mass} for answer, mass in result.posterior.items()],
        "method": asked.spec,
        "particles": asked.particles,
        "rounds": len(result.records),
        "dropped": len(result.dropped),
        "log_evidence": result.log_evidence,
        "seed": asked.seed,
        "stopped": result.stopped,
        "usage": {
            "visible_tokens": sum(step.num_tokens for trajectory in shown for step in trajectory.steps),
            **result.usage.to_dict(),
        },
    }


def failure(message: str, kind: str, *, field: str | None = None, code: str | None = None) -> Mapping[str, Any]:
    """An error, in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}
