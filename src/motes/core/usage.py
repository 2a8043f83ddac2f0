"""The cost of a run, counted in tokens; scores, which carry their cost."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """The tokens that were spent, pruned particles included. Additive: `a + b`.

    There are three kinds of counts. The tokens that a run *needs by itself* are the same for the same seed: they depend
    neither on other runs in flight nor on caches that earlier runs filled; a text that the particles of the run share,
    such as the prompt, counts once. The tokens *really computed* this time may be fewer, if another run had the same
    text, or more, if a cache was full. Tokens of attempts that *failed* or were cancelled are in no other count.

    Attributes:
        generated_tokens: sampled from the language model.
        prefill_tokens: prompt and prefix tokens that the run needs the language model to compute.
        prefill_tokens_cached: prompt and prefix tokens that the run has computed before and takes from a cache.
        reward_tokens: tokens that the run needs the reward model to compute.
        reward_tokens_cached: tokens of the reward model that the run takes from a cache.
        computed_prefill_tokens, computed_reward_tokens: tokens that were really computed this time.
        lm_calls, reward_calls: number of steps requested, and of trajectories scored.
        thought_tokens: of the generated tokens, those of thought, see `motes.core.thinking`.
        failed_generated_tokens, failed_prefill_tokens, failed_reward_tokens: tokens, as far as known, of attempts that
            broke off, returned nothing usable or were cancelled at a deadline.

    A model does not know which run it works for. In the usage of a `Step`, `Scores` or `Failure`, `prefill_tokens` and
    `reward_tokens` count the tokens that the model computed, and the cached counts those that it found in its cache,
    whichever run had put them there.
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
    thought_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return self._combine(operator.add, other)

    def __sub__(self, other: Usage) -> Usage:
        return self._combine(operator.sub, other)

    def _combine(self, operation: Callable[[int, int], int], other: Usage) -> Usage:
        """Apply an operation count by count. The constructor is not called, because a run adds very many usages."""
        counts = map(operation, self.__dict__.values(), other.__dict__.values())
        usage = object.__new__(Usage)
        usage.__dict__.update(zip(self.__dict__, counts, strict=True))
        return usage

    @property
    def total_tokens(self) -> int:
        """All tokens that the run needs both models to compute."""
        return self.generated_tokens + self.prefill_tokens + self.reward_tokens

    @property
    def computed_tokens(self) -> int:
        """All tokens that were really computed, without those of failed attempts."""
        return self.generated_tokens + self.computed_prefill_tokens + self.computed_reward_tokens

    @property
    def failed_tokens(self) -> int:
        """All tokens of attempts that failed or were cancelled."""
        return self.failed_generated_tokens + self.failed_prefill_tokens + self.failed_reward_tokens

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


NEUTRAL = 0.5
"""The score that an outcome reward model gives to an unfinished answer, which it cannot judge: odds of one, so that
weights do not change."""


@dataclass(frozen=True)
class Reads:
    """The tokens that a reward model has to read to score a trajectory of T steps, whatever it has cached.

    Attributes:
        prompt: number of tokens of the problem, as far as all trajectories share them; `after[0]` includes them.
        after: (T + 1,) after[t] is the number of tokens to read if the first t steps have scores already; after[T] = 0.
    """

    prompt: int
    after: tuple[int, ...]


class Scores(tuple[float, ...]):
    """One trajectory's scores, one in [0, 1] per step, and what computing them cost.

    Attributes:
        usage: the tokens that the model computed, and those that it found in its cache.
        reads: the tokens that scoring needs; None if the model does not know, and a run then assumes that trajectories
            share nothing.
    """

    usage: Usage
    reads: Reads | None

    def __new__(cls, values: Iterable[float], usage: Usage, reads: Reads | None = None) -> Scores:
        scores = super().__new__(cls, values)
        scores.usage, scores.reads = usage, reads
        return scores

    def __getnewargs__(self) -> tuple[tuple[float, ...], Usage, Reads | None]:
        """The arguments from which copies are made."""
        return tuple(self), self.usage, self.reads
