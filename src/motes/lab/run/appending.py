"""Files that are only ever appended to, safe against a killed process and a full disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from motes import files
from motes.errors import DirectoryBusyError, RunDirectoryError

try:
    import fcntl
except ImportError:  # no locks on Windows
    fcntl = None  # type: ignore[assignment]


class AppendOnly:
    """A file open for appending by this process alone.

    What is appended is written by one call of the operating system, so a killed process leaves at most one torn piece,
    the last; it is cut off when the file is opened again.

    Args:
        path: of the file; it and its directory are made if missing.
        end: tells where what is whole in a file ends, in bytes.

    Raises:
        DirectoryBusyError: another process has it open.
        RunDirectoryError: it cannot be read or written, or is a link or no file.
    """

    def __init__(self, path: Path, end: Callable[[Path], int]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = files.open_to_append(path)
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._lock()
            whole = end(path)
            if whole != os.fstat(self._file).st_size:
                os.ftruncate(self._file, whole)
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Append `data`, all of it or nothing.

        Raises:
            RunDirectoryError: it could not be written; the file is as it was.
        """
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(0, "the disk is full")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise RunDirectoryError(
                f"{self.path} cannot be written ({error.strerror}): make room, then run the same command to resume"
            ) from error

    @property
    def last_byte(self) -> bytes:
        """Of the file; b"" where it is empty."""
        if not os.lseek(self._file, 0, os.SEEK_END):
            return b""
        os.lseek(self._file, -1, os.SEEK_END)
        return os.read(self._file, 1)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DirectoryBusyError(
                f"another evaluation is writing to {self.path.parent}: wait for it, or choose another directory"
            ) from error
        except OSError:  # a file system without locks
            return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # each write has said what it had to say
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class AppendOnlyLines(AppendOnly):
    """The same, of lines. What somebody's editor left without its end gets one."""

    def __init__(self, path: Path, end: Callable[[Path], int]) -> None:
        super().__init__(path, end)
        try:
            if self.last_byte not in (b"", b"\n"):
                self.write(b"\n")
        except BaseException:
            self.close()
            raise

    def write_lines(self, lines: Iterable[str]) -> None:
        """Append all of them or none.

        Raises:
            RunDirectoryError: they could not be written; the file is as it was.
        """
        self.write("".join(f"{line}\n" for line in lines).encode())
