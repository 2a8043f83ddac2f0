"""Whole turns of the assistant: texts, tool calls and structured output, as a server's chat endpoint returns them.

They have no steps: a server's grammar for tool calls and JSON cannot continue a prefix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from motes.core import StepEnd, Usage
from motes.models.served.ends import end_of
from motes.models.served.messages import pieces_of
from motes.models.served.prompts import estimate
from motes.models.served.wires import Wire, logprobs_of
from motes.thoughts import TAGS, split
from motes.transport import MALFORMED, unknown_form, value_at


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is the text that the model wrote, which should be a JSON object."""

    name: str
    arguments: str

    @property
    def text(self) -> str:
        """The call as models write it."""
        name = json.dumps(self.name, ensure_ascii=False)
        return f'<tool_call>\n{{"name": {name}, "arguments": {self.arguments or "{}"}}}\n</tool_call>'


@dataclass(frozen=True)
class Turn:
    """One turn of the assistant.

    Attributes:
        usage: its tokens of thought are 0 if the server does not count them.
        logprobs: the server's log-probabilities of its tokens, in OpenAI's form; None if it returns none.
    """

    content: str
    thoughts: str
    tool_calls: tuple[ToolCall, ...]
    end: StepEnd
    usage: Usage
    logprobs: Mapping[str, Any] | None = None

    @property
    def logprob(self) -> float | None:
        """The sum of the tokens' log-probabilities; None if one is missing."""
        values = logprobs_of([token.get("logprob") for token in (self.logprobs or {}).get("content") or ()])
        return sum(values) if values else None


def read_turn(response: Any, wire: Wire) -> Turn:
    """The turn in the response of a chat endpoint.

    Raises:
        BadResponseError: it has none, or the server broke it off.
    """
    try:
        (choice,) = response["choices"]
        message = choice["message"]
        pieces = pieces_of(message)
        content = "".join(text for text, is_thought in pieces if not is_thought)
        apart = "".join(text for text, is_thought in pieces if is_thought)
        within, content = _split(content)
        thoughts = "\n\n".join(filter(None, (apart, within)))
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        tool_calls = tuple(ToolCall(str(call["name"]), _text(call["arguments"])) for call in calls)
        logprobs = value_at(choice, ("logprobs",))
        end = end_of(choice.get("finish_reason"), wire.url)
    except MALFORMED as error:
        raise unknown_form(wire.url, f"{type(error).__name__}: {error}", response) from error
    counts = wire.counts(response)
    prompt = counts.get("prompt", 0)
    cached = min(counts.get("cached", 0), prompt)
    generated = counts.get("completion") or estimate([content, thoughts, *(call.arguments for call in tool_calls)])
    usage = Usage(
        generated_tokens=generated,
        prefill_tokens=prompt - cached,
        prefill_tokens_cached=cached,
        thought_tokens=min(counts.get("thoughts", 0), generated),
    )
    return Turn(content, thoughts, tool_calls, end, usage, logprobs if isinstance(logprobs, dict) else None)


def _split(content: str) -> tuple[str, str]:
    """The thoughts between tags in a content, and the rest. In JSON a tag is text."""
    start = content.lstrip()
    is_json = start.startswith(("{", "[")) and not start.startswith(tuple(TAGS))
    return ("", content) if is_json else split(content)


def _text(arguments: Any) -> str:
    if not isinstance(arguments, str):
        raise TypeError("arguments that are no text")
    return arguments
