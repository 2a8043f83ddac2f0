"""What an evaluation would do, and about what it would cost, before anything is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from motes.core import Usage
from motes.lab.run.damage import Damages, told_to
from motes.lab.run.evaluation import RECORDS, Evaluation, Shard
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.records import RunRecord, read_records
from motes.methods.run import MethodTraits

ANSWER_TOKENS = 400
"""Tokens of an answer, where there are no records to estimate from: a solution of a MATH problem in words."""
CHARACTERS_PER_TOKEN = 4
"""Of the question, for the same purpose."""

Source = Literal["recorded", "scaled", "assumed"]


@dataclass(frozen=True)
class Estimate:
    """What is left to do of one method at one budget.

    Attributes:
        runs: asked for; `done`: recorded already, and not as failed.
        usage: of all runs left together.
        seconds: of all runs left, each from its start to its end while others share the models; None where nothing
            is known. Over the number of runs in flight this is the time to wait.
        source: where the estimate is from. "recorded": the mean of this cell's runs so far; "scaled": tokens of a
            trajectory as in the other cells' runs so far; "assumed": answers of an assumed length.
    """

    method: str
    budget: int
    runs: int
    done: int
    usage: Usage
    seconds: float | None
    source: Source

    @property
    def left(self) -> int:
        return self.runs - self.done


def estimate(
    evaluation: Evaluation,
    directory: Path,
    *,
    shard: Shard | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    damages: Damages | None = None,
) -> list[Estimate]:
    """For each method at each budget, what is left to do in `directory`, which need not exist.

    Nothing is opened or written. Without records, the prompt of a run is taken to be computed once, by each model, and
    each trajectory to be `answer_tokens` long, generated once and, by methods that score, read once.

    Args:
        damages: counts records that cannot be read, whose runs are not done; None: they are errors.

    Raises:
        RunDirectoryError: the directory belongs to another evaluation, or cannot be read.
    """
    evaluation.check(directory)
    damaged = told_to(damages, "records")
    records = [record for record in read_records(directory / RECORDS, damaged) if record.outcome != "failed"]
    plan = evaluation.plan(shard)
    finished = {record.key for record in records}
    done: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        done.setdefault((record.method, record.budget), []).append(record)
    estimates = []
    for method, budget in evaluation.cells():
        runs = [run for run in plan if (run.method, run.budget) == (method, budget)]
        left = [run for run in runs if run.key not in finished]
        seconds: float | None = None
        source: Source = "recorded"
        if own := done.get((method, budget)):
            usage = _times(sum((record.usage for record in own), Usage()), len(left) / len(own))
            seconds = sum(record.seconds for record in own) * len(left) / len(own)
        else:
            source = "scaled" if records else "assumed"
            tokens = _tokens_per_trajectory(records) if records else answer_tokens
            scored = evaluation.reward is not None and MethodTraits.of(method_from_spec(method, budget)).needs_reward
            prompts = sum(len(run.problem.question) // CHARACTERS_PER_TOKEN for run in left)
            answers = round(len(left) * budget * tokens)
            usage = Usage(
                generated_tokens=answers, prefill_tokens=prompts, reward_tokens=(prompts + answers) if scored else 0
            )
        estimates.append(Estimate(method, budget, len(runs), len(runs) - len(left), usage, seconds, source))
    return estimates


def _tokens_per_trajectory(records: Sequence[RunRecord]) -> float:
    """Generated for one trajectory, mean; less than its length where trajectories share their beginnings."""
    return sum(record.usage.generated_tokens for record in records) / sum(record.budget for record in records)


def _times(usage: Usage, factor: float) -> Usage:
    return Usage(**{name: round(factor * count) for name, count in dataclasses.asdict(usage).items()})
