"""Error messages of servers: which limit or field they are about, and so what to change before another request."""

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
"""Messages with the largest number of tokens of an answer, whatever its prompt."""

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
"""Messages with the largest number of tokens of prompt and answer together."""

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
"""Messages with the number of tokens of the prompt."""

FULL = re.compile(
    r"context[ _](length|size|window|limit)|maximum (context|model|allowed) length|max_model_len|max_total_tokens"
    r"|max_seq_len|max_new_tokens.{0,40}must be|inputs`? must have less than|longer than the model"
    r"|(input|prompt).{0,20} too long|reduce (the length|your prompt)|maximum number of tokens allowed"
    r"|tokens exceed the configured limit|too many tokens",
    re.IGNORECASE,
)
"""Words of messages about a request that does not fit the context."""

LENGTH = re.compile(
    r"max(imum )?_?(new_?|completion_?|output_?)?tokens|n_predict|num_predict|output tokens|context", re.IGNORECASE
)
"""Words of messages about the number of tokens."""


@dataclass(frozen=True)
class Limits:
    """Numbers of tokens in an error message; None where it does not contain them.

    Attributes:
        most: limit on an answer, whatever its prompt.
        context: limit on prompt and answer together.
        prompt: length of the prompt.
    """

    most: int | None = None
    context: int | None = None
    prompt: int | None = None

    @property
    def room(self) -> int | None:
        """Tokens that are left for the answer; 0 or less where the context is full."""
        left = None if self.context is None or self.prompt is None else self.context - self.prompt
        return min((limit for limit in (self.most, left) if limit is not None), default=None)


def limits(message: str) -> Limits:
    """The limits that an error message contains."""
    most = _first_number(MOST, message)
    if most is not None and "(exclusive)" in message:
        most -= 1
    return Limits(most, _first_number(CONTEXT, message), _first_number(PROMPT, message))


def is_about_context(message: str) -> bool:
    """Whether the request does not fit the context."""
    return FULL.search(message) is not None


def is_about_length(message: str) -> bool:
    """Whether the server may accept the request with fewer tokens."""
    return LENGTH.search(message) is not None


def unsupported_field(message: str) -> str:
    """The field that the server does not support; empty where the message names none."""
    match = re.search(r"[Uu]nsupported (?:parameter|value): '(\w+)'", message)
    return match[1] if match else ""


def is_about(message: str, field: str) -> bool:
    """Whether the server refuses this field."""
    return unsupported_field(message) == field or re.search(rf"\b{field}: ", message) is not None


def _first_number(patterns: tuple[str, ...], message: str) -> int | None:
    matches = (re.search(pattern, message, re.IGNORECASE) for pattern in patterns)
    return next((int(match[1]) for match in matches if match), None)
