"""From a request to an answer: a run of motes within the limits of the model that was asked for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from motes import api
from motes.core import STOPS, Problem, Result, Sampling, Trajectory
from motes.errors import ConfigurationError, MotesError
from motes.gateway.config import Config, VirtualModel
from motes.gateway.wire import Request
from motes.methods.run import Follower, Method, Observer
from motes.methods.selectors import likeliest_texts
from motes.prompts import Prompt
from motes.protocols import AnswerRule, LanguageModel, RewardModel
from motes.smc import Weights


class RefusedError(MotesError, ValueError):
    """A request asks for something that it cannot have here.

    Attributes:
        field: which of its fields, as in "motes.particles"; None: all of it.
        status: the HTTP status that says so. code: OpenAI's word for it.
    """

    def __init__(self, reason: str, field: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(reason)
        self.field, self.status, self.code = field, status, code


@dataclass(frozen=True)
class Asked:
    """A request, understood: what `motes.asolve` is given, and what it takes. A seed that nobody gave has 53 bits, as
    readers of JSON may keep no more."""

    problem: Problem
    method: Method
    spec: str
    particles: int
    sampling: Sampling
    seed: int
    deadline: float
    choices: int


@dataclass(frozen=True)
class Served:
    """A virtual model with its models open, shared by every request."""

    name: str
    told: VirtualModel
    lm: LanguageModel
    reward: RewardModel | None
    outcome_reward: RewardModel | None
    most_choices: int

    @cached_property
    def prompt(self) -> Prompt | None:
        return self.told.asked()

    @cached_property
    def rule(self) -> AnswerRule | None:
        rule: AnswerRule | None = self.told.rule()
        return rule

    @cached_property
    def base(self) -> Sampling:
        return self.told.base()

    def understand(self, request: Request) -> Asked:
        """What a request asks for.

        Raises:
            RefusedError: it goes beyond what the model allows.
        """
        told, own = self.told, request.motes
        spec = own.method or told.method
        if spec not in (told.method, *told.methods):
            allowed = ", ".join((told.method, *told.methods))
            raise RefusedError(f"{self.name} answers by {allowed}, not by {spec!r}", "motes.method")
        particles = _within(own.particles, told.particles, told.most_particles, "motes.particles")
        deadline = _within(own.deadline, told.deadline, told.longest, "motes.deadline")
        longest = request.longest or told.max_tokens
        if told.max_tokens is not None and request.longest is not None and request.longest > told.max_tokens:
            field = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
            raise RefusedError(f"at most {told.max_tokens} tokens, not {request.longest}", field)
        choices = request.n or 1
        if choices > self.most_choices:
            raise RefusedError(f"at most {self.most_choices} answers, not {choices}", "n")
        try:
            method = told.chosen(spec, particles)
        except ConfigurationError as error:
            raise RefusedError(str(error), "motes.particles") from error
        changes: dict[str, Any] = {"max_tokens": longest, "stop": (*self.base.stops, *request.stops)}
        if request.temperature:
            changes["temperature"] = request.temperature
        if request.top_p is not None:
            changes["top_p"] = request.top_p
        try:
            sampling = self.base.replace(**changes)
        except ConfigurationError as error:
            raise RefusedError(str(error), "stop" if request.stops else None) from error
        problem = Problem(messages=request.turns())
        return Asked(
            problem=problem if self.prompt is None else self.prompt.problem(problem),
            method=method,
            spec=spec,
            particles=particles,
            sampling=sampling,
            seed=secrets.randbits(53) if request.seed is None else request.seed & (2**63 - 1),
            deadline=deadline,
            choices=choices,
        )

    async def answer(
        self,
        asked: Asked,
        *,
        deadline: float | None = None,
        observe: Observer | None = None,
        follow: Follower | None = None,
    ) -> Result:
        """The run of a request. Cancelling it cancels everything upstream.

        Args:
            deadline: seconds left, where some of the request's own were spent waiting.
        """
        return await api.asolve(
            asked.problem,
            lm=self.lm,
            reward=self.reward,
            outcome_reward=self.outcome_reward,
            method=asked.method,
            sampling=asked.sampling,
            seed=asked.seed,
            task=self.rule,
            observe=observe,
            follow=follow,
            deadline=asked.deadline if deadline is None else deadline,
        )


def open_models(config: Config) -> Mapping[str, Served]:
    """Open what the virtual models stand on, each upstream once, so that all requests meet in its batches.

    Raises:
        ConfigurationError, ServerError: a model cannot be opened; the message names it.
    """
    lms: dict[str, LanguageModel] = {}
    rewards: dict[str, RewardModel] = {}

    def reward(spec: str | None) -> RewardModel | None:
        if spec is None:
            return None
        if spec not in rewards:
            rewards[spec] = api.reward_model(spec)
        return rewards[spec]

    served = {}
    for name, told in config.models.items():
        if told.lm not in lms:
            lms[told.lm] = api.language_model(told.lm)
        models = lms[told.lm], reward(told.reward), reward(told.outcome_reward)
        served[name] = Served(name, told, *models, config.limits.choices)
    return served


def visible(result: Result, number: int) -> list[Trajectory]:
    """The answers that a client sees: the one given, then others by their mass.

    Where no text states an answer, as in a conversation about nothing in particular, each text is an answer of its own:
    the result's, which is the likeliest, then others as likely as they are. A model that has said nothing at all is
    shown to have done so.
    """
    places = likeliest_texts(result.trajectories, Weights(result.log_weights), result.scores)
    by_text = {result.trajectories[place].text: result.trajectories[place] for place in places}
    texts = result.texts()
    first = [result.text] if result.answer is None else [texts.pop(result.answer)]
    wanted = dict.fromkeys([*first, *(texts.values() or by_text)])
    said = [by_text[text] for text in wanted if text in by_text][:number]
    return said or [t for t in result.trajectories if t.finished not in (None, "failed", *STOPS)][:1]


def _within(asked: Any, usual: Any, most: Any, field: str) -> Any:
    if asked is None:
        return usual
    if asked > most:
        raise RefusedError(f"at most {most:g}, not {asked:g}", field)
    return asked
