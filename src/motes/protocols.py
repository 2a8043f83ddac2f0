"""Protocols of language models, reward models and tasks. Calls are always batched, and always of one shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from motes.core import Failure, Problem, Sampling, Step, Trajectory

T = TypeVar("T")

RequestObserver = Callable[[str, float], None]
"""Called after each attempt of a request to a model's server, with its outcome and its seconds; must neither raise nor
block. The outcome is "ok", the status of the response (as "429"), "bad_response" (a response of 200 that cannot be
used), "connection" (there was none, or it broke off), "timeout", "straggler" (see `motes.transport.stragglers`) or
"cancelled" (by the caller: at its deadline, say)."""


class Trait(Generic[T]):
    """An optional attribute, read from an object when it is needed; `default` if the object lacks it."""

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, traits: Traits, owner: type | None = None) -> T:
        value: T = getattr(traits.thing, self._name, self._default)
        return value


@dataclass(eq=False, slots=True)
class Traits:
    """The optional attributes of an object, or of a class, that implements a protocol."""

    thing: object


@runtime_checkable
class LanguageModel(Protocol):
    """Extends partial answers. `motes.check_language_model` tests an implementation. `LanguageModelTraits` are its
    optional attributes and methods."""

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Step | Failure]:
        """One step for each trajectory, in order; a `Failure` for each that could not be extended while others could. A
        run drops the particles that failed and goes on with the others.

        The same (trajectory, sampling, seed) gives the same step, whatever else is in the call or in flight. An empty
        step with end "length" says that the context has no room left: the trajectory is finished without another step.

        Args:
            trajectories: (B,) unfinished; one may occur several times, with different seeds.
            seeds: (B,) non-negative integers below 2^63.

        Raises:
            ConfigurationError: the model cannot sample, or end steps, as `sampling` says.
            ContextLengthError: a prompt alone does not fit the model's context.
            EngineError: the model cannot go on.
        """
        ...


class LanguageModelTraits(Traits):
    """The optional attributes and methods of a language model.

    Attributes:
        merges_calls: whether it merges concurrent calls into one batch; a run then makes a call for each particle.
        continues_prefixes: whether it can extend an answer step by step. If not, it writes whole answers only, and
            methods that work step by step refuse it.
        takes_thinking_budget: whether a model that writes whole answers only obeys `Sampling.max_thinking_tokens`.
        thought_opening: returns how an answer to a problem begins to think, if the prompt says so, see
            `motes.steps.thought_opening`.
        shares_prefixes: whether it computes each prompt and prefix only once; a run then needs each of them once.
        prompt_ids: the token ids of a problem's prompt, in memory, by which a run knows what two prompts share; None:
            unknown, as if they shared nothing.
        proposal_logprobs: whether its steps carry `Step.proposal_logprob`.
        gives_logprobs: whether its steps carry `Step.logprob` with a given sampling; None: unknown.
        gives_certainty: whether its steps carry `Step.certainty` with a given sampling; None: unknown.
        gives_hidden: whether its steps carry `Step.hidden`.
        num_parameters: number of parameters by which each token is multiplied; None: unknown.
        ready: raises if the model's server cannot be reached.
        draw_turn: a whole turn of the assistant in answer to a conversation that may have tools, see
            `motes.models.served.turns`; None: the model has texts only.
        watch_requests: sets the observer of requests to the model's server; None: the model has no server.
        prompt_text: returns the text that the model reads of a problem, with everything around the question; None, or
            a function that returns None: it is unknown.
    """

    merges_calls = Trait(False)
    continues_prefixes = Trait(True)
    takes_thinking_budget = Trait(False)
    thought_opening: Trait[Callable[[Problem], Awaitable[str]] | None] = Trait(None)
    shares_prefixes = Trait(False)
    prompt_ids: Trait[Callable[[Problem], Sequence[int]] | None] = Trait(None)
    proposal_logprobs = Trait(True)
    gives_logprobs: Trait[Callable[[Sampling], bool] | None] = Trait(None)
    gives_certainty: Trait[Callable[[Sampling], bool] | None] = Trait(None)
    gives_hidden = Trait(False)
    num_parameters: Trait[int | None] = Trait(None)
    ready: Trait[Callable[[], Awaitable[Any]] | None] = Trait(None)
    draw_turn: Trait[Callable[..., Awaitable[Any]] | None] = Trait(None)
    watch_requests: Trait[Callable[[RequestObserver], None] | None] = Trait(None)
    prompt_text: Trait[Callable[[Problem], Awaitable[str | None]] | None] = Trait(None)


@runtime_checkable
class RewardModel(Protocol):
    """Scores partial answers. `motes.check_reward_model` tests an implementation. `RewardModelTraits` are its optional
    attributes and methods."""

    async def score(self, trajectories: Sequence[Trajectory]) -> Sequence[Sequence[float] | Failure]:
        """For each trajectory, one score in [0, 1] per step so far; a `Failure` for each that could not be scored (it
        does not fit the context, say) while others could. A run drops the particles that failed.

        The score of a step depends only on the problem and the steps up to this one. A model that knows the cost of a
        call returns `motes.core.Scores`, which carry it.

        Raises:
            ContextLengthError: a problem alone does not fit the model's context.
            RewardError: the model cannot go on, or a score is not a number in [0, 1].
        """
        ...


class RewardModelTraits(Traits):
    """The optional attributes and methods of a reward model.

    Attributes:
        merges_calls: whether it merges concurrent calls into one batch; a run then sends each step as soon as it ends.
            Any other model scores all steps of a round in one call.
        outcome: whether it scores finished answers only. Any other score is `motes.core.NEUTRAL`.
        top_logprobs: the `Sampling.top_logprobs` that steps must be sampled with, because it reads `Step.certainty`; 0:
            it does not read it.
        hidden_layers: the `Sampling.hidden_layers` that steps must be sampled with, because it reads `Step.hidden`;
            empty: it does not read it.
        num_parameters: number of parameters by which each token is multiplied; None: unknown.
        ready: raises if the model's server cannot be reached.
        watch_requests: sets the observer of requests to the model's server; None: the model has no server.
        forget: makes the model forget the scores of texts it has read, so that it reads them again.
        critique: the model's own words about a trajectory that it has scored, in memory; None if it has none. Methods
            that refine answers pass them on to the language model.
    """

    merges_calls = Trait(False)
    outcome = Trait(False)
    top_logprobs = Trait(0)
    hidden_layers: Trait[tuple[int, ...]] = Trait(())
    num_parameters: Trait[int | None] = Trait(None)
    ready: Trait[Callable[[], Awaitable[Any]] | None] = Trait(None)
    watch_requests: Trait[Callable[[RequestObserver], None] | None] = Trait(None)
    forget: Trait[Callable[[], None] | None] = Trait(None)
    critique: Trait[Callable[[Trajectory], str | None] | None] = Trait(None)


class Reading(Protocol):
    """The state of an answer rule after the first steps of a text. Readings are values: they never change."""

    @property
    def is_final(self) -> bool:
        """Whether the text states an answer that no further text can change."""
        ...


@runtime_checkable
class AnswerRule(Protocol):
    """How an answer is read from a text, and when two answers are the same. `AnswerRuleTraits` are its optional
    attributes and methods. Two more concern its class alone:

    A method `canonical(answer: str) -> str` returns the form that exactly equivalent answers share: N answers are then
    grouped by N forms, and not by comparing them with each other. An attribute `is_quick = True`, which is not
    inherited, says that the rule waits for nothing and takes microseconds, so that it need not run in a thread.
    """

    def answer(self, text: str) -> str | None:
        """The answer that a text states; None if it states none."""
        ...

    def equivalent(self, first: str, second: str) -> bool:
        """Whether two answers mean the same. An equivalence relation."""
        ...


class AnswerRuleTraits(Traits):
    """The optional attributes and methods of an answer rule.

    Attributes:
        needs_end: whether only a text that the model ended itself has an answer.
        answer_when_cut: a function of a text that returns the answer which it states although a limit has cut it off,
            perhaps within a number; None: `answer` reads such texts, too.
        read: a function of a step's text and the reading after the previous step (None before the first step) that
            returns the reading after the step. A particle ends as soon as its reading is final. Only an answer that no
            further text can change, such as a closed box, may be final: a rule that takes half a sentence for an answer
            ends particles too early. None: the rule reads the whole text after every step, and any answer ends the
            particle.
    """

    needs_end = Trait(False)
    answer_when_cut: Trait[Callable[[str], str | None] | None] = Trait(None)
    read: Trait[Callable[[str, Reading | None], Reading] | None] = Trait(None)


def canonical_form(rule: AnswerRule) -> Callable[[str], str] | None:
    """A rule's method `canonical`; None if it has none, or if a subclass overrides `equivalent` without it."""
    for cls in type(rule).__mro__:
        if "canonical" in vars(cls):
            form: Callable[[str], str] | None = rule.canonical  # type: ignore[attr-defined]
            return form
        if "equivalent" in vars(cls):
            break
    return None


@runtime_checkable
class Task(AnswerRule, Protocol):
    """A set of problems with an answer rule and a grader, which several threads may call at once. `TaskTraits` are its
    optional methods."""

    name: str

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]: ...

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether `answer` is right.

        Raises:
            GraderError: the answer could not be graded. It is neither right nor wrong.
        """
        ...


class TaskTraits(Traits):
    """The optional methods of a task.

    Attributes:
        level: the level of a problem; reports then have a table by level.
        check_step: whether a step of any answer to the problem is right; None if unknown. It is called if steps end at
            blank lines, the usual delimiter. A partial answer is right if all its steps are; reports then say how well
            the reward model tells right partial answers from wrong ones.
        key: the data by which a problem is graded in addition to its reference answer, such as tests; None if there are
            none. Their `repr` is part of the task's digest.
    """

    level: Trait[Callable[[Problem], int | None] | None] = Trait(None)
    check_step: Trait[Callable[[Problem, str], bool | None] | None] = Trait(None)
    key: Trait[Callable[[Problem], object] | None] = Trait(None)
