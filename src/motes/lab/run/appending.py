"""Files that are only appended to, safe against a killed process and a full disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from motes import files
from motes.errors import DirectoryBusyError, RunDirectoryError
from motes.lab.run.damage import DONE_AGAIN, Damage, Damaged, Item

try:
    import fcntl
except ImportError:  # no locks on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context in which a file is opened for writing or written; its errors become a RunDirectoryError."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error


class AppendOnly:
    """A file open for appending by this process alone; it and its directory are created if missing.

    Each piece is written by one call of the operating system. So a killed process leaves at most one torn piece, the
    last; it is cut off when the file is opened again.

    Args:
        end: returns the offset, in bytes, at which the whole pieces of a file end.

    Raises:
        DirectoryBusyError: another process has the file open.
        RunDirectoryError: the file cannot be read or written, or is a link or no file.
    """

    def __init__(self, path: Path, end: Callable[[Path], int]) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = files.open_to_append(path)
        try:
            self._lock()
            whole = end(path)
            if whole != os.fstat(self._file).st_size:
                os.ftruncate(self._file, whole)
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Append `data`: all of it, or nothing and a RunDirectoryError."""
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
        with contextlib.suppress(OSError):  # each write has reported its own errors
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class AppendOnlyLines(AppendOnly):
    """A file of lines, open for appending. If an editor removed the end of its last line, that is restored."""

    def __init__(self, path: Path, end: Callable[[Path], int]) -> None:
        super().__init__(path, end)
        try:
            if os.lseek(self._file, 0, os.SEEK_END):
                os.lseek(self._file, -1, os.SEEK_END)
                if os.read(self._file, 1) != b"\n":
                    self.write(b"\n")
        except BaseException:
            self.close()
            raise

    def write_lines(self, lines: Iterable[str]) -> None:
        """Append lines: all of them, or none and a RunDirectoryError."""
        self.write("".join(f"{line}\n" for line in lines).encode())


def read_items(
    path: Path,
    parse: Callable[[bytes], Item],
    damaged: Damaged,
    is_torn: Callable[[files.Line], bool],
    *,
    limit: int,
    remedy: str = DONE_AGAIN,
) -> Iterator[tuple[Item | None, int]]:
    """For each line of a file its item, None for a blank or a damaged line, and the offset of its end in bytes. A torn
    last line is skipped. A missing file has no lines; one that cannot be read is an OSError.

    Args:
        parse: makes the item of a line; a ValueError says why it cannot.
        is_torn: whether a killed process or a crash left a damaged last line.
        limit: maximum number of bytes of a line.
    """
    pending: tuple[Damage, files.Line] | None = None  # the next line shows whether a damaged line is the last
    try:
        for line in files.read_lines(path, limit):
            if pending is not None:
                damaged(pending[0])
                yield None, pending[1].ends
                pending = None
            try:
                if line.content is None:
                    raise ValueError(f"it is longer than {limit:,} bytes")
                item = parse(line.content) if line.content.strip() else None
            except ValueError as error:
                pending = Damage(path, f"line {line.number}", str(error), remedy), line
            else:
                yield item, line.ends
    except FileNotFoundError:
        return
    if pending is not None:
        damage, line = pending
        torn = is_torn(line)
        damaged(damage._replace(torn=torn))
        if not torn:
            yield None, line.ends
