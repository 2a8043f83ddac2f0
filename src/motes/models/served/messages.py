"""What chats say: texts and thoughts, in every form that servers give them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from motes.steps import THINKING

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where a message's thought stands beside its content: vLLM, SGLang, DeepSeek and llama.cpp; OpenRouter and newer vLLM;
Ollama. Where several are there, they say the same."""


class Piece(NamedTuple):
    text: str
    is_thought: bool = False


def pieces_of(message: Any) -> tuple[Piece, ...]:
    """What a message says, or a piece of one in a stream.

    Its content is a text, or a list of parts as Mistral sends them:

        [{"type": "thinking", "thinking": [{"type": "text", "text": "…"}]}, {"type": "text", "text": "…"}]
    """
    if not isinstance(message, dict):
        return tuple(_read(message))
    thought = next((message[name] for name in THOUGHTS if message.get(name)), None)
    pieces = [*_read(thought, is_thought=True), *_read(message.get("content"))]
    return tuple(pieces or _read(message.get("refusal")))


def _read(content: Any, *, is_thought: bool = False) -> list[Piece]:
    if isinstance(content, str):
        return [Piece(content, is_thought)] if content else []
    if isinstance(content, list):
        return [piece for part in content for piece in _read(part, is_thought=is_thought)]
    if isinstance(content, dict):
        thinks = is_thought or str(content.get("type")) in ("thinking", "reasoning", "redacted_thinking")
        names = ("thinking", "reasoning", "summary", "text", "content", "output_text", "refusal")
        found = next((content[name] for name in names if isinstance(content.get(name), (str, list))), None)
        return _read(found, is_thought=thinks)
    if content is None:
        return []
    raise TypeError(f"content that is neither text nor parts: {str(content)[:60]}")


class Writer:
    """Writes what a message says as one text, in which thoughts stand between their tags.

    Args:
        before: what is written of the answer already: the tag of a thought that it leaves open is not written again.
    """

    def __init__(self, before: str = "") -> None:
        self._opened = before.rfind(THINKING[0]) > before.rfind(THINKING[1])
        self._thinks = False

    def write(self, pieces: Iterable[Piece]) -> str:
        """The text that these pieces add."""
        written = []
        for text, is_thought in pieces:
            if is_thought and not self._thinks and not self._opened:
                written.append(THINKING[0])
            elif self._thinks and not is_thought:
                written.append(THINKING[1])
            self._opened = False
            self._thinks = is_thought
            written.append(text)
        return "".join(written)

    def close(self) -> str:
        """The tag that ends a thought which the answer ended with."""
        return THINKING[1] if self._thinks else ""
