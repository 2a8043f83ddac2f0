"""Files that are only ever appended to, safe against a killed process and a full disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

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
        RunDirectoryError: it cannot be read or written.
    """

    def __init__(self, path: Path, end: Callable[[Path], int]) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
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
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def read_bytes(path: Path) -> bytes:
    """What a file holds; nothing where there is none.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}") from error
