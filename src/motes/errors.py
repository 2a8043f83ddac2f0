"""All errors that motes raises on purpose.

    MotesError
    ├── ConfigurationError      a value from the caller cannot work; nothing was computed
    │   ├── UnknownNameError    a method, task, model or option of that name does not exist
    │   ├── MissingExtraError   an optional dependency is not installed
    │   ├── UnreadableFileError a file that the caller named cannot be read
    │   ├── ProblemFileError    a row of a file of problems cannot be used
    │   └── UnauthorizedError   a server requires a key
    ├── ContextLengthError      a prompt does not fit the model's context
    ├── EngineError             a language model failed while running
    │   └── ServerError         a server failed a request, and retries did not help
    │       ├── UnreachableError    the server does not respond, or not in time
    │       ├── RejectedError       the server refused the request itself
    │       └── BadResponseError    the response cannot be understood
    │           ├── UnknownFormError    the response has an unknown form
    │           └── TooLargeError       the response is larger than motes reads
    ├── RewardError             a reward model failed, or its scores cannot be used
    │   └── VerdictError        a judge's reply states no verdict
    ├── GraderError             an answer could not be graded: it is neither right nor wrong
    │   └── GraderTimeoutError  it could not be graded in time
    ├── DegenerateWeightsError  every particle's weight is zero
    │   └── NoParticlesError    every particle was dropped (an EngineError as well)
    ├── ContractError           an implementation broke the contract of its protocol
    └── RunDirectoryError       an evaluation's directory cannot be used as requested
        └── DirectoryBusyError  another process works in it

Each message says what is wrong and what to do about it. An error that ends a run has the run's partial result as its
attribute `result`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from motes.text import well_formed


class MotesError(Exception):
    """The base of all errors that motes raises on purpose.

    The message may quote a server, a file or a user's function, and is made well-formed. Every error can be copied and
    pickled, whatever its constructor takes.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(well_formed(arg) if isinstance(arg, str) else arg for arg in args))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).__new__, (type(self), *self.args), self.__dict__  # the constructor is not called

    result: Any = None
    """A `motes.Result`: the partial result of the run that failed; None if nothing had run."""


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error, its causes, its contexts and the errors in a group, each once."""
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            links += [*getattr(link, "exceptions", ()), link.__context__, link.__cause__]


class ConfigurationError(MotesError, ValueError):
    """A value from the caller cannot work; nothing was computed."""


class UnknownNameError(ConfigurationError):
    """A method, task, model or option of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = closest(name, known)
        hint = f"did you mean {close!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(known)}")


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to `name`, None if none is close. Case does not count."""
    folded = {item.casefold(): item for item in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[close[0]] if close else None


class UnreadableFileError(ConfigurationError):
    """A file that the caller named cannot be read."""

    def __init__(self, path: Path, error: OSError | UnicodeError) -> None:
        reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"{path} cannot be read: {reason}: {self._remedy(path, error)}")

    @staticmethod
    def _remedy(path: Path, error: OSError | UnicodeError) -> str:
        if isinstance(error, UnicodeError):
            return "save it as UTF-8"
        if isinstance(error, IsADirectoryError):
            return "name a file"
        if not isinstance(error, FileNotFoundError):
            return "check what it is, and who may read it"
        if not path.parent.is_dir():
            return f"there is no directory {str(path.parent)!r}"
        close = closest(path.stem, (file.stem for file in path.parent.iterdir() if file.suffix == path.suffix))
        return f"did you mean {str(path.with_stem(close))!r}?" if close else f"check the path, here is {Path.cwd()}"


class MissingExtraError(ConfigurationError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency: pip install 'motes[{extra}]'")


class ProblemFileError(ConfigurationError):
    """A row of a file of problems cannot be used: line `line`, from 1, of the file `path`."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        self.path, self.line = path, line
        super().__init__(f"{path}, line {line}: {reason}")


class UnauthorizedError(ConfigurationError):
    """A server requires a key."""


class ContextLengthError(MotesError, ValueError):
    """A prompt does not fit the model's context."""


class EngineError(MotesError, RuntimeError):
    """A language model failed while running."""


class ServerError(EngineError):
    """A server failed a request, and retries did not help."""

    status: int | None = None
    """The HTTP status of the response; None if there was no response."""

    retry_after: float | None = None
    """Seconds after which the server wants the next request; None if it does not say."""

    @property
    def is_busy(self) -> bool:
        """Whether the server had no room for the request."""
        return self.status in (429, 503)


class UnreachableError(ServerError):
    """The server does not respond, or not in time."""


class RejectedError(ServerError):
    """A server refused the request itself: it would refuse the same request again."""


class BadResponseError(ServerError):
    """A server's response cannot be understood."""


class UnknownFormError(BadResponseError):
    """A server's response is complete, but has an unknown form; the next response most likely will, too."""


class TooLargeError(BadResponseError):
    """A server's response is larger than motes reads; the next response most likely will be, too."""


class RewardError(MotesError, RuntimeError):
    """A reward model failed, or its scores cannot be used."""


class VerdictError(RewardError):
    """A judge's reply states no verdict, even after retries."""


class GraderError(MotesError, RuntimeError):
    """An answer could not be graded: it is neither right nor wrong."""


class GraderTimeoutError(GraderError):
    """An answer could not be graded in time."""


class DegenerateWeightsError(MotesError, ArithmeticError):
    """Every particle's weight is zero."""


class NoParticlesError(DegenerateWeightsError, EngineError):
    """Every particle was dropped, because a model could not extend or score it."""


class ContractError(MotesError, AssertionError):
    """An implementation broke the contract of its protocol."""


class RunDirectoryError(MotesError, RuntimeError):
    """An evaluation's directory cannot be used as requested."""


class DirectoryBusyError(RunDirectoryError):
    """Another process works in an evaluation's directory."""


def __getattr__(name: str) -> Any:
    if name not in ("PartlyFailedError", "StepsFailedError", "ScoresFailedError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"motes.errors.{name} is deprecated, nothing raises it any more: models return `motes.core.Failure` in the "
        "place of a result",
        DeprecationWarning,
        stacklevel=2,
    )
    return _RetiredError


class _RetiredError(MotesError, RuntimeError):
    """Stands for removed errors, so that code that catches them can still be imported."""
