"""A worker: opens an evaluation's models, carries out runs, and makes of each its record and trace."""

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
from motes.lab.run.evaluation import Evaluation, PlannedRun
from motes.lab.run.flops import Sizes
from motes.lab.run.grading import Grade, grade_run, groups
from motes.lab.run.method_spec import is_own, method_from_spec
from motes.lab.run.prefixes import Prefixes
from motes.lab.run.provenance import Made
from motes.lab.run.records import RunRecord
from motes.lab.run.traces import Node, Trace
from motes.methods import require
from motes.methods.answers import answer_of
from motes.methods.run import MethodTraits
from motes.protocols import LanguageModel, RewardModel, Task, TaskTraits
from motes.threads import in_thread


class Done(NamedTuple):
    """A run that has ended: its record, and its trace as `Trace.to_member` writes it.

    Attributes:
        failure: the traceback of what failed it.
        refused: the text of the `ConfigurationError` that failed it, if it was one: its problem cannot be solved so, or
            none can.
    """

    record: RunRecord
    trace: bytes | None = None
    failure: str | None = None
    refused: str | None = None


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

    def check(self) -> None:
        """Ask every method whether it can work with the models, before the first run.

        Raises:
            ConfigurationError: one cannot.
        """
        ...

    async def made(self) -> Made:
        """What it works with: its models, packages and machine."""
        ...

    async def solve(self, run: PlannedRun) -> Done:
        """Carry out one run. What is raised here is true of every run and ends the evaluation: a missing key, a
        missing package, a directory that cannot be written. Whatever else goes wrong fails the run."""
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

    def check(self) -> None:
        for spec, budget in self.evaluation.cells():
            method = method_from_spec(spec, budget)
            try:
                if self.reward is None and not is_own(spec) and MethodTraits.of(method).needs_reward:
                    raise ConfigurationError("it needs a reward model: name one, or leave the method out")
                require(method, self.lm, self.evaluation.sampling)
            except ConfigurationError as error:
                raise ConfigurationError(f"the method {spec} cannot work here: {error}") from error

    async def made(self) -> Made:
        return await in_thread(partial(Made.of, lm=self.lm, reward=self.reward, outcome_reward=self.outcome_reward))

    async def solve(self, run: PlannedRun) -> Done:
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
        except Exception as error:  # whatever a user's model raises fails this run, not the evaluation
            failure = error
            result = api.computed(error)
        seconds = time.perf_counter() - started
        result = result or Result(run.problem, run.method, run.run_seed)
        kept = partial(self._kept, run, result, seconds)
        try:
            return await in_thread(kept, failure)
        except Exception as error:  # a user's task cannot read, compare or grade what was answered
            return await in_thread(partial(kept, failure or error, read=False))

    def _kept(
        self, run: PlannedRun, result: Result, seconds: float, failure: Exception | None, *, read: bool = True
    ) -> Done:
        """What to keep of a run that has ended; unless told to `read` them, nothing of what its answers say."""
        task, trace = self.evaluation.opened, Trace.of(run.key, result)
        if read:
            record = recorded(run, task, result, failure, seconds, self.concurrency)
            record = replace(record, prefixes=prefixes_of(trace, task, run.problem))
        else:
            assert failure is not None
            record = _unread(run, result, failure, seconds, self.concurrency)
        return Done(
            record,
            trace.to_member() if self.traces else None,
            None if failure is None else "".join(traceback.format_exception(failure)).rstrip(),
            str(failure) if isinstance(failure, ConfigurationError) else None,
        )


def recorded(
    run: PlannedRun,
    task: Task,
    result: Result,
    failure: Exception | None = None,
    seconds: float = 0.0,
    concurrency: int | None = None,
) -> RunRecord:
    """The record of a run, its answers read and graded, which may take long: call it beside the event loop.

    Args:
        concurrency: runs that shared the models at most.
    """
    problem_id, method, budget, seed = run.key
    answers = tuple(answer_of(trajectory, task) for trajectory in result.trajectories)
    grade, right = grade_run(task, run.problem, result.answer, answers)
    if failure is not None:
        grade = Grade("failed", _words(failure))
    level = TaskTraits.of(task).level
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
        concurrency=concurrency,
        run_seed=run.run_seed,
        error=grade.error,
        posterior=dict(result.posterior),
        answers=answers,
        groups=groups(task, list(result.posterior), answers),
        right=right,
        scores=tuple(_finite(score) for score in result.scores.tolist()),
        text=result.text,
    )


def _unread(run: PlannedRun, result: Result, failure: Exception, seconds: float, concurrency: int | None) -> RunRecord:
    """The record of a run that failed, of whose answers nothing can be said."""
    problem_id, method, budget, seed = run.key
    return RunRecord(
        problem_id=problem_id,
        method=method,
        budget=budget,
        seed=seed,
        outcome="failed",
        reference=run.problem.answer,
        rounds=len(result.records),
        usage=result.usage,
        seconds=round(seconds, 4),
        concurrency=concurrency,
        run_seed=run.run_seed,
        error=_words(failure),
        text=result.text,
    )


def _words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def prefixes_of(trace: Trace, task: Task, problem: Problem) -> Prefixes:
    """The partial answers of a run, checked step by step where the task can do so, see `motes.protocols.Task`.

    A partial answer is right where all of its steps are; unknown where one is, and none is wrong.
    """
    nodes = trace.nodes
    check = TaskTraits.of(task).check_step
    right: list[bool | None] = []
    if check is not None and any(node.score is not None for node in nodes) and _are_paragraphs(nodes):
        for node in nodes:
            before = True if node.parent is None else right[node.parent]
            right.append(False if before is False else _both(before, check(problem, node.text)))
    return Prefixes(
        tuple(node.parent for node in nodes), tuple(node.score for node in nodes), tuple(right), trace.final.nodes
    )


def _are_paragraphs(nodes: Sequence[Node]) -> bool:
    """Whether steps end at blank lines, and nowhere else but where an answer does."""
    continued = {node.parent for node in nodes}
    return all(
        "\n\n" not in node.text.strip("\n") and (place not in continued or node.text.endswith("\n\n"))
        for place, node in enumerate(nodes)
    )


def _both(before: bool | None, step: bool | None) -> bool | None:
    """Whether both hold, as far as that is known."""
    if step is False:
        return False
    return None if before is None or step is None else True
