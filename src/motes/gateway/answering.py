"""Answers requests: each is a run of motes within the limits of its virtual model."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from motes import api
from motes.core import STOPS, Problem, Result, Sampling, Trajectory
from motes.errors import ConfigurationError, NoParticlesError
from motes.gateway.config import Config, VirtualModel
from motes.gateway.errors import RefusedError
from motes.gateway.wire import Request
from motes.lab.run.method_spec import method_from_spec
from motes.methods.limits import Limits
from motes.methods.run import Method, Observer, ProgressCallback
from motes.methods.selectors import likeliest_texts
from motes.prompts import Prompt
from motes.protocols import AnswerRule, LanguageModel, RewardModel
from motes.smc import Weights


@dataclass(frozen=True)
class Served:
    """A virtual model with its upstream models open, shared by all requests.

    Attributes:
        prompt, rule, sampling: those that the settings name.
    """

    name: str
    settings: VirtualModel
    lm: LanguageModel
    reward: RewardModel | None
    outcome_reward: RewardModel | None
    prompt: Prompt | None
    rule: AnswerRule | None
    sampling: Sampling

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
        # 3) the run's settings
        try:
            method = method_from_spec(spec, particles)
        except ConfigurationError as error:
            raise RefusedError(str(error), "motes.particles") from error
        default = self.sampling
        try:
            sampling = default.replace(
                max_tokens=requested or limit,
                stop=(*default.stops, *request.stops),
                temperature=request.temperature or default.temperature,
                top_p=default.top_p if request.top_p is None else request.top_p,
            )
        except ConfigurationError as error:
            raise RefusedError(str(error), "stop" if request.stops else None) from error
        problem = Problem(messages=request.turns())
        return ParsedRequest(
            body=request,
            served=self,
            problem=problem if self.prompt is None else self.prompt.problem(problem),
            method=method,
            spec=spec,
            particles=particles,
            sampling=sampling,
            seed=secrets.randbits(53) if request.seed is None else request.seed & (2**63 - 1),
            deadline=deadline,
        )


@dataclass(frozen=True)
class ParsedRequest:
    """A request within the limits of its virtual model, with the arguments of its run.

    Attributes:
        seed: the request's; otherwise a random one of 53 bits, as some JSON parsers keep no more.
        deadline: seconds after which the best answer so far is returned.
    """

    body: Request
    served: Served
    problem: Problem
    method: Method
    spec: str
    particles: int
    sampling: Sampling
    seed: int
    deadline: float

    async def run(
        self,
        observe: Observer | None = None,
        on_progress: ProgressCallback | None = None,
        limits: Limits | None = None,
    ) -> Result:
        """Run the request, by default within its deadline. Cancelling it cancels its requests to upstream servers."""
        return await api.asolve(
            self.problem,
            lm=self.served.lm,
            reward=self.served.reward,
            outcome_reward=self.served.outcome_reward,
            method=self.method,
            sampling=self.sampling,
            seed=self.seed,
            task=self.served.rule,
            observe=observe,
            on_progress=on_progress,
            deadline=self.deadline if limits is None else None,
            limits=limits,
        )

    def answers(self, result: Result) -> list[Trajectory]:
        """The trajectories that the client sees.

        Raises:
            RefusedError: no answer was ready at the deadline.
            NoParticlesError: some particles were dropped, and the texts of the others are empty.
        """
        if answers := visible(result, self.body.n or 1):
            failures = [trajectory.error for trajectory in result.trajectories if trajectory.error is not None]
            if failures and not answers[0].text:
                raise NoParticlesError("the particles that were not dropped have no text") from failures[0]
            return answers
        raise RefusedError("no answer was ready when the deadline came", status=504, code="deadline")


def open_models(config: Config) -> Mapping[str, Served]:
    """Open the models behind the virtual models, each of them once, so that all requests share its batches.

    Raises:
        ConfigurationError, ServerError: a model cannot be opened; the message names it.
    """
    open_lm, open_reward = cache(api.language_model), cache(api.reward_model)
    return {
        name: Served(
            name,
            settings,
            lm=open_lm(settings.lm),
            reward=None if settings.reward is None else open_reward(settings.reward),
            outcome_reward=None if settings.outcome_reward is None else open_reward(settings.outcome_reward),
            prompt=settings.open_prompt(),
            rule=settings.answer_rule(),
            sampling=settings.default_sampling(),
        )
        for name, settings in config.models.items()
    }


def visible(result: Result, number: int) -> list[Trajectory]:
    """The trajectories that a client sees, at most `number`: the result's answer first, then others by their mass.

    If no text states an answer, as in small talk, each text counts as an answer of its own: the result's text first,
    which is the likeliest, then the others by likelihood. If all texts are empty, the client sees one of them.
    """
    places = likeliest_texts(result.trajectories, Weights(result.log_weights), result.scores)
    by_text = {result.trajectories[place].text: result.trajectories[place] for place in places}
    texts = result.texts()
    if result.answer is None:
        ranked = dict.fromkeys([result.text, *by_text])
    else:
        ranked = dict.fromkeys([texts.pop(result.answer), *texts.values()])
    answers = [by_text[text] for text in ranked if text in by_text][:number]
    return answers or [t for t in result.trajectories if t.finished not in (None, "failed", *STOPS)][:1]


def _value_within(value: Any, default: Any, maximum: Any, field: str) -> Any:
    """`value`, or the default if it is None. Raises RefusedError if it exceeds the maximum."""
    if value is None:
        return default
    if value > maximum:
        raise RefusedError(f"at most {maximum:g}, not {value:g}", field)
    return value
