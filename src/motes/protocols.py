"""Protocols of language models, reward models and tasks. Calls are always batched, and always of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from motes.core import Failure, Problem, Sampling, Step, Trajectory


@runtime_checkable
class LanguageModel(Protocol):
    """Extends partial answers. `motes.check_language_model` is this contract, executable.

    A model may say more of itself by attributes: `merges_calls = True`, concurrent calls meet in one batch, so that
    each particle is better asked for by a call of its own; `continues_prefixes = False`, it writes whole answers only,
    and methods that work step by step refuse it; `shares_prefixes = True`, what it has computed of a prompt or a prefix
    it does not compute again, so that a run needs it once; `gives_logprobs(sampling)`, whether its steps carry
    `Step.logprob` when it is sampled so; `proposal_logprobs = False`, they never carry `Step.proposal_logprob`. Models
    behind a server have `async def ready()`, which raises where that cannot be reached.
    """

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Step | Failure]:
        """One step for each trajectory, in order; a `Failure` for each that could not be extended, though others
        could. A run drops the particles that failed and goes on with the others.

        The same (trajectory, sampling, seed) gives the same step, whatever else is in the call or in flight. An empty
        step with end "length" says that there is no room left: the trajectory is finished as it stands.

        Args:
            trajectories: (B,) unfinished; the same one may stand several times, with different seeds.
            seeds: (B,) non-negative integers below 2^63.

        Raises:
            ConfigurationError: it cannot sample, or end steps, as `sampling` says.
            ContextLengthError: a prompt alone does not fit the model's context.
            EngineError: the model cannot go on.
        """
        ...


@runtime_checkable
class RewardModel(Protocol):
    """Scores partial answers. `motes.check_reward_model` is this contract, executable.

    A model may say by an attribute `outcome = True` that it scores finished answers only: the score of anything else is
    `motes.core.NEUTRAL`; and `merges_calls = True`: concurrent calls meet in one batch, so that a run sends it each
    step as soon as it ends. Any other model scores all steps of a round in one call. Of `ready` see `LanguageModel`. A
    model that remembers scores of texts it has read has a method `forget()`, after which it reads them anew.
    """

    async def score(self, trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        """For each trajectory, one score in [0, 1] per step so far; a `Failure` for each that could not be scored (it
        does not fit the context, say), though others could. A run drops the particles that failed.

        The score of a step depends on the problem and the steps up to it only. A model that knows what a call cost
        returns `motes.core.Scores`, which carry it.

        Raises:
            ContextLengthError: a problem alone does not fit the model's context.
            RewardError: the model cannot go on, or a score is not a number in [0, 1].
        """
        ...


class Reading(Protocol):
    """What a rule knows of a text of which it has read a beginning. Readings are values: never changed."""

    @property
    def is_final(self) -> bool:
        """Whether the text states an answer that stands, whatever follows."""
        ...


@runtime_checkable
class AnswerRule(Protocol):
    """How an answer is read from a text, and when two are the same.

    A rule may have a method `read(step: str, before: Reading | None) -> Reading` as well, which is given the text step
    by step, with the reading after the step before, None at first. A particle ends as soon as its reading is final.
    Only what stands whatever follows may be final, such as a box that is closed: a rule that takes half a sentence for
    an answer ends particles which were about to say something else. A rule without `read` is asked for its answer
    after every step, about the whole text so far, and any answer ends the particle.

    A rule may have a method `canonical(answer: str) -> str` as well, the form that exactly equivalent answers share:
    N answers are then grouped by N forms, and not by comparing them with each other.

    `needs_end = True`: only a text that the model has ended itself is asked for its answer. `is_quick = True`, which is
    not inherited: the rule waits for nothing and takes microseconds, so that it need not be asked in a thread.
    """

    def answer(self, text: str) -> str | None:
        """The answer that a text states, None where it states none."""
        ...

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two answers mean the same. An equivalence relation."""
        ...


def canonical_form(rule: AnswerRule) -> Callable[[str], str] | None:
    """A rule's `canonical`; None where it has none, or where a subclass says by `equivalent` alone what it compares."""
    for cls in type(rule).__mro__:
        if "canonical" in vars(cls):
            form: Callable[[str], str] | None = rule.canonical  # type: ignore[attr-defined]
            return form
        if "equivalent" in vars(cls):
            break
    return None


@runtime_checkable
class Task(AnswerRule, Protocol):
    """A set of problems with an answer rule and a grader.

    Both are asked by several threads. A task whose problems have levels may say so by a method
    `level(problem) -> int | None`; reports then tell levels apart.

    A task that can check steps may say so by a method `check_step(problem, step: str) -> bool | None`: whether a step
    of any answer to the problem is right, None where it cannot tell. It is asked where steps end at blank lines, the
    usual delimiter. A partial answer is right if all its steps are; reports then say how well the reward model tells
    right ones from wrong ones.

    A task that grades by more than reference answers, by tests for one, may say by what by a method
    `key(problem) -> object`, None where by nothing more; its `repr` is part of the task's digest.
    """

    name: str

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]: ...

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether `answer` is right.

        Raises:
            GraderError: that could not be found out. It is neither right nor wrong.
        """
        ...
