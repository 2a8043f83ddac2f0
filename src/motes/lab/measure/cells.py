"""A cell: the results of all runs of one method at one budget, with their confidence intervals and costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from motes.core import Usage
from motes.lab.measure.comparison import ends, majority_share
from motes.lab.measure.statistics import Interval, share_interval
from motes.lab.run.flops import Sizes
from motes.lab.run.prices import Prices
from motes.lab.run.records import OUTCOMES, Outcome, RunRecord

UNKNOWN = Sizes()
"""For models whose sizes were not recorded."""


@dataclass(frozen=True)
class Seconds:
    """How long runs took, from the start of each to its answer.

    Attributes:
        mean: of all runs.
        median: of all runs.
        high: the 95th percentile.
        concurrency: the largest number of runs that shared the models, 1 if each run had them alone; None if unknown.
    """

    mean: float
    median: float
    high: float
    concurrency: int | None

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Seconds:
        """The times of these runs; NaN if there are none."""
        seconds = [record.seconds for record in records]
        concurrencies = [record.concurrency for record in records if record.concurrency is not None]
        if not seconds:
            return cls(math.nan, math.nan, math.nan, None)
        median, high = np.quantile(seconds, (0.5, 0.95)).tolist()
        concurrency = max(concurrencies) if len(concurrencies) == len(seconds) else None
        return cls(sum(seconds) / len(seconds), median, high, concurrency)


@dataclass(frozen=True)
class Cell:
    """The results of the runs of one method at one budget (and at one level, if there is one).

    Attributes:
        problems: number of problems with at least one run.
        runs: number of recorded runs.
        missing: number of runs that are part of the evaluation but not recorded.
        outcomes: number of runs by outcome.
        accuracy: the share of recorded runs with a right answer; failed runs count.
        oracle: the share of recorded runs in which any trajectory is right.
        majority: the share in which the most frequent answer is right; a run with several most frequent answers counts
            with the share of them that is right. NaN if records are too old to tell.
        tokens: (generated, prefill, reward) that a run needs by itself; mean, like all following counts.
        cached: (prefill, reward) that a run did not have to compute because it had computed them before.
        computed: all tokens that were really computed for a run.
        failed: all tokens of attempts that failed or were cancelled.
        flops: (language model, reward model) for each run; None if the size of the model is unknown.
        seconds: how long runs took.
        money: for each run, at the given prices; None without prices.
        thought: of the generated tokens, those of thought.
    """

    method: str
    budget: int
    level: int | None
    problems: int
    runs: int
    missing: int
    outcomes: dict[Outcome, int]
    accuracy: Interval
    oracle: Interval
    majority: Interval
    tokens: tuple[float, float, float]
    cached: tuple[float, float]
    computed: float
    failed: float
    flops: tuple[float | None, float | None]
    seconds: Seconds
    money: float | None = None
    thought: float = 0.0

    @property
    def total_tokens(self) -> float:
        return sum(self.tokens)

    @property
    def total_flops(self) -> float | None:
        """FLOPs of both models together; None if either number is unknown."""
        lm, reward = self.flops
        return None if lm is None or reward is None else lm + reward

    @classmethod
    def of(
        cls,
        method: str,
        budget: int,
        level: int | None,
        records: Sequence[RunRecord],
        expected: int,
        sizes: Sizes = UNKNOWN,
        prices: Prices | None = None,
    ) -> Cell:
        shares = [(record.problem_id, majority_share(record)) for record in records]
        majority = [(problem, share) for problem, share in shares if share is not None]
        usage = sum((record.usage for record in records), Usage())
        n = max(1, len(records))
        lm, reward = sizes.flops(usage)
        return cls(
            method=method,
            budget=budget,
            level=level,
            problems=len({record.problem_id for record in records}),
            runs=len(records),
            missing=max(0, expected - len(records)),
            outcomes={outcome: sum(record.outcome == outcome for record in records) for outcome in OUTCOMES},
            accuracy=share_interval((record.problem_id, record.outcome == "correct") for record in records),
            oracle=share_interval((record.problem_id, record.oracle) for record in records),
            majority=share_interval(majority if len(majority) == len(records) else ()),
            tokens=(usage.generated_tokens / n, usage.prefill_tokens / n, usage.reward_tokens / n),
            cached=(usage.prefill_tokens_cached / n, usage.reward_tokens_cached / n),
            computed=usage.computed_tokens / n,
            failed=usage.failed_tokens / n,
            flops=(None if lm is None else lm / n, None if reward is None else reward / n),
            seconds=Seconds.of(records),
            money=None if prices is None else prices.of(usage) / n,
            thought=usage.thought_tokens / n,
        )

    def row(self) -> dict[str, Any]:
        """A flat row of the CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "level": "all" if self.level is None else self.level,
            "problems": self.problems,
            "runs": self.runs,
            "missing": self.missing,
            **{str(outcome): count for outcome, count in self.outcomes.items()},
            **ends(self.accuracy, "accuracy"),
            **ends(self.oracle, "oracle"),
            "majority": round(self.majority.value, 6),
            "generated_tokens": round(self.tokens[0], 2),
            "prefill_tokens": round(self.tokens[1], 2),
            "reward_tokens": round(self.tokens[2], 2),
            "total_tokens": round(self.total_tokens, 2),
            "prefill_tokens_cached": round(self.cached[0], 2),
            "reward_tokens_cached": round(self.cached[1], 2),
            "computed_tokens": round(self.computed, 2),
            "failed_tokens": round(self.failed, 2),
            "lm_flops": _scientific(self.flops[0]),
            "reward_flops": _scientific(self.flops[1]),
            "total_flops": _scientific(self.total_flops),
            "seconds": round(self.seconds.mean, 4),
            "seconds_median": round(self.seconds.median, 4),
            "seconds_95": round(self.seconds.high, 4),
            "runs_at_once": self.seconds.concurrency,
            **({"thought_tokens": round(self.thought, 2)} if self.thought else {}),
            **({} if self.money is None else {"money": _scientific(self.money)}),
        }


def _scientific(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"
