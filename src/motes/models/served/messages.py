"""Texts and thoughts of chat messages, in every form in which servers send them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from motes.thoughts import THINKING, read

THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""Fields with a message's thought, beside `content`: vLLM, SGLang, DeepSeek and llama.cpp; OpenRouter and newer vLLM;
Ollama; OpenRouter again, in parts. A message with several of them repeats the same thought."""

PART_FIELDS = ("thinking", "reasoning", "summary", "text", "content", "output_text", "refusal")
"""Fields that may hold the content of a part; the first one present counts."""

THOUGHT_TYPES = ("thinking", "reasoning", "redacted_thinking", "reasoning.text", "reasoning.summary")


class Piece(NamedTuple):
    text: str
    is_thought: bool = False


def pieces_of(message: Any) -> tuple[Piece, ...]:
    """The texts and thoughts of a message, or of a delta of one.

    The content is a text, or a list of parts as Mistral sends them:

        [{"type": "thinking", "thinking": [{"type": "text", "text": "…"}]}, {"type": "text", "text": "…"}]

    Raises:
        TypeError: the content is neither.
    """
    if not isinstance(message, dict):
        return tuple(_read(message))
    thought = next((message[name] for name in THOUGHT_FIELDS if message.get(name)), None)
    pieces = [*_read(thought, is_thought=True), *_read(message.get("content"))]
    return tuple(pieces or _read(message.get("refusal")))


def _read(content: Any, *, is_thought: bool = False) -> list[Piece]:
    if isinstance(content, str):
        return [Piece(content, is_thought)] if content else []
    if isinstance(content, list):
        return [piece for part in content for piece in _read(part, is_thought=is_thought)]
    if isinstance(content, dict):
        inner = next((content[name] for name in PART_FIELDS if isinstance(content.get(name), (str, list))), None)
        return _read(inner, is_thought=is_thought or str(content.get("type")) in THOUGHT_TYPES)
    if content is None:
        return []
    raise TypeError(f"content that is neither text nor parts: {str(content)[:60]}")


class Writer:
    """Joins pieces to one text, with each thought between its tags.

    Args:
        before: the answer so far. If it leaves a thought open, the first piece continues that thought without a tag.
    """

    def __init__(self, before: str = "") -> None:
        state = read(before)
        self._continues_thought = state.in_thought
        self._closing = state.closing or THINKING[1]
        self._is_in_thought = False

    def write(self, pieces: Iterable[Piece]) -> str:
        """The text to append for these pieces."""
        texts = []
        for text, is_thought in pieces:
            if is_thought and not self._is_in_thought and not self._continues_thought:
                texts.append(THINKING[0])
                self._closing = THINKING[1]
            elif self._is_in_thought and not is_thought:
                texts.append(self._closing)
            self._continues_thought = False
            self._is_in_thought = is_thought
            texts.append(text)
        return "".join(texts)

    def close(self) -> str:
        """The closing tag, if the answer ends within a thought."""
        return self._closing if self._is_in_thought else ""
