r"""The exact places where steps and answers end. Every engine finds the same ones.

    delimiters      A step ends after the first delimiter. If the token that completes it goes on, the rest of the token
                    belongs to the step too, where the engine knows tokens; a stop text in it ends the answer.
    a pattern       A step ends where a match ends, at the first character that completes a match: `\n+` ends it at the
                    first new line. Text that the pattern looks ahead at, as in `\n\n(?=## Step \d+:)`, and the rest of
                    the last token belong to the next step (`Step.overrun`). A match that would leave the step blank
                    does not count. The pattern sees the current step only. A match, lookahead included, has at most
                    `MATCH_LENGTH` characters.
    tokens          A step ends after `max_step_tokens` tokens.
    entropy         A step ends before a token whose distribution has more entropy than `step_entropy`. That depends on
                    the text before it only; the token itself belongs to the next step, which samples it.
    stop texts      The answer ends before the first stop text within a step.

The end that is complete first counts; if two are complete at the same character, the stop text. Ends depend only on the
text sampled so far. No sampled text is thrown away and sampled again, so steps follow the language model's own
distribution. A pattern ends steps in the same places however the text is tokenised. The marks around thoughts
(`motes.thoughts`) are ordinary text.
"""

from __future__ import annotations

import bisect
import re
from functools import lru_cache
from typing import NamedTuple

from motes.core import Sampling, Step, StepEnd, Usage
from motes.thoughts import HARMONY, TAGS

MATCH_LENGTH = 256
"""Maximum length of a match of a pattern, in characters: without it, a search would cost more the longer a step is.
(Nested repetitions such as `(a+)+b` can still take forever, as everywhere in `re`.)"""


VISIBLE = re.compile(r"\S")
END_SENSITIVE = re.compile(r"\$|\\[bBZz1-9]|\(\?[!>(]|\(\?P=|[+*?}]\+|(?s:\(\?<!.*\(\?=)")
"""Constructs by which more text can undo a match: ends of texts, lines and words, negative lookahead, atomic groups,
possessive repetitions, references to groups (which lookahead captures once), lookahead within negative lookbehind.
Patterns that merely contain these characters are treated as if they had the construct."""


OPENING = re.compile(
    rf"(?:{'|'.join(map(re.escape, TAGS))}|<\|channel\|>(?:analysis|commentary|final)<\|message\|>)\s*\Z"
)


IN_HARMONY = re.compile(r"<\|start\|>assistant(?:<\|channel\|>\w+<\|message\|>)?\s*\Z")
"""The end of a prompt for a model that writes harmony."""


def opening(prompt: str) -> str:
    """The beginning of the answer, if the prompt ends with it: chat templates of models that always think end with
    `<think>`, say. It belongs to the answer's text."""
    match = OPENING.search(prompt)
    return match[0] if match else ""


def thought_opening(prompt: str) -> str:
    """The tag with which the prompt opens a thought, or harmony's first token if the prompt is written in harmony; ""
    if the prompt does not say whether the answer begins with a thought."""
    return HARMONY[1] if IN_HARMONY.search(prompt) else opening(prompt).strip()


class Cut(NamedTuple):
    """The end of a step in a text: the step's text is `text[:end]`. `is_stop`: the answer ends there, too."""

    end: int
    is_stop: bool


def first_cut(text: str, sampling: Sampling, start: int = 0) -> Cut | None:
    """The first end of a step, or of the answer, in a step's text.

    Args:
        text: the step's text so far.
        start: number of characters that an earlier search covered without finding an end.
    """
    cuts: list[tuple[int, bool, Cut]] = []  # (place where it is complete, False for a stop text, the cut)
    for texts, is_stop in ((sampling.stops, True), (sampling.delimiters, False)):
        for target in texts:
            at = text.find(target, max(0, start - len(target) + 1))
            if at >= 0:
                complete = at + len(target)
                cuts.append((complete, not is_stop, Cut(at if is_stop else complete, is_stop)))
    first = min(cuts, default=None)
    if sampling.pattern is not None:
        before = len(text) if first is None else first[0] - 1
        if (end := _end_of_match(sampling.pattern, text, start, before)) is not None:
            return Cut(end, False)
    return None if first is None else first[2]


def _end_of_match(pattern: re.Pattern[str], text: str, start: int, stop: int) -> int | None:
    """The end of the match that is complete first, after more than `start` and at most `stop` characters."""
    blank = len(text) if (visible := VISIBLE.search(text)) is None else visible.start()
    for before in range(max(start, blank), stop, MATCH_LENGTH):
        behind = min(before + MATCH_LENGTH, stop)
        for complete in range(_first_possible(pattern, text, before, behind), behind + 1):
            for match in pattern.finditer(text, max(0, complete - MATCH_LENGTH), complete):
                if match.end() > blank:
                    return match.end()
    return None


def _first_possible(pattern: re.Pattern[str], text: str, before: int, behind: int) -> int:
    """The smallest number of characters, from before + 1 to `behind`, in which the pattern may match; `behind` + 1 if
    there is none.

    1. A pattern that sees the end of the text has to be tried at every character.
    2. Usually there is no match: one search over all characters shows that.
    3. Otherwise bisect: a match in some characters is still a match when more follow.
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


def split_at_end(text: str, sampling: Sampling, start: int = 0) -> tuple[str, str, StepEnd]:
    """Split a text in which an engine found the end of a step: the step's text, its overrun, and how it ended. The
    overrun of an answer that a stop text ended begins with the stop text.

    Args:
        start: see `first_cut`.
    """
    if sampling.pattern is None:  # the rest of the token stays with the delimiter, and may contain a stop text
        sampling = sampling.replace(delimiter=None)
    cut = first_cut(text, sampling, start)
    if cut is None:
        return text, "", "step"
    return text[: cut.end], text[cut.end :], "eos" if cut.is_stop else "step"


def end_at_limit(sampling: Sampling, limit: int) -> StepEnd:
    """The end of a step that reached its limit of tokens: it is complete if steps are a number of tokens."""
    by_tokens = not sampling.delimiters and sampling.pattern is None and sampling.step_entropy is None
    return "step" if by_tokens and limit == sampling.max_step_tokens else "length"


def step_in_overrun(previous_overrun: str, sampling: Sampling) -> Step | None:
    """The complete step, ended by a pattern, that the overrun of the previous step contains; None if there is none."""
    if sampling.pattern is None or first_cut(previous_overrun, sampling) is None:
        return None
    text, overrun, end = split_at_end(previous_overrun, sampling)
    return Step(text, end, logprob=0.0, usage=Usage(), proposal_logprob=0.0, overrun=overrun)
