"""Carry out an evaluation: every run that has no record yet, many at once, each recorded as it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from motes import api
from motes.errors import ConfigurationError, MotesError, RunDirectoryError
from motes.lab.evaluation import RECORDS, Evaluation, PlannedRun
from motes.lab.flops import Sizes
from motes.lab.grading import Grade, grade_run, groups
from motes.lab.method_spec import method_from_spec
from motes.lab.records import Outcome, RecordStore, RunRecord
from motes.methods.population import gather
from motes.protocols import LanguageModel, RewardModel, Task
from motes.types import Result, Usage


@dataclass
class Progress:
    """How far an evaluation is. Failed runs are done, and count as not right, here as in reports.

    Attributes:
        total: runs asked for; `resumed`: of these, recorded by earlier calls; `done`: recorded by now.
        outcomes: number of records by outcome, `resumed` ones included.
        cells: for each (method, budget): runs done, and right ones.
        usage: spent by this call.
    """

    total: int
    resumed: int = 0
    done: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    cells: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    @property
    def accuracy(self) -> float:
        """Share of right answers among the runs done; NaN before there is one."""
        return self.outcomes.get("correct", 0) / self.done if self.done else float("nan")

    @property
    def failed(self) -> int:
        return self.outcomes.get("failed", 0)

    def _count(self, record: RunRecord) -> None:
        self.done += 1
        self.outcomes[record.outcome] = self.outcomes.get(record.outcome, 0) + 1
        runs, right = self.cells.get((record.method, record.budget), (0, 0))
        self.cells[record.method, record.budget] = runs + 1, right + (record.outcome == "correct")


async def evaluate(
    evaluation: Evaluation,
    directory: Path,
    *,
    lm: LanguageModel | None = None,
    reward: RewardModel | None = None,
    outcome_reward: RewardModel | None = None,
    concurrency: int = 64,
    observe: Callable[[Progress], None] | None = None,
) -> Progress:
    """Do every run of an evaluation that `directory` does not hold yet, or holds as failed.

    Cancelling it, or killing the process, leaves a directory that the same call resumes: nothing that was recorded is
    lost or done again.

    Args:
        directory: made if missing.
        lm, reward, outcome_reward: the models; by default opened by the names the evaluation gives.
        concurrency: runs in flight. They share the models, so that batches stay full.
        observe: called before the first run and after each; must not block.

    Returns:
        the progress at the end. Runs that failed are counted in `failed`.

    Raises:
        ConfigurationError: some run cannot work with these settings.
        RunDirectoryError: the directory belongs to another evaluation or process, or cannot be written.
    """
    if concurrency < 1:
        raise ConfigurationError(f"concurrency must be at least 1, not {concurrency}")
    evaluation.check(directory)
    lm = api.language_model(evaluation.lm) if lm is None else lm
    if reward is None and evaluation.reward is not None:
        reward = api.reward_model(evaluation.reward)
    if outcome_reward is None and evaluation.outcome_reward is not None:
        outcome_reward = api.reward_model(evaluation.outcome_reward)
    with RecordStore(directory / RECORDS) as store:
        evaluation.claim(directory)
        # Reward tokens of two models are counted together: no one size is right for them.
        Sizes.of(lm, reward if outcome_reward is None else None).record(directory)
        plan = evaluation.plan()
        progress = Progress(total=len(plan))
        wanted = {run.key for run in plan}
        finished = set()
        for record in store.records:
            if record.key in wanted and record.outcome != "failed":
                finished.add(record.key)
                progress._count(record)
        progress.resumed = progress.done
        if observe is not None:
            observe(progress)
        pending = iter([run for run in plan if run.key not in finished])

        async def work() -> None:
            for run in pending:  # shared by all workers
                record = await _solve(run, evaluation, lm, reward, outcome_reward)
                store.append(record)
                progress._count(record)
                progress.usage += record.usage
                if observe is not None:
                    observe(progress)

        await gather(work() for _ in range(min(concurrency, len(plan) - progress.done)))
    return progress


async def _solve(
    run: PlannedRun,
    evaluation: Evaluation,
    lm: LanguageModel,
    reward: RewardModel | None,
    outcome_reward: RewardModel | None,
) -> RunRecord:
    started = time.perf_counter()
    result: Result | None = None
    failure: Exception | None = None
    try:
        result = await api.asolve(
            run.problem if evaluation.prompt is None else evaluation.prompt.problem(run.problem),
            lm=lm,
            reward=reward,
            outcome_reward=outcome_reward,
            method=method_from_spec(run.method, run.budget),
            sampling=evaluation.sampling,
            seed=run.run_seed,
            task=evaluation.opened,
        )
    except (ConfigurationError, RunDirectoryError):
        raise  # every run would fail so
    except Exception as error:  # whatever a user's model raises fails this run, not the evaluation
        failure = error
        result = error.result if isinstance(error, MotesError) else None
    seconds = time.perf_counter() - started
    return await _record(run, evaluation.opened, result, failure, seconds)


async def _record(
    run: PlannedRun, task: Task, result: Result | None, failure: Exception | None, seconds: float
) -> RunRecord:
    problem_id, method, budget, seed = run.key
    result = result or Result(run.problem, method, run.run_seed)
    answers = tuple(task.answer(trajectory.text) for trajectory in result.trajectories)
    grade, right = await grade_run(task, run.problem, result.answer, answers)
    if failure is not None:
        grade = Grade("failed", f"{type(failure).__name__}: {failure}")
    level = getattr(task, "level", None)
    return RunRecord(
        problem_id=problem_id,
        method=method,
        budget=budget,
        seed=seed,
        outcome=grade.outcome,
        answer=result.answer,
        reference=run.problem.answer,
        level=None if level is None else level(run.problem),
        confidence=result.confidence,
        oracle=any(right),
        rounds=len(result.records),
        log_evidence=_finite(result.log_evidence),
        usage=result.usage,
        seconds=round(seconds, 4),
        run_seed=run.run_seed,
        error=grade.error,
        posterior=dict(result.posterior),
        answers=answers,
        groups=groups(task, list(result.posterior), answers),
        right=right,
        scores=tuple(_finite(score) for score in result.scores.tolist()),
        text=result.text,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
