"""Files in folders that may come from others: read in pieces of bounded size, written whole, never through a link.

In a folder from a stranger a report may be a link, records may be a pipe, and a line may fill the memory. Reading
follows links, but opens regular files only. Writing never follows a link: a new file is written under a temporary name
and then renamed, which replaces a link and does not change its target.
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
from typing import Any, NamedTuple

from motes.errors import ConfigurationError, UnreadableFileError
from motes.text import decoded
from motes.text import read_text as read_any_text

LINE = 1 << 26
"""Maximum number of bytes of a line, or of a small file, that are read: far more than motes ever writes."""

_NO_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # opening a pipe must not wait
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_to_read(path: Path) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be read, or is not a regular file: a directory, a pipe, a device.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_BLOCKING | _BINARY)
    try:
        _require_regular(descriptor, path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_to_append(path: Path) -> int:
    """Open a regular file for reading and appending, create it if missing, and return its descriptor.

    Raises:
        OSError: it cannot be written, is not a regular file, or is a link, so that another file would be changed.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_BLOCKING | _NO_LINK | _BINARY, 0o644)
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
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_text(path: Path, limit: int = LINE) -> str:
    """The text of a regular file, without a byte order mark.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not UTF-8, or longer than `limit` bytes.
    """
    with open_to_read(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    try:
        return decoded(content)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (at byte {error.start})") from error


class Line(NamedTuple):
    """A line of a file."""

    number: int  # counted from 1
    content: bytes | None  # without its newline; None if it is longer than the limit
    ends: int  # the offset in the file, in bytes, at which the line ends
    whole: bool  # whether it ends with a newline


def read_lines(path: Path, limit: int) -> Iterator[Line]:
    """The lines of a regular file, one after the other, with at most `limit` bytes of a line in memory.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with open_to_read(path) as file:
        number = 0
        ends = 0
        while piece := file.readline(limit + 1):
            number += 1
            ends += len(piece)
            is_long = len(piece) > limit
            while is_long and not piece.endswith(b"\n") and (more := file.readline(io.DEFAULT_BUFFER_SIZE)):
                piece = more
                ends += len(piece)
            whole = piece.endswith(b"\n")
            if number == 1 and not is_long:
                piece = piece.removeprefix(b"\xef\xbb\xbf")
            yield Line(number, None if is_long else piece.removesuffix(b"\n"), ends, whole)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context with a new file to write to, which replaces `path` at the end. If anything fails, `path` is unchanged.

    Raises:
        OSError: it cannot be written.
    """
    permissions = None  # of the file that is replaced
    with contextlib.suppress(OSError):
        if stat.S_ISREG(mode := path.lstat().st_mode):
            permissions = stat.S_IMODE(mode)
    partial = path.with_name(f".motes-{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
    try:
        try:
            yield partial
            if permissions is not None:
                os.chmod(partial, permissions)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a power failure, if the system supports that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    r"""Replace `path` by a file with this text, see `replacing`.

    Half of a surrogate pair, which file names may contain, is escaped as in JSON: `\udcff`.
    """
    with replacing(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))


def read_toml(path: Path, name: str | None = None) -> dict[str, Any]:
    """The table of a TOML file that the user named.

    Args:
        name: of the file in messages; by default its path.

    Raises:
        ConfigurationError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_any_text(path))
    except (OSError, UnicodeError) as error:
        raise UnreadableFileError(path, error) from error
    except RecursionError as error:
        raise ConfigurationError(f"{name or path} is nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, or Python's own for a number of thousands of digits or a wrong date
        raise ConfigurationError(f"{name or path} is not TOML: {error}") from error
