"""An API key: sent to its server, and shown nowhere."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from motes.errors import ConfigurationError

HIDDEN = "[API key]"
SHORTEST = 6
"""Letters at the beginning of a longer key that are hidden, too, where a message is cut within one."""


@dataclass(frozen=True)
class Key:
    """A key that can be sent, and what hides it in texts."""

    value: str = field(repr=False)

    @classmethod
    def clean(cls, text: object, origin: str) -> Key | None:
        """The key in `text`, without the blanks and line breaks around it; None where there is nothing else.

        Args:
            text: a key of digits comes out of a model's spec as a number.
            origin: where it comes from, for messages.

        Raises:
            ConfigurationError: it cannot be sent.
        """
        value = "" if text is None else str(text).strip()
        if not value:
            return None
        if not all("!" <= character <= "~" for character in value):
            raise ConfigurationError(
                f"the API key in {origin} cannot be sent: it holds a blank, a line break or a character that is not "
                "ASCII. Copy it again, and nothing beside it"
            )
        return cls(value)

    def hide(self, text: str) -> str:
        """The text without the key, however much of it is there."""
        if len(self.value) < SHORTEST - 2:  # its letters stand in many a word
            return re.sub(rf"(?<!\w){re.escape(self.value)}(?!\w)", lambda _: HIDDEN, text)
        for spelled in {self.value, json.dumps(self.value)[1:-1], self.value.replace("/", r"\/")}:
            start = spelled[: max(SHORTEST, len(spelled) // 3)]
            parts = text.split(start)
            for i, part in enumerate(parts[1:], start=1):
                rest = spelled[len(start) :]
                shared = next((n for n in range(len(rest), 0, -1) if part.startswith(rest[:n])), 0)
                parts[i] = part[shared:]
            text = HIDDEN.join(parts)
        return text

    def hide_in(self, error: BaseException) -> None:
        """Hide the key in the messages of an error, of its causes, and of what it was raised while handling."""
        seen: set[int] = set()
        chain: list[BaseException | None] = [error]
        while chain:
            link = chain.pop()
            if link is None or id(link) in seen:
                continue
            seen.add(id(link))
            link.args = tuple(self.hide(part) if isinstance(part, str) else part for part in link.args)
            chain += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]
