"""What models compute, counted in tokens; scores, which carry their cost."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What was spent, pruned particles included. Additive: `a + b`.

    What a run *needs by itself* is the same whenever it is run with the same seed: it depends neither on what else is
    in flight nor on what was cached before it began. What is shared within the run, as a prompt is by its particles,
    counts once. What was *really computed* this time may be less, where another run had the same text, or more, where a
    cache was full. What failed or was cancelled is a third, and in none of the other counts.

    Attributes:
        generated_tokens: sampled from the language model.
        prefill_tokens: prompt and prefix tokens that the run needs the language model to compute.
        prefill_tokens_cached: prompt and prefix tokens that it is spared, since it has computed them before.
        reward_tokens: tokens that the run needs the reward model to compute.
        reward_tokens_cached: tokens that it is spared.
        computed_prefill_tokens, computed_reward_tokens: those that were really computed this time.
        lm_calls, reward_calls: steps asked for, and trajectories scored.
        failed_generated_tokens, failed_prefill_tokens, failed_reward_tokens: of attempts that broke off, gave nothing
            that can be used or were cancelled at a deadline, as far as they are known.

    A model knows of no run: in the usage of a `Step`, `Scores` or `Failure`, `prefill_tokens` and `reward_tokens` are
    what it computed, and the cached ones what its cache spared it, whoever filled that.
    """

    generated_tokens: int = 0
    prefill_tokens: int = 0
    prefill_tokens_cached: int = 0
    reward_tokens: int = 0
    reward_tokens_cached: int = 0
    lm_calls: int = 0
    reward_calls: int = 0
    failed_generated_tokens: int = 0
    failed_prefill_tokens: int = 0
    failed_reward_tokens: int = 0
    computed_prefill_tokens: int = 0
    computed_reward_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return self._combined(operator.add, other)

    def __sub__(self, other: Usage) -> Usage:
        return self._combined(operator.sub, other)

    def _combined(self, how: Callable[[int, int], int], other: Usage) -> Usage:
        """Made without its constructor, as a run adds up very many."""
        usage = object.__new__(Usage)
        usage.__dict__.update(
            zip(self.__dict__, map(how, self.__dict__.values(), other.__dict__.values()), strict=True)
        )
        return usage

    @property
    def total_tokens(self) -> int:
        """Every token that the run needs computed, by whichever model."""
        return self.generated_tokens + self.prefill_tokens + self.reward_tokens

    @property
    def computed_tokens(self) -> int:
        """Every token that was really computed, but for those of failed attempts."""
        return self.generated_tokens + self.computed_prefill_tokens + self.computed_reward_tokens

    @property
    def failed_tokens(self) -> int:
        """Every token of attempts that failed or were cancelled."""
        return self.failed_generated_tokens + self.failed_prefill_tokens + self.failed_reward_tokens

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


NEUTRAL = 0.5
"""The score of what an outcome reward model has no say about, an answer that is not finished: odds of one, so that
weights stay as they are."""


@dataclass(frozen=True)
class Reads:
    """The tokens that a reward model has to read to score a trajectory of T steps, whatever it has cached.

    Attributes:
        prompt: those of the problem, as far as all trajectories share them; they are in `after[0]`.
        after: (T + 1,) after[t]: those to be read where the scores of the first t steps are known; after[T] = 0.
    """

    prompt: int
    after: tuple[int, ...]


class Scores(tuple[float, ...]):
    """One trajectory's scores, one in [0, 1] per step, and what computing them cost.

    Attributes:
        usage: what the model computed, and what its cache spared it.
        reads: what scoring it takes, where the model knows; otherwise a run takes it that nothing is shared.
    """

    usage: Usage
    reads: Reads | None

    def __new__(cls, values: Iterable[float], usage: Usage, reads: Reads | None = None) -> Scores:
        scores = super().__new__(cls, values)
        scores.usage, scores.reads = usage, reads
        return scores

    def __getnewargs__(self) -> tuple[tuple[float, ...], Usage, Reads | None]:
        """What copies are made from."""
        return tuple(self), self.usage, self.reads
