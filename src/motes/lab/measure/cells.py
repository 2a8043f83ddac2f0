"""A cell: what the runs of one method at one budget came to, with how sure that is and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from motes.core import Usage
from motes.lab.measure.comparison import majority_share
from motes.lab.measure.statistics import Interval, share_interval
from motes.lab.run.flops import Sizes
from motes.lab.run.prices import Prices
from motes.lab.run.records import OUTCOMES, Outcome, RunRecord

UNKNOWN = Sizes()
"""Of models whose sizes nobody recorded."""


@dataclass(frozen=True)
class Seconds:
    """How long runs took, from the start of each to its answer.

    Attributes:
        mean, median: of all runs; `high`: the 95th percentile.
        concurrency: runs that shared the models at most: 1, if each had them to itself; None where records do not tell.
    """

    mean: float
    median: float
    high: float
    concurrency: int | None

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Seconds:
        """Of one run or more; of none: NaN."""
        seconds = [record.seconds for record in records]
        told = [record.concurrency for record in records if record.concurrency is not None]
        if not seconds:
            return cls(math.nan, math.nan, math.nan, None)
        median, high = np.quantile(seconds, (0.5, 0.95)).tolist()
        return cls(sum(seconds) / len(seconds), median, high, max(told) if len(told) == len(seconds) else None)


@dataclass(frozen=True)
class Cell:
    """What the runs of one method at one budget (and, where given, one level) came to.

    Attributes:
        problems: with at least one run; `runs`: recorded; `missing`: asked for and not recorded.
        outcomes: number of runs by outcome.
        accuracy: right answers over all recorded runs, failed ones included.
        oracle: runs in which any trajectory is right, over all recorded ones. majority: those in which the most
            frequent answer is, of equally frequent ones the share that is right; NaN where records are too old to tell.
        tokens: (generated, prefill, reward) that a run needs by itself, mean. `cached`: (prefill, reward) that it is
            spared by what it has computed before, mean; `computed`: all that was really computed for it, mean;
            `failed`: all of attempts that failed or were cancelled, mean.
        flops: (language model, reward model) per run, mean; None where a model's size is unknown.
        seconds: of its runs.
        money: per run, mean, at the prices given; None without any.
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

    @property
    def total_tokens(self) -> float:
        return sum(self.tokens)

    @property
    def total_flops(self) -> float | None:
        """Of both models together; None where either is unknown."""
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
        )

    def row(self) -> dict[str, Any]:
        """As a flat row of the CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "level": "all" if self.level is None else self.level,
            "problems": self.problems,
            "runs": self.runs,
            "missing": self.missing,
            **{str(outcome): count for outcome, count in self.outcomes.items()},
            "accuracy": round(self.accuracy.value, 6),
            "accuracy_low": round(self.accuracy.low, 6),
            "accuracy_high": round(self.accuracy.high, 6),
            "oracle": round(self.oracle.value, 6),
            "oracle_low": round(self.oracle.low, 6),
            "oracle_high": round(self.oracle.high, 6),
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
            **({} if self.money is None else {"money": _scientific(self.money)}),
        }


def _scientific(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"
