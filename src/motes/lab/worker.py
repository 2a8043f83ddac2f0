"""A worker: opens an evaluation's models, carries out runs, and makes of each its record and trace."""

from __future__ import annotations

import math
import time
import traceback
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from motes import api
from motes.errors import ConfigurationError, MotesError, RunDirectoryError
from motes.lab.evaluation import Evaluation, PlannedRun
from motes.lab.flops import Sizes
from motes.lab.grading import Grade, grade_run, groups
from motes.lab.method_spec import method_from_spec
from motes.lab.records import RunRecord
from motes.lab.traces import Trace
from motes.protocols import LanguageModel, RewardModel, Task
from motes.threads import in_thread
from motes.types import Result


class Done(NamedTuple):
    """A run that has ended: its record, its trace as `Trace.to_member` writes it, the traceback of what failed it."""

    record: RunRecord
    trace: bytes | None = None
    failure: str | None = None


class Worker(Protocol):
    """What carries out the runs of an evaluation."""

    @property
    def sizes(self) -> Sizes:
        """Of its models."""
        ...

    @property
    def concurrency(self) -> int:
        """Runs that it takes at once."""
        ...

    async def solve(self, run: PlannedRun) -> Done:
        """Carry out one run. What is raised here ends the evaluation; whatever else goes wrong fails the run."""
        ...


class Elsewhere(Protocol):
    """Where runs can be carried out, if not in this process."""

    def open(self, evaluation: Evaluation, *, concurrency: int, traces: bool) -> AbstractAsyncContextManager[Worker]:
        """What works there, with models opened there; `concurrency` is that of each process."""
        ...


@dataclass(frozen=True)
class Local:
    """The worker that is this process."""

    evaluation: Evaluation
    lm: LanguageModel
    reward: RewardModel | None
    outcome_reward: RewardModel | None
    concurrency: int
    traces: bool

    @classmethod
    def open(
        cls,
        evaluation: Evaluation,
        lm: LanguageModel | None = None,
        reward: RewardModel | None = None,
        outcome_reward: RewardModel | None = None,
        *,
        concurrency: int,
        traces: bool,
    ) -> Local:
        """Open those of the evaluation's models that are not given."""
        lm = api.language_model(evaluation.lm) if lm is None else lm
        if reward is None and evaluation.reward is not None:
            reward = api.reward_model(evaluation.reward)
        if outcome_reward is None and evaluation.outcome_reward is not None:
            outcome_reward = api.reward_model(evaluation.outcome_reward)
        return cls(evaluation, lm, reward, outcome_reward, concurrency, traces)

    @property
    def sizes(self) -> Sizes:
        # Reward tokens of two models are counted together: no one size is right for them.
        return Sizes.of(self.lm, self.reward if self.outcome_reward is None else None)

    async def solve(self, run: PlannedRun) -> Done:
        started = time.perf_counter()
        evaluation, task = self.evaluation, self.evaluation.opened
        result: Result | None = None
        failure: Exception | None = None
        try:
            result = await api.asolve(
                run.problem if evaluation.prompt is None else evaluation.prompt.problem(run.problem),
                lm=self.lm,
                reward=self.reward,
                outcome_reward=self.outcome_reward,
                method=method_from_spec(run.method, run.budget),
                sampling=evaluation.sampling,
                seed=run.run_seed,
                task=task,
            )
        except (ConfigurationError, RunDirectoryError):
            raise  # every run would fail so
        except Exception as error:  # whatever a user's model raises fails this run, not the evaluation
            failure = error
            result = error.result if isinstance(error, MotesError) else None
        seconds = time.perf_counter() - started
        result = result or Result(run.problem, run.method, run.run_seed)
        return Done(
            await recorded(run, task, result, failure, seconds),
            await in_thread(lambda: Trace.of(run.key, result).to_member()) if self.traces else None,
            None if failure is None else "".join(traceback.format_exception(failure)).rstrip(),
        )


async def recorded(
    run: PlannedRun, task: Task, result: Result, failure: Exception | None = None, seconds: float = 0.0
) -> RunRecord:
    """The record of a run, its answers read and graded."""
    problem_id, method, budget, seed = run.key
    answers = await in_thread(lambda: tuple(task.answer(trajectory.text) for trajectory in result.trajectories))
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
        groups=await in_thread(groups, task, list(result.posterior), answers),
        right=right,
        scores=tuple(_finite(score) for score in result.scores.tolist()),
        text=result.text,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
