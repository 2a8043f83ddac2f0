"""A worker opens an evaluation's models, carries out runs, and makes a record and a trace of each run."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from motes import api
from motes.core import Problem, Result
from motes.errors import ConfigurationError, MissingExtraError, RunDirectoryError, UnauthorizedError
from motes.lab.run.calls import Setup
from motes.lab.run.evaluation import Evaluation, PlannedRun
from motes.lab.run.flops import Sizes
from motes.lab.run.grading import grade_run, groups
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.records import RunRecord
from motes.lab.run.traces import Trace
from motes.lab.run.tree import Node
from motes.methods import require
from motes.methods.answers import answer_of
from motes.methods.method import MethodTraits
from motes.methods.requirements import sampling_for
from motes.protocols import LanguageModel, RewardModel, Task, TaskTraits
from motes.threads import in_thread


class FinishedRun(NamedTuple):
    """A run that has ended.

    Attributes:
        trace: its trace as `Trace.to_member` writes it.
        traceback: the traceback, or at least the text, of the error that failed it.
        refusal: the text of that error if it was a `ConfigurationError`: this problem, or any problem, cannot be
            solved with these settings.
    """

    record: RunRecord
    trace: bytes | None = None
    traceback: str | None = None
    refusal: str | None = None


class Worker(Protocol):
    """Carries out the runs of an evaluation."""

    @property
    def sizes(self) -> Sizes:
        """The sizes of its models."""
        ...

    @property
    def concurrency(self) -> int:
        """Number of runs that it carries out at once."""
        ...

    def check(self) -> None:
        """Check, before the first run, that every method can work with the models.

        Raises:
            ConfigurationError: a method cannot.
        """
        ...

    async def setup(self) -> Setup:
        """Its models, packages and machine."""
        ...

    async def solve(self, run: PlannedRun) -> FinishedRun:
        """Carry out one run. Only errors that concern every run are raised, and end the evaluation: a missing key, a
        missing package, a directory that cannot be written. Any other error fails the run."""
        ...


class Backend(Protocol):
    """A place other than this process where runs can be carried out."""

    def open(self, evaluation: Evaluation, *, concurrency: int, traces: bool) -> AbstractAsyncContextManager[Worker]:
        """A worker that opens its models there. `concurrency` is that of each process."""
        ...


@dataclass(frozen=True)
class Local:
    """The worker in this process."""

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
        """Open the evaluation's models, except the given ones."""
        lm = api.language_model(evaluation.lm) if lm is None else lm
        if reward is None and evaluation.reward is not None:
            reward = api.reward_model(evaluation.reward)
        if outcome_reward is None and evaluation.outcome_reward is not None:
            outcome_reward = api.reward_model(evaluation.outcome_reward)
        return cls(evaluation, lm, reward, outcome_reward, concurrency, traces)

    @property
    def sizes(self) -> Sizes:
        # Reward tokens of two models are counted together, so neither model's size is right for them.
        return Sizes.of(self.lm, self.reward if self.outcome_reward is None else None)

    def check(self) -> None:
        for spec, budget in self.evaluation.cells():
            method = method_from_spec(spec, budget)
            try:
                if self.reward is None and not is_own(spec) and MethodTraits(method).needs_reward:
                    raise ConfigurationError("it needs a reward model: name one, or leave the method out")
                reward = self.reward if MethodTraits(method).needs_reward else None
                require(method, self.lm, sampling_for(self.evaluation.sampling, reward, self.outcome_reward))
            except ConfigurationError as error:
                raise ConfigurationError(f"the method {spec} cannot work here: {error}") from error

    async def setup(self) -> Setup:
        return await in_thread(partial(Setup.of, lm=self.lm, reward=self.reward, outcome_reward=self.outcome_reward))

    async def solve(self, run: PlannedRun) -> FinishedRun:
        started = time.perf_counter()
        evaluation = self.evaluation
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
                task=evaluation.opened,
            )
        except (UnauthorizedError, MissingExtraError, RunDirectoryError):
            raise
        except Exception as error:  # an error of a user's model fails this run, not the evaluation
            failure = error
            result = api.partial_result(error)
        seconds = time.perf_counter() - started
        result = result or Result(run.problem, run.method, run.run_seed)
        finish = partial(self._finish, run, result, seconds)
        try:
            return await in_thread(finish, failure)
        except Exception as error:  # a user's task cannot read, compare or grade the answers
            return await in_thread(partial(finish, failure or error, read=False))

    def _finish(
        self, run: PlannedRun, result: Result, seconds: float, failure: Exception | None, *, read: bool = True
    ) -> FinishedRun:
        """Make the record and the trace of a run that has ended. With `read` False its answers are not read."""
        task, trace = self.evaluation.opened, Trace.of(run.key, result)
        record = make_record(run, task, result, failure, seconds, self.concurrency, read=read)
        if read:
            record = replace(record, prefixes=prefixes_of(trace, task, run.problem))
        return FinishedRun(
            record,
            trace.to_member() if self.traces else None,
            None if failure is None else "".join(traceback.format_exception(failure)).rstrip(),
            str(failure) if isinstance(failure, ConfigurationError) else None,
        )


