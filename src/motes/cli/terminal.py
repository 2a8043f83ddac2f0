"""The one door to the terminal: whatever a command shows goes through here.

Results go to stdout, everything else (progress, notes, errors) to stderr. Text of models, files and servers is shown as
text: nothing in it is markup, and nothing in it acts on the terminal (`motes.text.visible`). Streams end no command: a
reader that goes away, a full disk, an encoding that lacks a character.
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

WIDE = 200
"""Columns of what is no terminal: as many as the tables need."""
NARROW = 20
"""Columns of a terminal at least, whatever it says."""
USUAL = 80
"""Columns of a terminal that says 0."""
SPELLED: Mapping[str, str] = {
    "━": "#", "─": "-", "■": "*", "…": "...", "→": "->", "–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "≥": ">=",
    "≤": "<=", "“": '"', "”": '"', "‘": "'", "’": "'", "·": "-",
}  # fmt: skip
"""What stands for our own signs where an encoding lacks them."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(character) or escaped(character) for character in lacking), error.end


codecs.register_error("motes.spell", _spell)


class StoppedError(Exception):
    """Somebody pressed Ctrl-C; the message says what is kept."""


class Stream:
    """A standard stream that ends no command.

    What its encoding lacks is spelled out. When its reader has gone, the rest is thrown away; where it cannot be
    written otherwise, the rest goes to `instead`.

    Args:
        stream: None where the process was started with it closed.
        instead: another one, if there is one.

    Attributes:
        error: why it could not be written, if it could not.
    """

    def __init__(self, stream: TextIO | None, instead: Stream | None = None) -> None:
        self._stream = stream
        self._instead = instead
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        if self._stream is not None and self.error is None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "motes.spell").decode(encoding))
                self._stream.flush()  # here, where an error is caught
                return len(text)
            except OSError as error:
                self._give_up(self._stream, error)
        if self._instead is not None and not isinstance(self.error, BrokenPipeError):
            self._instead.write(text)
        return len(text)

    def flush(self) -> None:
        """Nothing: every write does."""

    def _give_up(self, stream: TextIO, error: OSError) -> None:
        self.error = error
        with contextlib.suppress(OSError, ValueError):  # what is still in its buffer must not fail when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if self._instead is not None and not isinstance(error, BrokenPipeError):
            self._instead.write(f"motes: stdout cannot be written ({error.strerror}): the rest stands here\n")


@contextlib.contextmanager
def opened() -> Iterator[Stream]:
    """The standard streams made safe for a command; what its results are written to."""
    for number in range(3):  # else the next file opened would be the process's stdin, stdout or stderr
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    err = Stream(sys.stderr)
    out = Stream(sys.stdout, instead=err)
    with (
        contextlib.redirect_stdout(cast(TextIO, out)),
        contextlib.redirect_stderr(cast(TextIO, err)),
        warnings.catch_warnings(),
    ):
        warnings.showwarning = lambda message, *where: note(f"warning: {message}")
        yield out


class Text(rich.text.Text):
    """rich's, of text from anywhere."""

    def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
        super().__init__(visible(text, newlines=True), *arguments, **options)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Text:
        super().append(visible(text, newlines=True) if isinstance(text, str) else text, style)
        return self


class Console(rich.console.Console):
    """rich's, for text from anywhere: without markup, emoji by name or highlights."""

    def __init__(self, file: TextIO, *, quiet: bool = False) -> None:
        interactive = file.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        super().__init__(
            file=file, quiet=quiet, force_interactive=interactive, markup=False, emoji=False, highlight=False
        )
        if not file.isatty():
            self.width = WIDE
        elif self.width < NARROW:
            self.width = NARROW if self.width else USUAL

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        return super().render_str(visible(text, newlines=True), **options)

    def show(self, renderable: RenderableType) -> None:
        """Print without blanks at the ends of lines where the output is not a terminal's."""
        if self.is_terminal or self.quiet:
            self.print(renderable)
            return
        with self.capture() as captured:
            self.print(renderable)
        for line in captured.get().splitlines():
            self.print(Text(line.rstrip()), soft_wrap=True)


def results() -> Console:
    """Where what was asked for is shown: stdout."""
    return Console(sys.stdout)


def progress(*, quiet: bool = False) -> Console:
    """Where a command shows how far it is: stderr."""
    return Console(sys.stderr, quiet=quiet)


def say(line: str) -> None:
    """One line of results."""
    print(visible(line))


def exact_json(value: Any) -> str:
    """JSON, in which what would act on a terminal, or stdout cannot take, is escaped as JSON does it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text = UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def tell(line: str) -> None:
    """One line about how far a command is."""
    print(visible(line), file=sys.stderr)


def pass_time(doing: str) -> None:
    """What takes a while now, where somebody waits at a terminal."""
    console = progress()
    if console.is_interactive:
        console.print(Text(f"{doing} …", style="dim"), soft_wrap=True)


def note(message: str) -> None:
    """One line on stderr: an error, a warning, or what else must be known."""
    print(f"motes: {one_line(message)}", file=sys.stderr)


def note_all(messages: Iterable[str]) -> None:
    """Each as `note` does it."""
    for message in messages:
        note(message)


def show_traceback() -> None:
    """Where the error being handled comes from."""
    print(visible(traceback.format_exc(), newlines=True), end="", file=sys.stderr)


def one_line(message: str) -> str:
    """A message as one line."""
    return " ".join(visible(message, newlines=True).split())


def read_stdin() -> str:
    """Everything on stdin.

    Raises:
        ConfigurationError: it is closed, or no UTF-8.
    """
    if sys.stdin is None:
        raise ConfigurationError("stdin is closed: pipe the question in, or write it on the command line")
    source = getattr(sys.stdin, "buffer", sys.stdin)
    try:
        content = source.read()
        return decoded(content) if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"stdin is no UTF-8 ({error.reason} at byte {error.start}): convert it") from error
