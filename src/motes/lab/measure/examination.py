"""Ask a model a few questions of a task, and find what would break an evaluation of them before it is started.

A trial is one answer to one problem, with the prompt, the sampling and the seed that an evaluation would use. From the
trials, `motes.lab.measure.findings` concludes whether answers are found, where steps and texts end, and so on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from motes import api
from motes.concurrency import gather
from motes.core import Failure, Problem, Trajectory
from motes.errors import ConfigurationError, MissingExtraError, MotesError, UnauthorizedError
from motes.lab.run.evaluation import Evaluation, PlannedRun
from motes.lab.run.grading import Grade, grade
from motes.methods import Majority
from motes.methods.answers import answer_of
from motes.methods.calls import request_scores
from motes.methods.limits import Limits
from motes.protocols import LanguageModel, LanguageModelTraits, RewardModel, RewardModelTraits
from motes.threads import in_thread

DEADLINE = 600.0
"""Seconds after which an answer is cut off, by default."""

NOT_GRADED = Grade("no_answer")


@dataclass(frozen=True)
class Trial:
    """One answer to one problem.

    Attributes:
        problem: without the prompt around it.
        trajectory: the answer, perhaps cut off; None: there is none.
        seconds: until the answer was complete.
        answer: the answer that the task's rule reads; None: none.
        grade: of that answer.
        scores: the reward model's, one per step; None: there is no reward model, or it failed.
        error: the reason why there is no answer, or why the task could not read it.
        reward_error: the reason why there are no scores.
        prompt: the text that the model has read; None: unknown.
        reference: whether the task's grader accepts the problem's reference answer; None: unknown.
    """

    problem: Problem
    trajectory: Trajectory | None = None
    seconds: float = 0.0
    answer: str | None = None
    grade: Grade = NOT_GRADED
    scores: tuple[float, ...] | None = None
    error: str | None = None
    reward_error: str | None = None
    prompt: str | None = None
    reference: bool | None = None

    @property
    def text(self) -> str:
        return "" if self.trajectory is None else self.trajectory.text

    @property
    def num_tokens(self) -> int:
        return 0 if self.trajectory is None else self.trajectory.num_tokens

    @property
    def is_cut(self) -> bool:
        """Whether a limit has cut the text off."""
        return self.trajectory is not None and self.trajectory.finished not in ("eos", "answer")

    def to_dict(self) -> dict[str, Any]:
        """The trial as JSON can hold it."""
        steps = () if self.trajectory is None else self.trajectory.steps
        return {
            "problem_id": self.problem.id,
            "question": self.problem.question,
            "reference": self.problem.answer,
            "answer": self.answer,
            "outcome": "failed" if self.error is not None else self.grade.outcome,
            "error": self.error or self.grade.error,
            "finished": None if self.trajectory is None else self.trajectory.finished,
            "text": self.text,
            "steps": [{"tokens": step.num_tokens, "characters": len(step.text), "end": step.end} for step in steps],
            "tokens": self.num_tokens,
            "scores": None if self.scores is None else list(self.scores),
            "reward_error": self.reward_error,
            "seconds": round(self.seconds, 3),
        }


def share(number: int, trials: Sequence[Trial]) -> str:
    """A number of the trials, in words."""
    return f"{number} of {len(trials)}"


Level = Literal["fine", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """A fact about the trials.

    Attributes:
        topic: its subject, such as "answers".
        level: "fine"; "warning": an evaluation works, but not as well as it could; "broken": it would be worthless.
        text: the fact.
        remedy: what to do about it; empty if it is fine.
    """

    topic: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """Everything that the findings are about.

    Attributes:
        evaluation: of which the trials are a part; its `limit` is their number.
        trials: one for each of the first problems.
        seconds: until all trials were complete, which ran at the same time.
        num_problems: of the whole task.
        lm: the language model.
        has_reward: whether there is a reward model; `is_outcome`: whether it scores finished answers only.
    """

    evaluation: Evaluation
    trials: Sequence[Trial]
    seconds: float
    num_problems: int
    lm: LanguageModel
    has_reward: bool = False
    is_outcome: bool = False

    @property
    def answered(self) -> list[Trial]:
        """The trials that have a text."""
        return [trial for trial in self.trials if trial.trajectory is not None]

    @property
    def continues_prefixes(self) -> bool:
        return LanguageModelTraits(self.lm).continues_prefixes


async def examine(
    evaluation: Evaluation,
    *,
    lm: LanguageModel | None = None,
    reward: RewardModel | None = None,
    deadline: float | None = DEADLINE,
    observe: Callable[[int, int], None] | None = None,
) -> Examination:
    """Ask the questions of an evaluation, all at once, each once, with the seeds of its first method.

    A question that fails is a trial with an error.

    Args:
        evaluation: its `limit` is the number of questions.
        lm, reward: opened models; by default the evaluation's.
        deadline: seconds after which an answer is cut off; None: no limit.
        observe: called with the numbers of questions done and of all questions.

    Raises:
        ConfigurationError: the models cannot be opened, or the model cannot sample so.
        UnauthorizedError: a server requires a key.
    """
    if deadline is not None and not deadline > 0:
        raise ConfigurationError(f"deadline must be more than 0 seconds, not {deadline}")
    lm = await in_thread(api.language_model, evaluation.lm) if lm is None else lm
    if reward is None and evaluation.reward is not None:
        reward = await in_thread(api.reward_model, evaluation.reward)
    method, budget = evaluation.cells()[0]
    cell = method, budget, evaluation.seeds[0]
    runs = [run for run in evaluation.plan() if (run.method, run.budget, run.seed) == cell]
    done = 0

    async def try_run(run: PlannedRun) -> Trial:
        nonlocal done
        trial = await _try_run(run, evaluation, lm, reward, deadline)
        done += 1
        if observe is not None:
            observe(done, len(runs))
        return trial

    started = time.perf_counter()
    trials = await gather(map(try_run, runs))
    seconds = time.perf_counter() - started
    problems = await in_thread(evaluation.opened.problems, evaluation.split)
    is_outcome = reward is not None and RewardModelTraits(reward).outcome
    return Examination(evaluation, trials, seconds, len(problems), lm, reward is not None, is_outcome)


async def _try_run(
    run: PlannedRun, evaluation: Evaluation, lm: LanguageModel, reward: RewardModel | None, deadline: float | None
) -> Trial:
    asked = run.problem if evaluation.prompt is None else evaluation.prompt.problem(run.problem)
    until = None if deadline is None else asyncio.get_running_loop().time() + deadline
    started = time.perf_counter()
    try:
        result = await api.asolve(
            asked,
            lm=lm,
            reward=None,
            method=Majority(1),
            sampling=evaluation.sampling,
            seed=run.run_seed,
            task=evaluation.opened,
            limits=Limits(until, answer_share=0.0),  # a deadline must not end thoughts: an evaluation has none
        )
    except (UnauthorizedError, MissingExtraError):
        raise
    except Exception as error:  # of any kind, as in an evaluation: the user's task or model may raise anything
        return Trial(run.problem, seconds=time.perf_counter() - started, error=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - started
    (trajectory,) = result.trajectories
    if trajectory.error is not None:
        return Trial(run.problem, seconds=seconds, error=f"{type(trajectory.error).__name__}: {trajectory.error}")
    trial = await in_thread(partial(_read, run.problem, trajectory, seconds, evaluation))
    scores, reward_error = (None, None) if reward is None else await _score(trajectory, reward)
    return dataclasses.replace(trial, scores=scores, reward_error=reward_error, prompt=await _prompt_text(asked, lm))


def _read(problem: Problem, trajectory: Trajectory, seconds: float, evaluation: Evaluation) -> Trial:
    """The trial with this trajectory, whose answer is read and graded. May take long."""
    task = evaluation.opened
    reference = None
    if problem.answer is not None:
        graded = grade(task, problem, problem.answer)
        reference = None if graded.error else graded.outcome == "correct"
    trial = Trial(problem, trajectory, seconds, reference=reference)
    try:
        answer = answer_of(trajectory, task)
        return dataclasses.replace(trial, answer=answer, grade=grade(task, problem, answer))
    except Exception as error:  # of a user's task
        return dataclasses.replace(trial, error=f"{type(error).__name__}: {error}")


async def _score(trajectory: Trajectory, reward: RewardModel) -> tuple[tuple[float, ...] | None, str | None]:
    """The scores of a trajectory's steps, or the reason why there are none."""
    if not trajectory.depth:
        return None, "the answer has no step"
    try:
        (scores,) = await request_scores(reward, [trajectory])
    except (UnauthorizedError, MissingExtraError):
        raise
    except Exception as error:  # of any kind, as in an evaluation
        return None, f"{type(error).__name__}: {error}"
    if isinstance(scores, Failure):
        return None, f"{type(scores.error).__name__}: {scores.error}"
    return tuple(map(float, scores)), None


async def _prompt_text(problem: Problem, lm: LanguageModel) -> str | None:
    """The text that the model has read; None: unknown."""
    read = LanguageModelTraits(lm).prompt_text
    try:
        return None if read is None else await read(problem)
    except MotesError:  # of a server that has rendered this prompt before: nothing depends on it
        return None
