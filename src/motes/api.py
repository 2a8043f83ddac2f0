"""Solve a problem; open models and tasks by name."""

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
from motes.methods.limits import ANSWER_SHARE, Limits
from motes.methods.method import Method, MethodTraits
from motes.methods.requirements import sampling_for
from motes.methods.run import Observer, ProgressCallback
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
    task: AnswerRule | str | None = None,
    rule: AnswerRule | str | None = None,
    observe: Observer | None = None,
    on_progress: ProgressCallback | None = None,
    deadline: float | None = None,
    token_budget: int | None = None,
    answer_share: float | None = None,
    limits: Limits | None = None,
) -> Result:
    r"""Solve one problem.

    Args:
        problem: a `Problem`, or the question as text.
        lm, reward: models, or their names, see `language_model` and `reward_model`. A named model is opened by the
            first call and kept for later calls in this process, see `close_models`. Methods that do not score need no
            reward model.
        outcome_reward: a second reward model, which only chooses the answer: `reward` weighs partial answers, then
            `outcome_reward` scores the complete ones. See `motes.methods.select_by_outcome`.
        method: by default `ParticleFilter(16)`.
        sampling: settings of the language model's sampling.
        seed: the same seed, models and settings give the same result.
        task: the task, or the rule, that reads and compares answers, or its name, see `motes.answer_rule`; by default
            the last \boxed{…}.
        rule: another rule, or its name, such as "last-number", that reads the answers. `task` then only compares them;
            without `task`, the rule compares them, too.
        observe: called with each round's record as it is made.
        on_progress: called with the current partial answers whenever one of them has grown, by methods that draw whole
            answers.
        deadline: seconds from now until the answer is due. At the deadline, steps in flight are cancelled (by engines
            that can be interrupted; the cost of a cancelled step is not in `Result.usage`), and the best answer so far
            is returned, with `Result.stopped` set. Such a run is not reproducible from its seed, because its progress
            depends on the machine.
        token_budget: maximum number of generated tokens, all trajectories together (`Usage.generated_tokens`; not the
            reward model's). Once they are spent, no step begins, but steps in flight are completed, so that the excess
            is less than one round. `Result.stopped` is set.
        answer_share: the share of the time until the deadline, and of the token budget, that is kept for answers, in
            [0, 1); by default 0.2. When it begins, thoughts that are still open are ended, so that there is an answer,
            see `motes.methods.thinking`.
        limits: the run's limits, in the place of the three arguments before, for a caller that may bring the
            deadline forward while the run goes on (`motes.methods.limits.Limits.bring_forward`). Each run needs its
            own.

    Raises:
        MotesError: the run failed. The error's `result` is the run's partial result, as it is for any other exception
            from a user's model, method or task. Reaching a limit is not a failure.
    """
    if limits is None:
        limits = _limits(deadline, token_budget, answer_share)
    elif deadline is not None or token_budget is not None:
        raise ConfigurationError("limits have a deadline and a token budget of their own: leave out the other two")
    elif answer_share is not None:
        raise ConfigurationError("limits have an answer_share of their own: leave out the other one")
    else:
        limits = instance_of("limits", limits, Limits, "motes.methods.limits.Limits(deadline=…)")
    problem = fit("problem", problem, Problem | str)
    problem = problem if isinstance(problem, Problem) else Problem(problem)
    seed = fit("seed", seed, int)
    if seed < 0:
        raise ConfigurationError(f"seed must be 0 or more, not {seed}")
    method = ParticleFilter(16) if method is None else instance_of("method", method, Method, "motes.ParticleFilter(16)")
    opened_rule = await _open_rule(task, rule)
    sampling = fit("sampling", sampling, Sampling | None) or Sampling()
    outcome_model = await _open_in_thread(reward_model, outcome_reward) if outcome_reward is not None else None
    needs_reward = reward is not None and MethodTraits(method).needs_reward
    run = Run(
        problem=problem,
        lm=await _open_in_thread(language_model, lm),
        reward=await _open_in_thread(reward_model, reward) if needs_reward else None,
        rule=opened_rule,
        sampling=sampling_for(sampling, outcome_model),
        rng=np.random.default_rng(seed),
        method=type(method).__name__,
        seed=seed,
        observe=fit("observe", observe, Observer | None),
        on_progress=fit("on_progress", on_progress, ProgressCallback | None),
        limits=limits,
    )
    try:
        require(method, run.lm, run.sampling)
        result = await method.run(run)
        if inspect.isawaitable(result):  # a method may return `conclude(…)` without awaiting it
            result = await result
        return result if outcome_model is None else await select_by_outcome(run, result, outcome_model)
    except Exception as error:
        if getattr(error, "result", None) is None:  # a user's exception may have another `result`
            with suppress(AttributeError, TypeError):  # or accept no attributes
                error.result = run.result(error=error)  # type: ignore[attr-defined]
        raise


def partial_result(error: BaseException) -> Result | None:
    """The partial result of the run that this error ended; None if nothing had run."""
    result = getattr(error, "result", None)
    return result if isinstance(result, Result) else None


async def _open_in_thread(open_model: Callable[..., T], model: Any) -> T:
    """Open a model. A named model is opened once, in a thread beside the event loop."""
    return await in_thread(open_once, open_model, model) if isinstance(model, str) else open_model(model)


async def _open_rule(task: Any, rule: Any) -> AnswerRule:
    """Open the rule that reads and compares answers. A name may stand for code, which is opened in a thread."""
    for name, value in (("task", task), ("rule", rule)):
        if value is not None and not isinstance(value, str):
            instance_of(name, value, AnswerRule, "'math'")
    has_name = isinstance(task, str) or isinstance(rule, str)
    return await in_thread(answer_rule, task, rule) if has_name else answer_rule(task, rule)


def _limits(deadline: float | None, token_budget: int | None, answer_share: float | None) -> Limits:
    deadline = fit("deadline", deadline, float | None)
    token_budget = fit("token_budget", token_budget, int | None)
    if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
        raise ConfigurationError(f"deadline must be finite and more than 0 seconds from now, not {deadline}")
    if token_budget is not None and token_budget < 1:
        raise ConfigurationError(f"token_budget must be at least 1, not {token_budget}")
    now = asyncio.get_running_loop().time()
    share = ANSWER_SHARE if answer_share is None else answer_share
    return Limits(None if deadline is None else now + deadline, token_budget, answer_share=share)


def solve(problem: Problem | str, **options: Any) -> Result:
    """`asolve` for code that is not async; the arguments are the same.

    Raises:
        ConfigurationError: called where an event loop is running, as in a notebook: await `asolve` there.
    """
    return run_here(lambda: asolve(problem, **options), "result = await motes.asolve(…)")
