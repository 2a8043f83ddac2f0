"""Text from people, files and servers, made safe for files, terminals and pages."""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def well_formed(text: str) -> str:
    r"""`text` with both halves of a surrogate pair joined, and a half without the other replaced by U+FFFD.

    A half can come from JSON (`"\ud83d"`: an emoji cut in two by a limit on tokens, or by a program that counts in
    UTF-16), and from Python, which makes one of each byte of an argument that is not UTF-8. Files, sockets and
    terminals refuse halves. They are replaced where text enters, so that writers need not handle them.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def put_placeholders(pattern: re.Pattern[str], texts: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Replace all matches of a pattern by placeholders, which nobody can guess.

    Returns:
        the texts, and the match that each placeholder stands for.
    """
    if not any(map(pattern.search, texts)):
        return list(texts), {}
    nonce, placeholders = secrets.token_hex(8), dict[str, str]()

    def replace(match: re.Match[str]) -> str:
        placeholders[name := f"[{nonce}:{len(placeholders)}]"] = match[0]
        return name

    return [pattern.sub(replace, text) for text in texts], placeholders


def split_at_placeholders(text: str, placeholders: Mapping[str, str]) -> list[str]:
    """The pieces of a text by turns: text, placeholder, text, placeholder, …, text."""
    return re.split(f"({'|'.join(map(re.escape, placeholders))})", text) if placeholders else [text]


def well_formed_values(value: Any) -> Any:
    """A JSON value with all its texts, names included, made well-formed.

    Raises:
        ValueError: the value is nested too deeply.
    """
    try:
        return _well_formed_values(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _well_formed_values(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed(name): _well_formed_values(item) for name, item in value.items()}
    return [_well_formed_values(item) for item in value] if isinstance(value, list) else value


ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""Half of a surrogate pair, as JSON escapes it."""


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """The value of a JSON text, with all its texts made well-formed.

    Args:
        hooks: as for `json.loads`.

    Raises:
        ValueError: the text is not JSON.
    """
    text = (text.decode() if isinstance(text, bytes) else text).removeprefix("\ufeff")
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return well_formed_values(value) if ESCAPED_HALF.search(text) else value


def finite_json(text: str | bytes) -> Any:
    """Like `parse_json`, for numbers that are finite.

    Raises:
        ValueError: the text is not JSON, such as NaN, or has a number that no float can hold, such as 1e999.
    """
    return parse_json(text, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number is not finite: {text[:20]}")
    return number


LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Characters that end a line for some programs, but not in JSON Lines and server-sent events."""


def json_line(value: Any, *, compact: bool = False) -> str:
    """JSON that every program reads as one line, without a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    separators = (",", ":") if compact else None
    line = well_formed(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators))
    return LINE_ENDS.sub(lambda match: json.dumps(match[0])[1:-1], line)


def read_text(path: Path | Traversable) -> str:
    """The text of a file, see `decoded`.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the content is not text.
    """
    return decoded(path.read_bytes())


def decoded(content: bytes) -> str:
    """The text of a file's content: UTF-8, or UTF-16 if a byte order mark says so. The text does not include the mark.
    Line ends of Windows and old Macs become newlines.

    Raises:
        UnicodeDecodeError: the content is not text.
    """
    is_utf16 = len(content) > 2 and content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    return io.StringIO(content.decode(encoding), newline=None).read()


JOINING = "\u0590-\u1cff\u2190-\u2bff\ufb50-\ufe0f\ufe70-\ufefc\U00010000-\U000dffff"
"""The letters, signs and emoji after which a joiner has a meaning."""

UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad]"  # C0 but tab and newline, DEL, C1
    "|[\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0]"  # invisible letters and marks
    "|[\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb\ufffe\uffff]"  # no width; line ends; bidi
    f"|(?<![{JOINING}])[\u200c\u200d]|(?<=[\ufe00-\ufe0f])[\ufe00-\ufe0f]"  # joiners and selectors without effect
    "|[\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # halves of pairs; tags
)
"""Characters that control a terminal or a page, or are invisible there."""


def escaped(character: str) -> str:
    r"""A character in Python's notation: `\x1b`, `\u202e`."""
    return character.encode("unicode_escape").decode()


def visible(text: str, *, newlines: bool = False) -> str:
    r"""`text` with characters that would control a terminal, or be invisible, in Python's notation: `\x1b`, `\u202e`.

    Ordinary text of every script stays as it is: letters written from right to left, combining marks, the joiners of
    Persian, of Indic scripts and within emoji.

    Args:
        newlines: keep newlines and tabs, because the text may have several lines. Line ends of Windows become newlines.
    """
    text = text.replace("\r\n", "\n") if newlines else text.replace("\n", r"\n").replace("\t", r"\t")
    return UNSEEN.sub(lambda match: escaped(match[0]), text)


def counted(number: int, noun: str) -> str:
    """A number of things, in words: "1 problem", "2 problems"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shortened(text: str, most: int) -> str:
    """The text, or its first characters and an ellipsis if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
