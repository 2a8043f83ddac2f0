"""The front door: solve a problem, and open models and tasks by name."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from motes.arguments import fit, instance_of
from motes.concurrency import run_here
from motes.core import Problem, Result, Sampling
from motes.errors import ConfigurationError
from motes.methods import ParticleFilter, Run, require, select_by_outcome
from motes.methods.limits import Limits
from motes.methods.run import Follower, Method, MethodTraits, Observer
from motes.opening import (
    answer_rule,
    attribute,
    close_models,
    language_model,
    open_once,
    reward_model,
    serves_rewards,
    task,
)
from motes.protocols import AnswerRule, LanguageModel, RewardModel
from motes.tasks import BoxedAnswers
from motes.threads import in_thread

__all__ = [
    "answer_rule",
    "asolve",
    "attribute",
    "close_models",
    "language_model",
    "reward_model",
    "serves_rewards",
    "solve",
    "task",
]

T = TypeVar("T")


async def asolve(
    problem: Problem | str,
    *,
    lm: LanguageModel | str = "tiny",
    reward: RewardModel | str | None = "tiny",
    outcome_reward: RewardModel | str | None = None,
    method: Method | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    task: AnswerRule | None = None,
    observe: Observer | None = None,
    follow: Follower | None = None,
    deadline: float | None = None,
    token_budget: int | None = None,
) -> Result:
    r"""Solve one problem.

    Args:
        problem: a `Problem`, or the question as text.
        lm, reward: models, or what `language_model` and `reward_model` open. What is named is opened by the first call
            and kept for the next ones of this process, see `close_models`. No reward model is needed by methods that
            do not score.
        outcome_reward: another reward model, which only chooses the answer: `reward` weighs partial answers as ever,
            then this one scores the complete ones. See `motes.methods.select_by_outcome`.
        method: by default `ParticleFilter(16)`.
        sampling: of the language model.
        seed: the same seed, models and settings give the same result.
        task: how answers are read and compared, see `motes.api.answer_rule`; by default the last \boxed{…}.
        observe: called with each round's record as it is made.
        follow: called, by methods that draw whole answers, with all of these as they stand each time some have grown.
        deadline: seconds from now at which the answer is wanted. Steps in flight are then cancelled (by engines that
            can be interrupted; what a cancelled step had cost is not in `Result.usage`) and the best answer so far is
            returned, marked by `Result.stopped`. What was there when depends on the machine: such a run is not
            reproducible from its seed.
        token_budget: generated tokens, all trajectories together (`Usage.generated_tokens`; not the reward model's).
            Once they are spent no further step is begun, those begun are completed: it is exceeded by less than one
            round. The result is marked by `Result.stopped`.

    Raises:
        MotesError: the run failed. What it had computed is the error's `result`, as it is of any other exception that
            somebody's own model, method or task raises. A limit reached is no failure.
    """
    limits = _limits(deadline, token_budget)
    problem = fit("problem", problem, Problem | str)
    problem = problem if isinstance(problem, Problem) else Problem(problem)
    seed = fit("seed", seed, int)
    if seed < 0:
        raise ConfigurationError(f"seed must be 0 or more, not {seed}")
    method = ParticleFilter(16) if method is None else instance_of("method", method, Method, "motes.ParticleFilter(16)")
    rule = BoxedAnswers() if task is None else instance_of("task", task, AnswerRule, "motes.api.answer_rule('math')")
    sampling = fit("sampling", sampling, Sampling | None) or Sampling()
    last_word = await _open_beside(reward_model, outcome_reward) if outcome_reward is not None else None
    scores = reward is not None and MethodTraits.of(method).needs_reward
    run = Run(
        problem=problem,
        lm=await _open_beside(language_model, lm),
        reward=await _open_beside(reward_model, reward) if scores else None,
        rule=rule,
        sampling=sampling,
        rng=np.random.default_rng(seed),
        method=type(method).__name__,
        seed=seed,
        observe=fit("observe", observe, Observer | None),
        follow=fit("follow", follow, Follower | None),
        limits=limits,
    )
    try:
        require(method, run.lm, run.sampling)
        result = await method.run(run)
        if inspect.isawaitable(result):  # of a method that returns what `conclude` gives without waiting for it
            result = await result
        return result if last_word is None else await select_by_outcome(run, result, last_word)
    except Exception as error:
        if getattr(error, "result", None) is None:  # somebody's own exception may have one that means something else
            with suppress(AttributeError, TypeError):  # or take no attributes
                error.result = run.result(error=error)  # type: ignore[attr-defined]
        raise


def computed(error: BaseException) -> Result | None:
    """What a run had computed when this error ended it; None where nothing had run."""
    result = getattr(error, "result", None)
    return result if isinstance(result, Result) else None


async def _open_beside(open_model: Callable[..., T], model: Any) -> T:
    """A model; one that is named is opened once, beside the event loop."""
    return await in_thread(open_once, open_model, model) if isinstance(model, str) else open_model(model)


def _limits(deadline: float | None, token_budget: int | None) -> Limits:
    deadline = fit("deadline", deadline, float | None)
    token_budget = fit("token_budget", token_budget, int | None)
    if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
        raise ConfigurationError(f"deadline must be finite and more than 0 seconds from now, not {deadline}")
    if token_budget is not None and token_budget < 1:
        raise ConfigurationError(f"token_budget must be at least 1, not {token_budget}")
    now = asyncio.get_running_loop().time()
    return Limits(None if deadline is None else now + deadline, token_budget)


def solve(problem: Problem | str, **options: Any) -> Result:
    """`asolve`, from code that is not async. Takes the same arguments.

    Raises:
        ConfigurationError: called where an event loop is running, as in a notebook: await `asolve` there.
    """
    return run_here(lambda: asolve(problem, **options), "result = await motes.asolve(…)")
