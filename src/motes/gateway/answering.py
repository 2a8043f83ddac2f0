"""Answers requests: each is a run of motes within the limits of its virtual model."""

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
from motes.methods.run import Method, Observer, ProgressCallback
from motes.methods.selectors import likeliest_texts
from motes.prompts import Prompt
from motes.protocols import AnswerRule, LanguageModel, RewardModel
from motes.smc import Weights


class RefusedError(MotesError, ValueError):
    """The gateway refuses a request.

    Attributes:
        field: the field at fault, such as "motes.particles"; None: the whole request.
        status: the HTTP status of the response.
        code: OpenAI's error code.
    """

    def __init__(self, reason: str, field: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(reason)
        self.field, self.status, self.code = field, status, code


@dataclass(frozen=True)
class ParsedRequest:
    """The arguments of `motes.asolve` for a request, and its numbers of particles and choices. A seed that the request
    does not give has 53 bits: some JSON parsers keep no more."""

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
    """A virtual model with its upstream models open, shared by all requests."""

    name: str
    settings: VirtualModel
    lm: LanguageModel
    reward: RewardModel | None
    outcome_reward: RewardModel | None
    most_choices: int

    @cached_property
    def prompt(self) -> Prompt | None:
        return self.settings.open_prompt()

    @cached_property
    def rule(self) -> AnswerRule | None:
        rule: AnswerRule | None = self.settings.answer_rule()
        return rule

    @cached_property
    def default_sampling(self) -> Sampling:
        return self.settings.default_sampling()

    def parse(self, request: Request) -> ParsedRequest:
        """Check a request against the virtual model's limits, and fill in its defaults.

        Raises:
            RefusedError: the request exceeds a limit, or cannot work.
        """
        settings, options = self.settings, request.motes
        # 1) the method
        spec = options.method or settings.method
        if spec not in (settings.method, *settings.methods):
            allowed = ", ".join((settings.method, *settings.methods))
            raise RefusedError(f"{self.name} answers by {allowed}, not by {spec!r}", "motes.method")
        # 2) the limits
        particles = _value_within(options.particles, settings.particles, settings.most_particles, "motes.particles")
        deadline = _value_within(options.deadline, settings.deadline, settings.longest_deadline, "motes.deadline")
        limit, requested = settings.max_tokens, request.token_limit
        if limit is not None and requested is not None and requested > limit:
            field = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
            raise RefusedError(f"at most {limit} tokens, not {requested}", field)
        choices = request.n or 1
        if choices > self.most_choices:
            raise RefusedError(f"at most {self.most_choices} answers, not {choices}", "n")
        # 3) the run's settings
        try:
            method = settings.make_method(spec, particles)
        except ConfigurationError as error:
            raise RefusedError(str(error), "motes.particles") from error
        stops = (*self.default_sampling.stops, *request.stops)
        changes: dict[str, Any] = {"max_tokens": requested or limit, "stop": stops}
        if request.temperature:
            changes["temperature"] = request.temperature
        if request.top_p is not None:
            changes["top_p"] = request.top_p
        try:
            sampling = self.default_sampling.replace(**changes)
        except ConfigurationError as error:
            raise RefusedError(str(error), "stop" if request.stops else None) from error
        problem = Problem(messages=request.turns())
        return ParsedRequest(
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
        request: ParsedRequest,
        *,
        deadline: float | None = None,
        observe: Observer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Result:
        """Run a request. Cancelling the run cancels its requests to upstream servers.

        Args:
            deadline: seconds left, if the request has spent some of its own deadline waiting.
        """
        return await api.asolve(
            request.problem,
            lm=self.lm,
            reward=self.reward,
            outcome_reward=self.outcome_reward,
            method=request.method,
            sampling=request.sampling,
            seed=request.seed,
            task=self.rule,
            observe=observe,
            on_progress=on_progress,
            deadline=request.deadline if deadline is None else deadline,
        )


def open_models(config: Config) -> Mapping[str, Served]:
    """Open the models behind the virtual models, each of them once, so that all requests share its batches.

    Raises:
        ConfigurationError, ServerError: a model cannot be opened; the message names it.
    """
    lms: dict[str, LanguageModel] = {}
    rewards: dict[str, RewardModel] = {}

    def open_reward(spec: str | None) -> RewardModel | None:
        if spec is None:
            return None
        if spec not in rewards:
            rewards[spec] = api.reward_model(spec)
        return rewards[spec]

    served = {}
    for name, settings in config.models.items():
        if settings.lm not in lms:
            lms[settings.lm] = api.language_model(settings.lm)
        models = lms[settings.lm], open_reward(settings.reward), open_reward(settings.outcome_reward)
        served[name] = Served(name, settings, *models, config.limits.choices)
    return served


def visible(result: Result, number: int) -> list[Trajectory]:
    """The trajectories that a client sees, at most `number`: the result's answer first, then others by their mass.

    If no text states an answer, as in small talk, each text counts as an answer of its own: the result's text first,
    which is the likeliest, then the others by likelihood. If all texts are empty, the client sees one of them.
    """
    places = likeliest_texts(result.trajectories, Weights(result.log_weights), result.scores)
    by_text = {result.trajectories[place].text: result.trajectories[place] for place in places}
    texts = result.texts()
    first = [result.text] if result.answer is None else [texts.pop(result.answer)]
    ranked = dict.fromkeys([*first, *(texts.values() or by_text)])
    answers = [by_text[text] for text in ranked if text in by_text][:number]
    return answers or [t for t in result.trajectories if t.finished not in (None, "failed", *STOPS)][:1]


def _value_within(value: Any, default: Any, maximum: Any, field: str) -> Any:
    """`value`, or the default if it is None. Raises RefusedError if it exceeds the maximum."""
    if value is None:
        return default
    if value > maximum:
        raise RefusedError(f"at most {maximum:g}, not {value:g}", field)
    return value
