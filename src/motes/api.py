"""The front door: open models by name, solve a problem."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from motes.errors import ConfigurationError, MissingExtraError, MotesError
from motes.methods import ParticleFilter, Run
from motes.methods.population import Observer
from motes.protocols import AnswerRule, LanguageModel, Method, RewardModel
from motes.tasks import BoxedAnswers
from motes.types import Problem, Result, Sampling


def language_model(spec: str | LanguageModel, **options: Any) -> LanguageModel:
    """Open a language model.

    Args:
        spec: "tiny" (bundled), "hf:PATH_OR_NAME" (local, extra `local`), or a model already, which is returned as is.
        options: of the engine, see `motes.models.local.LocalLanguageModel`.

    Raises:
        ConfigurationError: the spec is not understood, or there is no such model.
        MissingExtraError: the engine's packages are not installed.
    """
    if not isinstance(spec, str):
        return spec
    path = _local_path(spec, "lm")
    try:
        from motes.models.local import LocalLanguageModel
    except ImportError as error:
        raise MissingExtraError(f"the language model {spec!r}", "local") from error
    return LocalLanguageModel.open(path, **options)


def reward_model(spec: str | RewardModel, **options: Any) -> RewardModel:
    """Open a reward model.

    Args:
        spec: "tiny" (bundled), "hf:PATH_OR_NAME" (local, extra `local`), or a model already, which is returned as is.
        options: of the engine, see `motes.rewards.prm.LocalPRM`.

    Raises:
        ConfigurationError: the spec is not understood, there is no such model, or its scores do not vary.
        MissingExtraError: the engine's packages are not installed.
    """
    if not isinstance(spec, str):
        return spec
    path = _local_path(spec, "prm")
    try:
        from motes.rewards.prm import LocalPRM
    except ImportError as error:
        raise MissingExtraError(f"the reward model {spec!r}", "local") from error
    return LocalPRM.open(path, **options)


def _local_path(spec: str, role: str) -> str:
    if spec == "tiny":
        from motes import bundled

        return str(bundled.path(role))
    scheme, _, rest = spec.partition(":")
    if scheme == "hf" and rest:
        return rest
    raise ConfigurationError(f"{spec!r} names no model: use 'tiny' or 'hf:PATH_OR_NAME'")


async def asolve(
    problem: Problem | str,
    *,
    lm: LanguageModel | str = "tiny",
    reward: RewardModel | str | None = "tiny",
    method: Method | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    task: AnswerRule | None = None,
    observe: Observer | None = None,
) -> Result:
    r"""Solve one problem.

    Args:
        problem: a `Problem`, or the question as text.
        lm, reward: models, or what `language_model` and `reward_model` open. No reward model is needed by methods
            that do not score.
        method: by default `ParticleFilter(16)`.
        sampling: of the language model.
        seed: the same seed, models and settings give the same result.
        task: how answers are read and compared; by default the last \boxed{…}.
        observe: called with each round's record as it is made.

    Raises:
        MotesError: the run failed. What it had computed is the error's `result`.
    """
    if isinstance(problem, str):
        problem = Problem(problem)
    if seed < 0:
        raise ConfigurationError(f"seed must be 0 or more, not {seed}")
    method = method or ParticleFilter(16)
    run = Run(
        problem=problem,
        lm=language_model(lm),
        reward=None if reward is None else reward_model(reward),
        rule=task or BoxedAnswers(),
        sampling=sampling or Sampling(),
        rng=np.random.default_rng(seed),
        method=type(method).__name__,
        seed=seed,
        observe=observe,
    )
    try:
        return await method.run(run)
    except MotesError as error:
        error.result = run.result(error=error)
        raise


def solve(problem: Problem | str, **options: Any) -> Result:
    """`asolve`, from code that is not async. Takes the same arguments.

    Raises:
        ConfigurationError: called where an event loop is running: await `asolve` there.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(asolve(problem, **options))
    raise ConfigurationError("an event loop is running here: use `await motes.asolve(…)`")
