r"""Answers that a regular expression finds: the last match of `####\s*(\S+)`, say.

Nobody can tell in advance how long a search by an expression takes: (a+)+b may take for ever, and a search that is
quadratic takes minutes of a text of megabytes. Python's `re` cannot be interrupted, and stops all threads while it
searches. So it searches in a process of its own, which ends after `SECONDS` of processor time.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motes.arguments import fit
from motes.errors import ConfigurationError, GraderError, GraderTimeoutError
from motes.tasks.plain import PlainAnswers
from motes.tasks.processes import JsonProcess, Pool, once_per_process
from motes.tasks.tex import Reading
from motes.text import counted, shortened
from motes.thoughts import without_thoughts

SECONDS = 1.0
"""Processor time of one search."""
PATIENCE = 30.0
"""Seconds on the clock after which a search is given up in any case: the machine may be busy."""
TAIL = 10_000
"""Number of characters at the end of a text that are searched if the whole text takes too long."""
MAX_PATTERN = 4000
"""Maximum length of a pattern, in characters."""
WORKER = (sys.executable, "-P", str(Path(__file__).with_name("search.py")), f"{SECONDS}")


class RegexAnswers(PlainAnswers):
    """The answer is what a regular expression finds in the text without thoughts: its last match that is not blank. If
    the pattern has a group named `answer`, that group is the answer, or else the first group that has matched, or else
    the whole match. Nothing is final before the model has ended its text, because a later match may follow.

    The expressions are Python's: `^` and `$` mean the beginning and the end of the text, and of lines after `(?m)`.

    Args:
        pattern: the regular expression.

    Raises:
        ConfigurationError: the pattern is missing or too long, is no regular expression, or matches empty text.
    """

    def __init__(self, pattern: str = "") -> None:
        self.pattern = fit("pattern", pattern, str)
        if not self.pattern:
            raise ConfigurationError(
                "the rule 'regex' needs a pattern: write regex?pattern=…, such as 'regex?pattern=A: (.+)'"
            )
        if len(self.pattern) > MAX_PATTERN:
            raise ConfigurationError(f"a pattern has at most {MAX_PATTERN:,} characters, not {len(self.pattern):,}")
        try:
            compiled = re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigurationError(
                f"{shortened(self.pattern, 100)!r} is not a regular expression: {error} (in a spec, write & as %26 and "
                "% as %25)"
            ) from error
        if compiled.search(""):
            raise ConfigurationError(
                f"the pattern {shortened(self.pattern, 100)!r} matches empty text, so it would match everywhere: let "
                "it match at least one character, (\\d+) instead of (\\d*)"
            )

    def answer(self, text: str) -> str | None:
        """See `motes.protocols.AnswerRule`.

        Raises:
            GraderTimeoutError: the search takes too long.
        """
        return self._search(without_thoughts(text), is_cut=False)

    def answer_when_cut(self, text: str) -> str | None:
        return self._search(without_thoughts(text), is_cut=True)

    def read(self, step: str, before: Reading | None) -> Reading:
        return Reading()

    def _search(self, text: str, *, is_cut: bool) -> str | None:
        """The answer in the text; in its end, if the whole text takes too long: answers stand there."""
        try:
            return _shared().last_match(self.pattern, text, is_cut)
        except GraderTimeoutError:
            if len(text) <= TAIL:
                raise
        return _shared().last_match(self.pattern, text[-TAIL:], is_cut)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pattern!r})"


class Searcher(JsonProcess):
    """A process that searches, see `search.py`."""

    def ask(self, request: Sequence[Any], timeout: float) -> dict[str, Any] | None:
        reply = super().ask(request, timeout)
        if reply is None and self._process.wait() == -getattr(signal, "SIGPROF", 0):
            raise GraderTimeoutError("the processor time is spent")
        return reply


class Searchers(Pool[Searcher]):
    """A pool of processes that search."""

    def __init__(self, size: int = 2, command: Sequence[str] = WORKER) -> None:
        super().__init__(Searcher, command, size, "search by patterns")

    def last_match(self, pattern: str, text: str, is_cut: bool) -> str | None:
        """See `motes.tasks.search.last_match`.

        Raises:
            GraderTimeoutError: it takes too long.
            GraderError: the search fails, or does not start.
        """
        try:
            reply = self.ask(lambda searcher: searcher.ask((pattern, text, is_cut), PATIENCE))
        except GraderTimeoutError as error:
            raise GraderTimeoutError(
                f"the pattern {shortened(pattern, 100)!r} takes too long on a text of "
                f"{counted(len(text), 'character')}: avoid repetitions within repetitions, such as (a+)+, and several "
                ".* after each other"
            ) from error
        if reply is None:
            raise GraderError(f"the search by {shortened(pattern, 100)!r} died, twice")
        answer: str | None = reply["value"]
        return answer


_shared = once_per_process(Searchers)
