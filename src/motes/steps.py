r"""Where steps and answers end, to the letter. Engines that look for ends among tokens find these.

    delimiters      A step ends behind the first of them. What the token that completes one holds behind it belongs to
                    the step as well, where the engine knows tokens; a stop text in it ends the answer.
    a pattern       A step ends where a match ends, at the first letter that completes one: `\n+` ends it at its first
                    new line. Text that the pattern has to look ahead at, as in `\n\n(?=## Step \d+:)`, is the next
                    step's, and so is what a token holds behind the end (`Step.ahead`). A match that would leave the
                    step blank is none. The pattern sees the step only, not those before it. A match, with what it
                    looks ahead at, is no longer than `MATCH_LENGTH` characters.
    tokens          A step ends with the last of `max_step_tokens`.
    stop texts      The answer ends before the first of them. They are looked for within a step.

Whichever is complete first counts, and at the same letter the stop text. All of it depends on nothing but what was
drawn so far: nothing that was drawn is thrown away and drawn again, and so steps follow the language model's own
distribution. However tokens cut a text, a pattern ends its steps in the same places. Thinking tags are text like any
other.
"""

from __future__ import annotations

import bisect
import re
from functools import lru_cache
from typing import NamedTuple

from motes.core import Sampling, Step, StepEnd, Usage

THINKING = ("<think>", "</think>")
MATCH_LENGTH = 256
"""Characters of a pattern's match at most, so that looking for one costs as much late in a step as at its beginning.
(Nested repetitions, `(a+)+b`, can take forever even so, as anywhere in `re`.)"""


VISIBLE = re.compile(r"\S")
END_SENSITIVE = re.compile(r"\$|\\[bBZz1-9]|\(\?[!>(]|\(\?P=|[+*?}]\+|(?s:\(\?<!.*\(\?=)")
"""Whatever can undo a match when more text follows: ends of texts, lines and words, negative lookahead, atomic groups,
possessive repetitions, references to groups (which lookahead captures once), lookahead where nothing may be behind.
What only looks alike is taken for it."""


def opening(prompt: str) -> str:
    """What a prompt says at its end in the answer's name, and so belongs to the answer's text: the tag that the chat
    templates of models which always think end in."""
    found = re.search(r"<think>\s*\Z", prompt)
    return found[0] if found else ""


class Cut(NamedTuple):
    """A place where a text ends: the step's text is `text[:end]`; `is_stop`: and so is the answer's."""

    end: int
    is_stop: bool


def first_cut(text: str, sampling: Sampling, start: int = 0) -> Cut | None:
    """The first place where a step ends, or the answer by a stop text.

    Args:
        text: of the step, as far as it is drawn.
        start: how much of it was looked through before, without finding one.
    """
    found: list[tuple[int, bool, Cut]] = []  # (where it is complete, whether a stop text comes first, the cut)
    for texts, is_stop in ((sampling.stops, True), (sampling.delimiters, False)):
        for sought in texts:
            at = text.find(sought, max(0, start - len(sought) + 1))
            if at >= 0:
                complete = at + len(sought)
                found.append((complete, not is_stop, Cut(at if is_stop else complete, is_stop)))
    first = min(found, default=None)
    if sampling.pattern is not None:
        before = len(text) if first is None else first[0] - 1
        if (end := _end_of_match(sampling.pattern, text, start, before)) is not None:
            return Cut(end, False)
    return None if first is None else first[2]


def _end_of_match(pattern: re.Pattern[str], text: str, start: int, stop: int) -> int | None:
    """Where the match ends that is complete first, behind `start` and not behind `stop` characters."""
    blank = len(text) if (visible := VISIBLE.search(text)) is None else visible.start()
    for before in range(max(start, blank), stop, MATCH_LENGTH):
        behind = min(before + MATCH_LENGTH, stop)
        for complete in range(_first_possible(pattern, text, before, behind), behind + 1):
            for match in pattern.finditer(text, max(0, complete - MATCH_LENGTH), complete):
                if match.end() > blank:
                    return match.end()
    return None


def _first_possible(pattern: re.Pattern[str], text: str, before: int, behind: int) -> int:
    """The first number of characters, of those from before + 1 to `behind`, among which the pattern may match; or one
    more than `behind`.

    One search where there is no match, which is the rule. What matches does so still when more text follows, unless the
    pattern looks at where the text ends: then each letter has to be tried.
    """
    if _sees_the_end(pattern):
        return before + 1
    start = max(0, before + 1 - MATCH_LENGTH)
    if pattern.search(text, start, behind) is None:
        return behind + 1
    numbers = range(before + 1, behind + 1)
    return numbers[bisect.bisect_left(numbers, True, key=lambda n: pattern.search(text, start, n) is not None)]


@lru_cache
def _sees_the_end(pattern: re.Pattern[str]) -> bool:
    return END_SENSITIVE.search(pattern.pattern) is not None


def divided(text: str, sampling: Sampling, start: int = 0) -> tuple[str, str, StepEnd]:
    """A text in which an engine found an end: the step's text, what it has ahead, how it ended.

    Args:
        start: see `first_cut`.
    """
    if sampling.pattern is None:  # what a token holds behind a delimiter stays with it, and may hold a stop text
        sampling = sampling.replace(delimiter=None)
    cut = first_cut(text, sampling, start)
    if cut is None:
        return text, "", "step"
    return (text[: cut.end], "", "eos") if cut.is_stop else (text[: cut.end], text[cut.end :], "step")


def end_at_limit(sampling: Sampling, limit: int) -> StepEnd:
    """How a step ended that was drawn up to its limit of tokens: complete, where steps are so many tokens."""
    by_tokens = not sampling.delimiters and sampling.pattern is None
    return "step" if by_tokens and limit == sampling.max_step_tokens else "length"


def drawn_before(before: str, sampling: Sampling) -> Step | None:
    """The step that a pattern ends within what is there before anything is drawn for it; None: there is none."""
    if sampling.pattern is None or first_cut(before, sampling) is None:
        return None
    text, ahead, end = divided(before, sampling)
    return Step(text, end, logprob=0.0, usage=Usage(), proposal_logprob=0.0, ahead=ahead)
