"""Characters that look different and mean the same."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>")


def folded(text: str) -> str:
    """A text in Unicode's compatibility form (NFKC), without characters that nobody sees.

    Raised, lowered and circled characters and fractions stay what they are: 10² is not 102, and 1½ is not 11/2.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(map(_folded, text)))


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    if unicodedata.category(character) == "Cf":
        return ""
    form, _, codes = unicodedata.decomposition(character).partition(" ")
    if not form.startswith("<") or form in _MEANINGFUL:
        return character
    return "".join(_folded(chr(int(code, 16))) for code in codes.split())
