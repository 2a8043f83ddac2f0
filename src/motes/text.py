"""Text as people, files and servers hand it in, made fit for everything it is written to."""

from __future__ import annotations

import codecs
import io
import json
import re
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

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


def well_formed_values(value: Any) -> Any:
    """What JSON holds with every text in it, names included, made well-formed.

    Raises:
        ValueError: it is nested too deeply to look into.
    """
    try:
        return _well_formed_values(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _well_formed_values(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed(name): _well_formed_values(one) for name, one in value.items()}
    return [_well_formed_values(one) for one in value] if isinstance(value, list) else value


HALF_WRITTEN_OUT = re.compile(r"\\u[dD][89a-fA-F]")
"""How JSON writes half of a surrogate pair."""


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """What JSON says, every text in it well-formed.

    Args:
        hooks: as for `json.loads`.

    Raises:
        ValueError: it is no JSON.
    """
    text = (text.decode() if isinstance(text, bytes) else text).removeprefix("\ufeff")
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return well_formed_values(value) if HALF_WRITTEN_OUT.search(text) else value


LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""What some programs end a line at, where JSON Lines and server-sent events do not."""


def json_line(value: Any, *, compact: bool = False) -> str:
    """One line of JSON that everything reads as one line, without its end.

    Raises:
        ValueError: there is a number in it that is none, or an infinite one.
    """
    separators = (",", ":") if compact else None
    line = well_formed(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators))
    return LINE_ENDS.sub(lambda found: json.dumps(found[0])[1:-1], line)


def read_text(path: Path | Traversable) -> str:
    """What a text file holds, see `decoded`.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is no such text.
    """
    return decoded(path.read_bytes())


def decoded(content: bytes) -> str:
    """The text of a file, in UTF-8; an editor's mark at its beginning is no part of it, and may say UTF-16. Lines end
    at newlines, as Windows and old Macs write them, too.

    Raises:
        UnicodeDecodeError: it is no such text.
    """
    is_utf16 = len(content) > 2 and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    return io.StringIO(content.decode(encoding), newline=None).read()


JOINING = "\u0590-\u1cff\u2190-\u2bff\ufb50-\ufe0f\ufe70-\ufefc\U00010000-\U000dffff"
"""The letters, signs and emoji behind which a joiner has a meaning."""

UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad]"  # C0 but tab and newline, DEL, C1
    "|[\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0]"  # letters and marks that have no picture
    "|[\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufffe\uffff]"  # no width; line ends; bidi
    f"|(?<![{JOINING}])[\u200c\u200d]|(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]"  # joiners of nothing, selectors of nothing
    "|[\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # halves of pairs; tags
)
"""What a terminal or a page obeys, or shows as nothing at all, where text should be seen."""


def escaped(character: str) -> str:
    r"""A character in Python's notation: `\x1b`, `\u202e`."""
    return character.encode("unicode_escape").decode()


def visible(text: str, *, newlines: bool = False) -> str:
    r"""`text` with what would act on a terminal instead of being seen in Python's notation: `\x1b`, `\u202e`.

    That is Escape and the other control characters, those that turn the direction of writing, and those without width,
    tags among them. Ordinary text stays as it is in every script: letters written from right to left, combining marks,
    the joiners of Persian, of Indic scripts and within emoji.

    Args:
        newlines: the text may have several lines: newlines and tabs are kept, and a Windows line end is one.
    """
    text = text.replace("\r\n", "\n") if newlines else text.replace("\n", r"\n").replace("\t", r"\t")
    return UNSEEN.sub(lambda found: escaped(found[0]), text)


def counted(number: int, noun: str) -> str:
    """A number of things, in words: "1 problem", "2 problems"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