def make_record(
    run: PlannedRun,
    task: Task,
    result: Result,
    failure: Exception | None = None,
    seconds: float = 0.0,
    concurrency: int | None = None,
    *,
    read: bool = True,
) -> RunRecord:
    """Read and grade the answers of a run, and make its record. May take long: call it outside the event loop.

    Args:
        concurrency: largest number of runs that shared the models.
        read: False leaves out the answers and the grade of a failed run.
    """
    record = RunRecord(
        problem_id=run.key[0],
        method=run.method,
        budget=run.budget,
        seed=run.seed,
        outcome="failed",
        reference=run.problem.answer,
        rounds=len(result.records),
        usage=result.usage,
        seconds=round(seconds, 4),
        concurrency=concurrency,
        run_seed=run.run_seed,
        error=None if failure is None else f"{type(failure).__name__}: {failure}",
        text=result.text,
    )
    if not read:
        return record
    answers = tuple(answer_of(trajectory, task) for trajectory in result.trajectories)
    grade, right = grade_run(task, run.problem, result.answer, answers)
    if failure is None:
        record = replace(record, outcome=grade.outcome, error=grade.error)
    level = TaskTraits(task).level
    return replace(
        record,
        answer=result.answer,
        level=None if level is None else level(run.problem),
        confidence=result.confidence,
        oracle=any(right),
        log_evidence=_finite(result.log_evidence),
        posterior=dict(result.posterior),
        answers=answers,
        groups=groups(task, list(result.posterior), answers),
        right=right,
        scores=tuple(_finite(score) for score in result.scores.tolist()),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def prefixes_of(trace: Trace, task: Task, problem: Problem) -> Prefixes:
    """The partial answers of a run, checked step by step if the task can do so, see `motes.protocols.Task`.

    A partial answer is right if all of its steps are; it is unknown if a step is unknown and none is wrong.
    """
    nodes = trace.nodes
    check = TaskTraits(task).check_step
    right: list[bool | None] = []
    if check is not None and any(node.score is not None for node in nodes) and _are_paragraphs(nodes):
        for node in nodes:
            is_right = True if node.parent is None else right[node.parent]
            if is_right is not False:
                mark = check(problem, node.text)
                if mark is None:
                    is_right = None
                elif not mark:
                    is_right = False
            right.append(is_right)
    return Prefixes(
        tuple(node.parent for node in nodes), tuple(node.score for node in nodes), tuple(right), trace.final.nodes
    )


def _are_paragraphs(nodes: Sequence[Node]) -> bool:
    """Whether every step ends at a blank line or at the end of an answer, and contains no other blank line."""
    parents = {node.parent for node in nodes}
    return all(
        "\n\n" not in node.text.strip("\n") and (place not in parents or node.text.endswith("\n\n"))
        for place, node in enumerate(nodes)
    )
