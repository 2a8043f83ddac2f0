"""What servers say when they refuse a request that could be asked in another way."""

from __future__ import annotations

import re
from dataclasses import dataclass

N = r"`?(\d+)`?"

MOST = (
    rf"at most {N} (?:completion|output) tokens",  # OpenAI
    rf"max_tokens: \d+ > {N}",  # Anthropic
    rf"(?<!\+ `)max_(?:completion_|new_|output_)?tokens\W+must be (?:<=|less than or equal to|at most) {N}",  # Groq
    rf"range of max_tokens (?:is|should be) \[\d+, ?{N}\]",  # DeepSeek, DashScope
    rf"exceeds the model limit of {N}",  # Bedrock
    rf"maxOutputTokens value of \d+ but the supported range is from \d+ \(inclusive\) to {N} \(exclusive\)",  # Gemini
)
"""How many tokens an answer may have, whatever its prompt."""

CONTEXT = (
    rf"maximum context length (?:is|of) {N}",  # vLLM, SGLang, OpenAI, DeepSeek, OpenRouter
    rf"max_new_tokens`? must be <= {N}",  # TGI
    rf"maximum (?:model length|allowed length|context length)[ :]*(?:of )?\(?{N}",  # vLLM, SGLang
    rf"max_model_len(?:gth)?[ :=]+{N}",  # vLLM
    rf"context (?:size|length|window) ?\({N}",  # llama.cpp, SGLang
    rf"context length of only {N}",  # LM Studio
    rf"for model with {N} maximum context length",  # Mistral
    rf"context limit: \d+ \+ \d+ > {N}",  # Anthropic
    rf"tokens > {N} maximum",  # Anthropic
    rf"configured limit of {N}",  # OpenAI
    rf"maximum number of tokens allowed \({N}\)",  # Gemini
    rf"inputs`? must have less than {N}",  # TGI
    rf"max_seq_len {N}",  # TabbyAPI
    rf"while limit is {N}",  # Cerebras
)
"""How many tokens prompt and answer may have together."""

PROMPT = (
    rf"{N} (?:in the messages|in your prompt|in the prompt|(?:input|prompt|`inputs`) tokens|of text input)",
    rf"{N} tokens from the input",  # SGLang
    rf"(?:messages resulted in|prompt contains(?: at least)?|prompt length(?: of)?|prompt \(length) {N}",
    rf"(?:request|input|input length|input token count) \({N}",  # llama.cpp, SGLang, Gemini
    rf"prompt is too long: {N}",  # Anthropic
    rf"context limit: {N} \+",  # Anthropic
    rf"keep the first {N}",  # LM Studio
    rf"current length is {N}",  # Cerebras
    rf"must have less than \d+ tokens\. Given: {N}",  # TGI
)
"""How many the prompt has."""


@dataclass(frozen=True)
class Limits:
    """What a refusal tells of limits; None where it does not.

    Attributes:
        most: tokens of an answer, whatever its prompt.
        context: tokens of prompt and answer together.
        prompt: tokens of the prompt at hand.
    """

    most: int | None = None
    context: int | None = None
    prompt: int | None = None

    @property
    def room(self) -> int | None:
        """How many tokens the answer may have; 0 or less: the context is full."""
        left = None if self.context is None or self.prompt is None else self.context - self.prompt
        return min((limit for limit in (self.most, left) if limit is not None), default=None)


def limits(message: str) -> Limits:
    """What a server says of its limits."""
    most = _first(MOST, message)
    if most is not None and "(exclusive)" in message:
        most -= 1
    return Limits(most, _first(CONTEXT, message), _first(PROMPT, message))


def room(message: str) -> int | None:
    """How many tokens an answer may have, as a refusal says; None: it does not."""
    return limits(message).room


def is_about_length(message: str) -> bool:
    """Whether a refusal is about how many tokens are asked for, so that fewer may be granted."""
    about = r"max(imum )?_?(new_?|completion_?|output_?)?tokens|n_predict|num_predict|output tokens|context"
    return re.search(about, message, re.IGNORECASE) is not None


def unsupported(message: str) -> str:
    """The field that a server says it does not take; empty where it names none."""
    match = re.search(r"[Uu]nsupported (?:parameter|value): '(\w+)'", message)
    return match[1] if match else ""


def is_about(message: str, field: str) -> bool:
    """Whether a refusal is about this field."""
    return unsupported(message) == field or re.search(rf"\b{field}: ", message) is not None


def _first(patterns: tuple[str, ...], message: str) -> int | None:
    found = (re.search(pattern, message, re.IGNORECASE) for pattern in patterns)
    return next((int(match[1]) for match in found if match), None)
