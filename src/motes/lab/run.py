"""Carry out an evaluation: every run that has no record yet, many at once, each recorded as it ends."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from motes import __version__, api
from motes.errors import ConfigurationError, MotesError, RunDirectoryError
from motes.lab.evaluation import LOG, RECORDS, TRACES, Evaluation, PlannedRun, Shard
from motes.lab.flops import Sizes
from motes.lab.grading import Grade, grade_run, groups
from motes.lab.method_spec import method_from_spec
from motes.lab.records import Outcome, RecordStore, RunRecord
from motes.lab.traces import Trace, TraceStore
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

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in sorted(self.outcomes.items()))
        return f"{self.done} of {self.total} runs ({counts}), {self.usage.total_tokens:,} tokens computed by this call"

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
    shard: Shard | None = None,
    traces: bool = True,
    observe: Callable[[Progress], None] | None = None,
) -> Progress:
    """Do every run of an evaluation that `directory` does not hold yet, or holds as failed.

    The directory then holds the configuration, a record and, if wanted, a trace of each run, and a log.

    Cancelling it, or killing the process, leaves a directory that the same call resumes: nothing that was recorded is
    lost or done again.

    Args:
        directory: made if missing.
        lm, reward, outcome_reward: the models; by default opened by the names the evaluation gives.
        concurrency: runs in flight. They share the models, so that batches stay full.
        shard: only this part of the problems, in a directory of its own; `motes.lab.merge` puts the parts together.
        traces: keep what happened inside each run as well, see `motes.lab.traces`.
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
    with RecordStore(directory / RECORDS) as store, contextlib.ExitStack() as stack:
        evaluation.claim(directory)
        # Reward tokens of two models are counted together: no one size is right for them.
        Sizes.of(lm, reward if outcome_reward is None else None).record(directory)
        inside = stack.enter_context(TraceStore(directory / TRACES)) if traces else None
        log = stack.enter_context(run_log(directory))
        plan = evaluation.plan(shard)
        progress = Progress(total=len(plan))
        wanted = {run.key for run in plan}
        finished = set()
        for record in store.records:
            if record.key in wanted and record.outcome != "failed":
                finished.add(record.key)
                progress._count(record)
        progress.resumed = progress.done
        part = "" if shard is None else f", shard {shard}"
        log.info("motes %s: %d runs%s, %d of them done before", __version__, len(plan), part, progress.resumed)
        if observe is not None:
            observe(progress)
        pending = iter([run for run in plan if run.key not in finished])

        async def work() -> None:
            for run in pending:  # shared by all workers
                record, result, failure = await _solve(run, evaluation, lm, reward, outcome_reward)
                if inside is not None:
                    inside.append(Trace.of(run.key, result))
                store.append(record)
                if failure is not None:
                    log.error("%s %s %d, seed %d, failed", *run.key, exc_info=failure)
                elif record.error is not None:
                    log.warning("%s %s %d, seed %d: %s", *run.key, record.error)
                progress._count(record)
                progress.usage += record.usage
                if observe is not None:
                    observe(progress)

        try:
            await gather(work() for _ in range(min(concurrency, len(plan) - progress.done)))
        except BaseException as error:
            log.error("stopped after %s: %s", progress, repr(error))
            raise
        log.info("done: %s", progress)
    return progress


@contextlib.contextmanager
def run_log(directory: Path) -> Iterator[logging.Logger]:
    """A logger that writes to the log of an evaluation's directory, as do warnings of all of motes meanwhile.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    try:
        handler = logging.FileHandler(directory / LOG, encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(f"{directory / LOG} cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is the records' to report
    log = logging.Logger(__name__)
    log.addHandler(handler)
    logging.getLogger("motes").addHandler(handler)
    try:
        yield log
    finally:
        logging.getLogger("motes").removeHandler(handler)
        handler.close()


async def _solve(
    run: PlannedRun,
    evaluation: Evaluation,
    lm: LanguageModel,
    reward: RewardModel | None,
    outcome_reward: RewardModel | None,
) -> tuple[RunRecord, Result, Exception | None]:
    """Its record, all that is known of it, and why it failed."""
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
    result = result or Result(run.problem, run.method, run.run_seed)
    return await _record(run, evaluation.opened, result, failure, seconds), result, failure


async def _record(run: PlannedRun, task: Task, result: Result, failure: Exception | None, seconds: float) -> RunRecord:
    problem_id, method, budget, seed = run.key
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
