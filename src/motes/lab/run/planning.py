"""Estimate the runs and the cost of an evaluation before it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from motes.core import Usage
from motes.lab.run.damage import Damages, count_or_refuse
from motes.lab.run.evaluation import RECORDS, Evaluation, Shard
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.records import RunRecord, read_records
from motes.methods.method import MethodTraits

ANSWER_TOKENS = 400
"""Assumed tokens of an answer if there are no records to estimate from: a solution of a MATH problem in words."""
CHARACTERS_PER_TOKEN = 4
"""Assumed characters per token of the question, for the same purpose."""

Source = Literal["recorded", "scaled", "assumed"]


@dataclass(frozen=True)
class Estimate:
    """The work that is left for one method at one budget.

    Attributes:
        runs: number of planned runs.
        done: number of runs that are recorded and have not failed.
        usage: the tokens of all runs left together.
        seconds: the sum over all runs left, each from its start to its end while others share the models; None if
            unknown. Divided by the number of runs in flight it is the time to wait.
        source: "recorded": estimated from the mean of this cell's runs so far; "scaled": from the tokens of a
            trajectory in other cells' runs so far; "assumed": from answers of an assumed length.
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
    """Estimate the work left in `directory`, which need not exist, for each method at each budget.

    Nothing is opened or written. Without records, the estimate assumes that each model computes the prompt of a run
    once, and that each trajectory has `answer_tokens` tokens, is generated once and, if the method scores, read once.

    Args:
        damages: counts records that cannot be read; their runs count as not done. None: they are errors.

    Raises:
        RunDirectoryError: the directory belongs to another evaluation, or cannot be read.
    """
    evaluation.check(directory)
    damaged = count_or_refuse(damages, "records")
    records = [record for record in read_records(directory / RECORDS, damaged) if record.outcome != "failed"]
    plan = evaluation.plan(shard)
    finished = {record.key for record in records}
    by_cell: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        by_cell.setdefault((record.method, record.budget), []).append(record)
    estimates = []
    for method, budget in evaluation.cells():
        runs = [run for run in plan if (run.method, run.budget) == (method, budget)]
        left = [run for run in runs if run.key not in finished]
        seconds: float | None = None
        source: Source = "recorded"
        if done := by_cell.get((method, budget)):
            usage = _scale(sum((record.usage for record in done), Usage()), len(left) / len(done))
            seconds = sum(record.seconds for record in done) * len(left) / len(done)
        else:
            source = "scaled" if records else "assumed"
            tokens = _tokens_per_trajectory(records) if records else answer_tokens
            scored = evaluation.reward is not None and MethodTraits(method_from_spec(method, budget)).needs_reward
            prompts = sum(len(run.problem.question) // CHARACTERS_PER_TOKEN for run in left)
            answers = round(len(left) * budget * tokens)
            usage = Usage(
                generated_tokens=answers, prefill_tokens=prompts, reward_tokens=(prompts + answers) if scored else 0
            )
        estimates.append(Estimate(method, budget, len(runs), len(runs) - len(left), usage, seconds, source))
    return estimates


def _tokens_per_trajectory(records: Sequence[RunRecord]) -> float:
    """Mean number of tokens generated per trajectory; less than its length if trajectories share their beginnings."""
    return sum(record.usage.generated_tokens for record in records) / sum(record.budget for record in records)


def _scale(usage: Usage, factor: float) -> Usage:
    return Usage(**{name: round(factor * count) for name, count in dataclasses.asdict(usage).items()})
