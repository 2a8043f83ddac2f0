"""Files in folders that may come from others: read in pieces of bounded size, written whole, never through a link.

A folder from a stranger may hold a link in the place of a report, a pipe in the place of records, or a line that fills
the memory. Reading follows links, but opens regular files only. Writing never follows one: a new file is written beside
its place and renamed into it, which replaces a link and leaves what it leads to as it is.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from motes.errors import ConfigurationError, UnreadableFileError
from motes.text import decoded
from motes.text import read_text as read_any_text

LINE = 1 << 26
"""Bytes of a line, or of a small file, that are read at most: far more than any that motes writes."""

_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # a pipe must not be waited for
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_to_read(path: Path) -> BinaryIO:
    """A regular file, open for reading.

    Raises:
        OSError: it cannot be read, or is something else: a directory, a pipe, a device.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAITING | _BINARY)
    try:
        _require_regular(descriptor, path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_to_append(path: Path) -> int:
    """The descriptor of a regular file, open for reading and appending; it is made if missing.

    Raises:
        OSError: it cannot be written, or is something else; or a link, by which another file would be written to.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_WAITING | _NO_LINK | _BINARY, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link to another file: put a copy in its place") from error
        raise
    try:
        _require_regular(descriptor, path)
        if os.fstat(descriptor).st_nlink > 1:
            raise OSError(errno.EMLINK, "it is the same file as another one (a hard link): put a copy in its place")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(descriptor: int, path: Path) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_text(path: Path, limit: int = LINE) -> str:
    """The text of a regular file, without the mark that some editors put before it.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: it is no UTF-8, or longer than `limit` bytes.
    """
    with open_to_read(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 (at byte {error.start})") from error


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: from 1.
        content: without its end; None where it is longer than may be read.
        ends: where it ends in the file, in bytes; `whole`: whether by a newline.
    """

    number: int
    content: bytes | None
    ends: int
    whole: bool


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """The lines of a regular file, one after the other, at most `limit` bytes of it in memory.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_to_read(path) as file:
        number = ends = 0
        while piece := file.readline(limit + 1):
            number, ends, long = number + 1, ends + len(piece), len(piece) > limit
            while long and not piece.endswith(b"\n") and (more := file.readline(io.DEFAULT_BUFFER_SIZE)):
                piece, ends = more, ends + len(more)
            whole = piece.endswith(b"\n")
            if number == 1 and not long:
                piece = piece.removeprefix(b"\xef\xbb\xbf")
            yield Line(number, None if long else piece.removesuffix(b"\n"), ends, whole)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file to write to, which takes the place of `path` at the end; if anything fails, `path` stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    mode = _mode(path)
    partial = path.with_name(f".motes-{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
    try:
        try:
            yield partial
            if mode is not None:
                os.chmod(partial, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        _keep_names(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _keep_names(folder: Path) -> None:
    """Let the names of a folder's files survive a power failure, where the system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    r"""Put a file with this text in the place of `path`, see `replacing`.

    Half of a surrogate pair, which a file's name may hold, is written out: `\udcff`, as JSON has it.
    """
    with replacing(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))


def _mode(path: Path) -> int | None:
    """The permissions of a regular file, which one in its place gets."""
    with contextlib.suppress(OSError):
        found = path.lstat().st_mode
        if stat.S_ISREG(found):
            return stat.S_IMODE(found)
    return None


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says that a person has named.

    Raises:
        ConfigurationError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(read_any_text(path))
    except OSError as error:
        raise UnreadableFileError(path, error) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}") from error
