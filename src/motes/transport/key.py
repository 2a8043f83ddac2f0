"""API keys, which only their server may see."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from motes.errors import ConfigurationError, chain_of

HIDDEN = "[API key]"
SHORTEST = 6
"""Minimum length of a part of a key that is hidden, as where a message is cut off within the key."""


@dataclass(frozen=True)
class Key:
    """A key that a header can contain."""

    value: str = field(repr=False)

    @classmethod
    def clean(cls, text: object, origin: str) -> Key | None:
        """The key in `text`, without the blanks and line breaks around it; None where there is no key.

        Args:
            text: a number if the key in a model's spec has digits only.
            origin: where the key comes from, for messages.

        Raises:
            ConfigurationError: a header cannot contain it.
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
        """The text with "[API key]" in the place of the key, and of a part of it at the end of a message."""
        if len(self.value) < SHORTEST - 2:  # many words contain its letters
            return re.sub(rf"(?<!\w){re.escape(self.value)}(?!\w)", lambda _: HIDDEN, text)
        for spelled in {self.value, json.dumps(self.value)[1:-1], self.value.replace("/", r"\/")}:
            shortest = min(len(spelled), max(SHORTEST, len(spelled) // 3))
            for length in range(len(spelled), shortest - 1, -1):
                text = text.replace(spelled[:length], HIDDEN)
        return text

    def hide_in(self, error: BaseException) -> None:
        """Hide the key in the messages of an error, of its causes, of its contexts and of the errors in a group."""
        for link in chain_of(error):
            link.args = tuple(self.hide(part) if isinstance(part, str) else part for part in link.args)
