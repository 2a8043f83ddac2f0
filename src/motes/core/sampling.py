"""The settings by which a language model is sampled, as a value and as options."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from motes.arguments import fit_fields
from motes.errors import ConfigurationError

MOST_TEXTS = 64
"""Maximum number of delimiters and stop texts of one `Sampling`."""
LONGEST_TEXT = 1024
"""Maximum number of characters of a delimiter or a stop text."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the language model is sampled, and where a step and an answer end. Every engine obeys every field.

    Attributes:
        temperature: of the language model; 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        max_step_tokens: maximum number of tokens of one step.
        max_tokens: maximum number of tokens of a whole answer; None: as many as the model's context holds.
        max_steps: maximum number of steps of one answer.
        delimiter: a text, or several, that ends a step and belongs to it; or a compiled regular expression,
            `re.compile(…)`: a step ends where a match ends. None: a step is `max_step_tokens` tokens. `motes.steps` has
            the exact rules.
        stop: a text, or several, that ends the answer. Like an end-of-sequence token, it does not belong to the answer.
            It is searched for within a step.
        step_entropy: a step ends where the next token is uncertain: before a token whose distribution at temperature 1
            has a larger entropy, in nats, if the step has `min_step_tokens` tokens by then. Delimiters end steps as
            well. Only the local engine can find these places; others refuse.
        min_step_tokens: minimum number of tokens of a step that ends by its entropy.
        top_logprobs: number of likeliest tokens from which steps get `Step.certainty`; 0: they get none. Methods and
            reward models that need it set it by themselves. It does not change what is sampled.
        hidden_layers: numbers of the layers whose states steps get (`Step.hidden`): 0 is the embedding, a negative
            number counts from the end, −1 is the state from which logits are computed. Set by reward models that need
            it; only the local engine has it. It does not change what is sampled.
        max_thinking_tokens: maximum number of tokens of thought of one answer (`motes.core.thinking`): the thinking
            budget. A thought that reaches it is ended, see `motes.methods.thinking`. None: no limit.
        min_thinking_tokens: a thought that ends before so many tokens is continued: its closing tag is dropped, and
            `wait` is put in its place.
        wait: the text that continues a thought.
        max_waits: maximum number of times that the thoughts of one answer are continued.

    Raises:
        ConfigurationError: a field is out of its range, the pattern matches empty text, there are more than 64
            delimiters and stop texts or one is longer than 1,024 characters, or a stop text contains a delimiter, so
            that a step would always end before it.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_step_tokens: int = 1024
    max_tokens: int | None = None
    max_steps: int = 40
    delimiter: str | tuple[str, ...] | re.Pattern[str] | None = "\n\n"
    stop: str | tuple[str, ...] = ()
    step_entropy: float | None = None
    min_step_tokens: int = 16
    top_logprobs: int = 0
    hidden_layers: tuple[int, ...] = ()
    max_thinking_tokens: int | None = None
    min_thinking_tokens: int = 0
    wait: str = "\nWait"
    max_waits: int = 2

    def __post_init__(self) -> None:
        fit_fields(self, "Sampling: ")

        def require(holds: bool, requirement: str) -> None:
            if not holds:
                raise ConfigurationError(f"Sampling: {requirement}")

        require(self.temperature >= 0 and math.isfinite(self.temperature), "temperature must be 0 or more")
        require(0 < self.top_p <= 1, "top_p must lie in (0, 1]")
        require(self.top_k >= 0, "top_k must be 0 (keep all) or more")
        require(0 <= self.min_p <= 1, "min_p must lie in [0, 1]")
        require(self.max_step_tokens >= 1, "max_step_tokens must be at least 1")
        require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens must be at least 1, or None")
        require(self.max_steps >= 1, "max_steps must be at least 1")
        require(self.step_entropy is None or self.step_entropy > 0, "step_entropy must be more than 0, or None")
        require(self.min_step_tokens >= 1, "min_step_tokens must be at least 1")
        require(self.pattern is None or self.step_entropy is None, "a pattern and step_entropy exclude each other")
        require(self.top_logprobs >= 0, "top_logprobs must be 0 (none) or more")
        most, least = self.max_thinking_tokens, self.min_thinking_tokens
        require(most is None or most >= 1, "max_thinking_tokens must be at least 1, or None")
        require(least >= 0, "min_thinking_tokens must be 0 or more")
        require(
            most is None or least <= most, f"min_thinking_tokens, {least}, is more than max_thinking_tokens, {most}"
        )
        require(bool(self.wait.strip()), "wait must be a text, such as Wait")
        require(self.max_waits >= 1, "max_waits must be at least 1")
        require(all(self.delimiters), "a delimiter must not be empty; None makes steps of max_step_tokens tokens")
        if self.pattern is not None:
            require(isinstance(self.pattern.pattern, str), "the delimiter's pattern must be one of text, not of bytes")
            require(not self.pattern.search(""), f"the delimiter {self.pattern.pattern!r} matches empty text")
        require(all(self.stops), "a stop text must not be empty")
        texts = (*self.delimiters, *self.stops)
        require(len(texts) <= MOST_TEXTS, f"at most {MOST_TEXTS} delimiters and stop texts, not {len(texts)}")
        longest = max(map(len, texts), default=0)
        require(
            longest <= LONGEST_TEXT,
            f"a delimiter or stop text has at most {LONGEST_TEXT:,} characters, not {longest:,}: its beginning will do",
        )
        for stop in self.stops:
            for delimiter in self.delimiters:
                reason = f"the stop text {stop!r} holds the delimiter {delimiter!r}: a step ends before it is complete"
                require(delimiter not in stop, reason)

    @property
    def delimiters(self) -> tuple[str, ...]:
        """The texts that end a step; empty if a pattern or a number of tokens ends it."""
        if self.delimiter is None or isinstance(self.delimiter, re.Pattern):
            return ()
        return (self.delimiter,) if isinstance(self.delimiter, str) else tuple(self.delimiter)

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """The pattern that ends a step; None if there is none."""
        return self.delimiter if isinstance(self.delimiter, re.Pattern) else None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def bounds_thinking(self) -> bool:
        """Whether thoughts have a minimum or a maximum length."""
        return self.max_thinking_tokens is not None or self.min_thinking_tokens > 0

    def to_dict(self) -> dict[str, Any]:
        """The fields by name; without those of `LATER` that have their default, so that settings of earlier versions
        are the same as before."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in LATER or value != LATER[name]}

    def whole(self) -> Sampling:
        """The sampling of whole answers, each in one step."""
        longest = self.max_tokens or self.max_steps * self.max_step_tokens
        return self.replace(delimiter=None, step_entropy=None, max_steps=1, max_step_tokens=longest)

    def replace(self, **changes: Any) -> Sampling:
        return dataclasses.replace(self, **changes)


THINKING_FIELDS = ("max_thinking_tokens", "min_thinking_tokens", "wait", "max_waits")
LATER: Mapping[str, Any] = MappingProxyType(
    {
        name: getattr(Sampling, name)
        for name in ("step_entropy", "min_step_tokens", "top_logprobs", "hidden_layers", *THINKING_FIELDS)
    }
)
"""The fields that were added to `Sampling` later, with their defaults."""


def _option(help: str, **metadata: str) -> Any:
    return field(default=None, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The settings of `Sampling` as options of the command line, `motes.toml`, prompts and Inspect. None leaves a
    setting unchanged. At most one of `delimiter`, `pattern`, `step_tokens` and `step_entropy` may be given: each
    says where steps end.

    A field's metadata holds its `help` for the command line, and in some fields a `metavar`.
    """

    temperature: float | None = _option(f"Of the language model; 0 is greedy; by default {Sampling.temperature}.")
    top_p: float | None = _option("Nucleus mass, in (0, 1]; by default all.")
    top_k: int | None = _option("Keep the k likeliest tokens; by default all.")
    min_p: float | None = _option("Keep tokens at least this fraction as likely as the likeliest; by default all.")
    max_step_tokens: int | None = _option(f"Tokens of one step at most; by default {Sampling.max_step_tokens:,}.")
    max_tokens: int | None = _option("Tokens of one answer; by default what the model's context holds.")
    max_steps: int | None = _option(f"Steps of one answer; by default {Sampling.max_steps}.")
    delimiter: str | list[str] | None = _option(  # noqa: RUF009 (a field)
        r"Text that ends a step, with \n for a new line; may be repeated; by default \n\n. none: a step is "
        "--max-step-tokens tokens."
    )
    pattern: str | None = _option(
        "Instead of a delimiter: a step ends where a match ends; (?=…) looks ahead.", metavar="REGEX"
    )
    step_tokens: int | None = _option("Instead of a delimiter: a step is so many tokens.")
    step_entropy: float | None = _option(
        "Instead of a delimiter: a step ends before a token that has more entropy, in nats; local models only."
    )
    min_step_tokens: int | None = _option(
        f"With --step-entropy: tokens of a step at least; by default {Sampling.min_step_tokens}."
    )
    stop: str | list[str] | None = _option(  # noqa: RUF009 (a field)
        r"Text that ends the answer, with \n for a new line; may be repeated."
    )

    max_thinking_tokens: int | None = _option("Tokens of thought of one answer; then its thought is ended.")
    min_thinking_tokens: int | None = _option("A thought that ends before so many tokens is continued by --wait.")
    wait: str | None = _option(r"Text that continues a thought, with \n for a new line; by default \nWait.")
    max_waits: int | None = _option(
        f"Times that thoughts of one answer are continued; by default {Sampling.max_waits}."
    )

    def apply(self, sampling: Sampling) -> Sampling:
        """The sampling with these options set.

        Raises:
            ConfigurationError: two options contradict each other, or a value is out of its range.
        """
        names = ("delimiter", "pattern", "step_tokens", "step_entropy")
        ends = [name for name in names if getattr(self, name) is not None]
        if len(ends) > 1:
            raise ConfigurationError(f"{' and '.join(ends)} both say what ends a step: give one of them")
        if self.step_tokens is not None and self.max_step_tokens is not None:
            raise ConfigurationError("step_tokens and max_step_tokens both say how long a step is: give one of them")
        changes: dict[str, Any] = {}
        if ends:
            length = Sampling.max_step_tokens if self.step_tokens is None else self.step_tokens
            changes = {"delimiter": self._step_end(), "max_step_tokens": length, "step_entropy": self.step_entropy}
        numbers = ("temperature", "top_p", "top_k", "min_p", "max_step_tokens", "min_step_tokens", "max_tokens")
        for name in (*numbers, "max_steps", *THINKING_FIELDS):
            if (value := getattr(self, name)) is not None:
                changes[name] = value
        if self.stop:
            changes["stop"] = _texts(self.stop)
        return sampling.replace(**changes)

    def _step_end(self) -> str | tuple[str, ...] | re.Pattern[str] | None:
        if self.pattern is not None:
            try:
                return re.compile(self.pattern)
            except re.error as error:
                raise ConfigurationError(f"{self.pattern!r} is not a regular expression: {error}") from error
        return None if self.delimiter in (None, "none", ["none"]) else _texts(self.delimiter)


def _texts(value: str | list[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)
