"""Text as people, files and servers hand it in, made fit for everything it is written to."""

from __future__ import annotations

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def well_formed(text: str) -> str:
    r"""`text` with halves of surrogate pairs joined where both are there, and replaced by U+FFFD where one is alone.

    JSON lets a half in (`"\ud83d"`: an emoji cut in two by a limit on tokens, or by a program that counts in UTF-16),
    and Python stands one in for each byte of an argument that is no UTF-8; no file, socket or terminal lets it out
    again. It is replaced where text enters, so that no writer has to think of it.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
