"""All output of commands to the terminal goes through this module.

Results go to stdout, everything else (progress, notes, errors) to stderr. Text from models, files and servers is shown
literally: it is never markup, and never controls the terminal (`motes.text.visible`). A closed pipe, a full disk or an
encoding without a character does not end a command.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO, cast

import rich.console
import rich.text
from rich.console import RenderableType

from motes.errors import ConfigurationError
from motes.text import UNSEEN, decoded, escaped, visible

FILE_WIDTH = 200
"""Columns of output that does not go to a terminal: enough for all tables."""
MIN_WIDTH = 20
"""Minimum number of columns of a terminal, even if it reports less."""
DEFAULT_WIDTH = 80
"""Columns of a terminal that reports 0."""
SUBSTITUTES: Mapping[str, str] = {
    "━": "#", "─": "-", "■": "*", "…": "...", "→": "->", "–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "≥": ">=",
    "≤": "<=", "“": '"', "”": '"', "‘": "'", "’": "'", "·": "-",
}  # fmt: skip
"""Substitutes for the characters that motes itself prints, for encodings without them."""


def _substitute(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(SUBSTITUTES.get(character) or escaped(character) for character in missing), error.end


codecs.register_error("motes.substitute", _substitute)


class StoppedError(Exception):
    """The user pressed Ctrl-C. The message says what is kept."""


class Stream:
    """A standard stream, or None, whose failures do not end the command.

    Characters that its encoding lacks are replaced. After its reader closed it, output is discarded; after any other
    failure, output goes to `fallback`. `error` is the failure.
    """

    def __init__(self, stream: TextIO | None, fallback: Stream | None = None) -> None:
        self._stream, self._fallback = stream, fallback
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        rest = text
        if self._stream is not None and self.error is None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "motes.substitute").decode(encoding))
                self._stream.flush()  # now, so that errors are caught here
                return len(text)
            except OSError as error:
                self.error = error
                rest = f"motes: stdout cannot be written ({error.strerror}): the rest stands here\n{text}"
            with contextlib.suppress(OSError, ValueError):  # Python must not fail to write the buffer at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if self._fallback is not None and not isinstance(self.error, BrokenPipeError):
            self._fallback.write(rest)
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` flushes."""


@contextlib.contextmanager
def safe_streams() -> Iterator[Stream]:
    """A context in which failures of the standard streams do not end the command. Yields the stream for results."""
    for number in range(3):  # if one is closed, the next file that is opened would become stdin, stdout or stderr
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    err = Stream(sys.stderr)
    out = Stream(sys.stdout, fallback=err)
    with (
        contextlib.redirect_stdout(cast(TextIO, out)),
        contextlib.redirect_stderr(cast(TextIO, err)),
        warnings.catch_warnings(),
    ):
        warnings.showwarning = lambda message, *where: note(f"warning: {message}")
        yield out


class Text(rich.text.Text):
    """rich's `Text`, for text from any source."""

    def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
        super().__init__(visible(text, newlines=True), *arguments, **options)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Text:
        super().append(visible(text, newlines=True) if isinstance(text, str) else text, style)
        return self


class Console(rich.console.Console):
    """rich's `Console`, for text from any source: without markup, emoji names and highlights."""

    def __init__(self, file: TextIO, *, quiet: bool = False) -> None:
        interactive = file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        super().__init__(
            file=file, quiet=quiet, force_interactive=interactive, markup=False, emoji=False, highlight=False
        )
        if not file.isatty():
            self.width = FILE_WIDTH
        elif self.width < MIN_WIDTH:
            self.width = MIN_WIDTH if self.width else DEFAULT_WIDTH

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        return super().render_str(visible(text, newlines=True), **options)

    def show(self, renderable: RenderableType) -> None:
        """Print; if the output is not a terminal, without spaces at the ends of lines."""
        if self.is_terminal or self.quiet:
            self.print(renderable)
            return
        with self.capture() as captured:
            self.print(renderable)
        for line in captured.get().splitlines():
            self.print(Text(line.rstrip()), soft_wrap=True)


def results() -> Console:
    """The console for results, on stdout."""
    return Console(sys.stdout)


def progress(*, quiet: bool = False) -> Console:
    """The console for progress, on stderr."""
    return Console(sys.stderr, quiet=quiet)


def say(line: str) -> None:
    """Print one line of results."""
    print(visible(line))


def exact_json(value: Any) -> str:
    """JSON in which characters that control a terminal, or that stdout cannot encode, are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text = UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def say_progress(line: str) -> None:
    """Print one line about progress."""
    print(visible(line), file=sys.stderr)


def say_busy(activity: str) -> None:
    """On a terminal, print the activity that takes a while now."""
    console = progress()
    if console.is_interactive:
        console.print(Text(f"{activity} …", style="dim"), soft_wrap=True)


def note(message: str) -> None:
    """Print one line to stderr: an error, a warning or a note."""
    line = " ".join(visible(message, newlines=True).split())
    print(f"motes: {line}", file=sys.stderr)


def note_all(messages: Iterable[str]) -> None:
    """Print each message as `note` does."""
    for message in messages:
        note(message)


def show_traceback() -> None:
    """Print the traceback of the current error."""
    print(visible(traceback.format_exc(), newlines=True), end="", file=sys.stderr)


def read_stdin() -> str:
    """Everything on stdin, which must be open and UTF-8."""
    if sys.stdin is None:
        raise ConfigurationError("stdin is closed: pipe the question in, or write it on the command line")
    source = getattr(sys.stdin, "buffer", sys.stdin)
    try:
        content = source.read()
        return decoded(content) if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"stdin is not UTF-8 ({error.reason} at byte {error.start}): convert it") from error
