"""The thoughts of a model in its texts: the tags around them, and texts without them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from motes.steps import THINKING

THOUGHTS: Mapping[str, str] = MappingProxyType(dict((THINKING, ("[THINK]", "[/THINK]"), ("◁think▷", "◁/think▷"))))
"""The tags that open a thought, and the tag that closes each: of most models, of Magistral, of Kimi."""

TAG = re.compile("|".join(map(re.escape, (*THOUGHTS, *THOUGHTS.values()))))


def without_thoughts(text: str) -> str:
    """A text without its thoughts. A thought that is not closed extends to the end; one that was not opened, as when a
    chat template opens it, begins at the start of the text."""
    parts: list[str] = []
    place = 0
    while tag := TAG.search(text, place):
        parts.append(text[place : tag.start()])
        place = tag.end()
        if closing := THOUGHTS.get(tag[0]):
            end = text.find(closing, place)
            if end < 0:
                return "".join(parts)
            place = end + len(closing)
        else:
            parts.clear()
    return "".join((*parts, text[place:]))
