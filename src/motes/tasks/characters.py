"""Characters that look different and mean the same."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_MEANINGFUL = ("<super>", "<sub>", "<fraction>", "<circle>")
_ALIKE = (
    dict.fromkeys("‐‑‒–−", "-") | dict.fromkeys("⁄∕", "/") | dict.fromkeys("‘’‚‛‹›", "'") | dict.fromkeys("“”„‟«»", '"')
) | {"٫": ".", "٬": ",", "٪": "%"}
"""Typographic forms of the hyphen, the slash and quotation marks; the marks in Arabic numbers."""


def folded(text: str) -> str:
    """A text in Unicode's compatibility form (NFKC), without invisible characters, and with the hyphens, slashes and
    quotation marks of a typewriter. Digits of other scripts and the marks in Arabic numbers become ASCII's: ٣٫٥ is 3.5.

    Superscripts, subscripts, circled characters and fractions stay as they are: 10² is not 102, and 1½ is not 11/2.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", "".join(map(_folded, text)))


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    if unicodedata.category(character) == "Cf":
        return ""
    if character in _ALIKE:
        return _ALIKE[character]
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    form, _, codes = unicodedata.decomposition(character).partition(" ")
    if not form.startswith("<") or form in _MEANINGFUL:
        return character
    return "".join(_folded(chr(int(code, 16))) for code in codes.split())
