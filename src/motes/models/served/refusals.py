"""What servers say when they refuse a request that could be asked in another way."""

from __future__ import annotations

import re


def room(message: str) -> int | None:
    """How many tokens an answer may have, as a server says that refuses to draw as many as asked for."""
    if match := re.search(r"at most (\d+) (?:completion|output) tokens", message):
        return int(match[1])
    context = re.search(r"maximum context length is (\d+)", message)
    prompt = re.search(r"(\d+) (?:in the messages|in your prompt|in the prompt|input tokens)", message)
    return int(context[1]) - int(prompt[1]) if context and prompt else None


def unsupported(message: str) -> str:
    """The field that a server says it does not take; empty where it names none."""
    match = re.search(r"[Uu]nsupported (?:parameter|value): '(\w+)'", message)
    return match[1] if match else ""


def is_about(message: str, field: str) -> bool:
    """Whether a refusal is about this field."""
    return unsupported(message) == field or re.search(rf"\b{field}: ", message) is not None
