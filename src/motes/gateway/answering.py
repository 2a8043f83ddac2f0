"""Answers requests: each is a run of motes within the limits of its virtual model."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from motes import api
from motes.concurrency import gather
from motes.core import Problem, Result, Sampling, Trajectory
from motes.errors import ConfigurationError, EngineError, MotesError, NoParticlesError
from motes.gateway.config import Config
from motes.gateway.errors import RefusedError
from motes.gateway.fallback import TaggedReward, tag
from motes.gateway.relay import Relay, open_relay
from motes.gateway.tables import place
from motes.gateway.turns import Format, TurnModel
from motes.gateway.unopened import Unopened
from motes.gateway.virtual import VirtualModel
from motes.gateway.wire import ChatRequest, MotesOptions, Request
from motes.lab.run.method_spec import draws_independently, method_from_spec
from motes.methods import Majority
from motes.methods.limits import Limits
from motes.methods.method import Method, MethodTraits
from motes.methods.requirements import require_thinking
from motes.methods.run import Observer, ProgressCallback
from motes.methods.selectors import likeliest_texts
from motes.prompts import Prompt
from motes.protocols import AnswerRule, LanguageModel, LanguageModelTraits, RewardModel
from motes.smc import Weights
from motes.tasks.boxed import BoxedAnswers

log = logging.getLogger(__name__)

NO_ANSWER = "no answer was ready when the deadline came"


@dataclass(frozen=True)
class Served:
    """A virtual model with its upstream models open, shared by all requests.

    Attributes:
        prompt, rule, sampling: those that the settings name.
    """

    name: str
    settings: VirtualModel
    lm: LanguageModel | Relay
    reward: RewardModel | None
    outcome_reward: RewardModel | None
    prompt: Prompt | None
    rule: AnswerRule | None
    sampling: Sampling

    @property
    def upstreams(self) -> dict[str, Any]:
        """The models behind it, by their roles, as metrics and `/ready` name them."""
        roles = {"language model": self.lm, "reward model": self.reward, "outcome reward": self.outcome_reward}
        return {role: model for role, model in roles.items() if model is not None}

    @property
    def needed(self) -> dict[str, Any]:
        """Those without which it cannot answer."""
        needs_all = self.settings.without_reward == "error"
        return {role: model for role, model in self.upstreams.items() if needs_all or role == "language model"}

    @property
    def missing(self) -> dict[str, Unopened]:
        """The models behind it that are not open yet, by their roles."""
        return {role: model for role, model in self.upstreams.items() if isinstance(model, Unopened)}

    @property
    def unopened(self) -> list[Unopened]:
        """The missing models without which it cannot answer."""
        return [model for model in self.needed.values() if isinstance(model, Unopened)]

    def parse(self, request: Request, options: MotesOptions, *, strict: bool) -> ParsedRequest:
        """Check a request against the virtual model's limits, and fill in its defaults.

        Args:
            options: those of the request, see `motes.gateway.options`.
            strict: whether a request is refused that asks for what this model cannot do.

        Raises:
            RefusedError: the request exceeds a limit, or cannot work.
        """
        assert not isinstance(self.lm, Relay), "its requests are passed through"
        settings = self.settings
        # 1) the method
        spec = options.method or settings.method
        field = request.needs_turns
        ignored = []
        if field == "logprobs" and not (self.draws_turns and draws_independently(spec)):
            if strict:
                raise RefusedError(f"{self.name} returns no log-probabilities by {spec}", field)
            field, ignored = None, ["logprobs"]
        if field is not None and not self.draws_turns:
            message = "this model cannot call tools or return structured output: its language model returns text only"
            raise RefusedError(message, field, code="unsupported")
        if spec not in (settings.method, *settings.methods):
            allowed = ", ".join((settings.method, *settings.methods))
            raise RefusedError(f"{self.name} answers by {allowed}, not by {spec!r}", "motes.method")
        # 2) the limits
        effort = settings.efforts.get(request.effort) if request.effort is not None else None
        if strict and effort is None and request.effort is not None:
            efforts = ", ".join(settings.efforts) or "none"
            raise RefusedError(f"{self.name} knows these efforts: {efforts}", "reasoning_effort")
        usual = effort or settings.particles
        particles = _value_within(options.particles, usual, settings.most_particles, "motes.particles", "particles")
        deadline = _value_within(
            options.deadline, settings.deadline, settings.longest_deadline, "motes.deadline", "seconds"
        )
        limit, requested = settings.max_tokens, request.token_limit
        if limit is not None and requested is not None and requested > limit:
            field = "max_tokens" if request.max_tokens is not None else "max_completion_tokens"
            raise RefusedError(f"{field}: at most {limit:,} tokens, not {requested:,}", field)
        # 3) the run's settings
        try:
            method = method_from_spec(spec, particles)
        except ConfigurationError as error:
            raise RefusedError(str(error), "motes.particles") from error
        default = self.sampling
        try:
            budgets = [budget for budget in (default.max_thinking_tokens, request.thinking_limit) if budget is not None]
            least = default.min_thinking_tokens
            sampling = (default if strict else _with_stops(default, request.stops)).replace(
                max_thinking_tokens=(budget := min(budgets, default=None)),
                min_thinking_tokens=least if budget is None else min(least, budget),
                max_tokens=requested or limit,
                stop=(*default.stops, *request.stops),
                temperature=request.temperature or default.temperature,
                top_p=default.top_p if request.top_p is None else request.top_p,
            )
        except ConfigurationError as error:
            raise RefusedError(str(error), "stop" if request.stops else None) from error
        problem = Problem(messages=request.turns())
        turns = None
        if field is not None:
            assert isinstance(request, ChatRequest)
            sampling = sampling.whole()
            turns = TurnModel(self.lm, request.fields_of_turns(), self._format(request))
            if sampling.bounds_thinking:  # a whole turn is drawn by the server, which may take a budget
                sampling = sampling.replace(min_thinking_tokens=0)
                if not turns.takes_thinking_budget:
                    if request.thinking_limit is not None:
                        ignored = [*ignored, "max_thinking_tokens"]
                    sampling = sampling.replace(max_thinking_tokens=None)
        else:
            if self.prompt is not None:
                problem = self.prompt.problem(problem)
            try:
                require_thinking(self.lm, sampling)
            except ConfigurationError as error:
                if strict or default.bounds_thinking:
                    raise RefusedError(str(error), "max_thinking_tokens") from error
                sampling, ignored = sampling.replace(max_thinking_tokens=None), [*ignored, "max_thinking_tokens"]
        seed = None if request.seed is None else request.seed & (2**63 - 1)
        if seed is None and request.temperature == 0:
            what = json.dumps([self.name, spec, particles, problem.messages, sampling.to_dict()], default=str)
            seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:6])
        return ParsedRequest(
            body=request,
            served=self,
            lm=self.lm,
            problem=problem,
            method=method,
            spec=spec,
            particles=particles,
            sampling=sampling,
            seed=secrets.randbits(53) if seed is None else seed,
            deadline=deadline,
            turns=turns,
            ignored=[*ignored, *(["reasoning_effort"] if request.effort is not None and effort is None else [])],
        )

    @property
    def draws_turns(self) -> bool:
        """Whether the language model returns whole turns of the assistant, see `motes.gateway.turns`."""
        return LanguageModelTraits(self.lm).draw_turn is not None

    def _format(self, request: ChatRequest) -> Format:
        settings, rule = self.settings, self.rule or BoxedAnswers()
        return Format.of(request, rule, by_name=settings.tool_vote == "name", ignored_arguments=settings.tool_ignore)


@dataclass(frozen=True)
class ParsedRequest:
    """A request within the limits of its virtual model, with the arguments of its run.

    Attributes:
        seed: the request's; otherwise a random one of 53 bits, as some JSON parsers keep no more.
        deadline: seconds after which the best answer so far is returned.
        turns: the model and the answer rule of a run over whole turns; None: over texts.
        ignored: fields of the body that have no effect.
        fallback: whether it is answered without the reward model, which has failed.
    """

    body: Request
    served: Served
    lm: LanguageModel
    problem: Problem
    method: Method
    spec: str
    particles: int
    sampling: Sampling
    seed: int
    deadline: float
    turns: TurnModel | None = None
    ignored: Sequence[str] = ()
    fallback: bool = False

    def without_reward(self, seconds: float) -> ParsedRequest | None:
        """The same request, to be answered without the reward model, `seconds` after it began; None if that is not
        allowed, or there is no time left."""
        choice, left = self.served.settings.without_reward, self.deadline - seconds
        if choice == "error" or left <= 0 or self.fallback:
            return None
        particles = self.particles if choice == "majority" else 1
        method, spec = Majority(particles), "majority"
        return replace(self, method=method, spec=spec, particles=particles, deadline=left, fallback=True)

    @property
    def separates_thoughts(self) -> bool:
        """Whether what the model thinks has a field of its own."""
        return isinstance(self.body, ChatRequest) and self.served.settings.reasoning == "field"

    async def run(
        self,
        observe: Observer | None = None,
        on_progress: ProgressCallback | None = None,
        limits: Limits | None = None,
    ) -> Result:
        """Run the request, by default within its deadline. Cancelling it cancels its requests to upstream servers."""
        reward, outcome_reward = self._reward_models()
        share = self.served.settings.answer_share
        if limits is not None:
            limits.answer_share = share
        return await api.asolve(
            self.problem,
            lm=self.lm if self.turns is None else self.turns,
            reward=reward,
            outcome_reward=outcome_reward,
            method=self.method,
            sampling=self.sampling,
            seed=self.seed,
            task=self.served.rule if self.turns is None else self.turns,
            observe=observe,
            on_progress=on_progress,
            deadline=self.deadline if limits is None else None,
            answer_share=share if limits is None else None,
            limits=limits,
        )

    def _reward_models(self) -> list[TaggedReward | None]:
        """The reward model and the outcome reward model of its run. Raises an EngineError, before the run spends a
        token, if one of them is missing."""
        ignores_outcome = getattr(self.method, "selector", None) == "majority"  # as that of a fallback
        models = (
            self.served.reward if MethodTraits(self.method).needs_reward else None,
            None if ignores_outcome else self.served.outcome_reward,
        )
        for model in models:
            if isinstance(model, Unopened):
                raise tag(model.absence())
        return [None if model is None else TaggedReward(model) for model in models]

    def answers(self, result: Result) -> list[Trajectory]:
        """The trajectories that the client sees.

        Raises:
            RefusedError: no answer was ready at the deadline.
            NoParticlesError: some particles were dropped, and the texts of the others are empty.
        """
        if self.turns is not None and result.answer is None and self.turns.must_mean_something and result.trajectories:
            if result.stopped != "deadline":
                message = "no answer of the model has the form that the request asks for"
                raise RefusedError(message, status=502, code="invalid_output")
            raise RefusedError(NO_ANSWER, status=504, code="deadline")
        if answers := visible(result, self.body.n or 1):
            if result.dropped and not answers[0].text:  # also those that resampling has replaced
                raise NoParticlesError("the particles that were not dropped have no text") from result.dropped[0].error
            return answers
        raise RefusedError(NO_ANSWER, status=504, code="deadline")


OPENERS: Mapping[str, Callable[[str], Any]] = {
    "lm": api.language_model,
    "reward": api.reward_model,
    "outcome_reward": api.reward_model,
}
"""The functions that open the models that a virtual model's settings name, by the setting."""


def open_models(config: Config, source: str = "the configuration", *, needs_all: bool = True) -> dict[str, Served]:
    """Open the models behind the virtual models, each of them once, so that all requests share its batches.

    Args:
        source: the configuration's origin, for messages.
        needs_all: whether all servers must answer. If not, one virtual model that can answer is enough, and the others
            have an `Unopened` in the place of a model.

    Raises:
        ConfigurationError, EngineError: some models cannot be opened; the message names each with its places. It is an
            EngineError unless all faults are the configuration's.
    """
    wanted: dict[tuple[str, str], tuple[Callable[[str], Any], str]] = {}
    for name, settings in config.models.items():
        for field, open_model in OPENERS.items():
            if (spec := getattr(settings, field)) is not None:
                is_relay = field == "lm" and settings.is_passed_through
                wanted[name, field] = partial(open_relay, name) if is_relay else open_model, spec
    opened: dict[Any, Any] = {}
    for key in dict.fromkeys(wanted.values()):
        where = ", ".join(place("models", *path) for path, other in wanted.items() if other == key)
        open_model, spec = key
        try:
            opened[key] = open_model(spec)
        except MotesError as error:
            opened[key] = Unopened(partial(open_model, spec), where, error)
        except Exception as error:  # of the user's own code
            error.add_note(f"This happened when motes opened {where} of {source}.")
            raise
    models = {
        name: Served(
            name,
            settings,
            prompt=settings.open_prompt(),
            rule=settings.answer_rule(),
            sampling=settings.default_sampling(),
            **{field: opened.get(wanted.get((name, field))) for field in OPENERS},  # type: ignore[arg-type]
        )
        for name, settings in config.models.items()
    }
    failures = {model.places: model.error for model in opened.values() if isinstance(model, Unopened)}
    faults = [isinstance(error, ConfigurationError) for error in failures.values()]
    if failures and (needs_all or any(faults) or all(served.unopened for served in models.values())):
        message = "; ".join(f"{where}: {error}" for where, error in failures.items())
        kind = ConfigurationError if all(faults) else EngineError
        raise kind(f"{source}: {message}") from next(iter(failures.values()))
    for where, failure in failures.items():
        log.warning("%s cannot be opened: %s", where, failure)
    return models


async def open_the_rest(models: MutableMapping[str, Served], opened: Callable[[], None]) -> None:
    """Open the models that are missing, each as soon as its server answers.

    Args:
        models: the virtual models, by name; each is replaced when a model behind it is open.
        opened: called after each replacement.
    """

    async def open_one(unopened: Unopened) -> None:
        model = await unopened.opened()
        for name, served in models.items():
            fields = {field: model for field in OPENERS if getattr(served, field) is unopened}
            models[name] = replace(served, **fields)
        opened()

    await gather(map(open_one, {model for served in models.values() for model in served.missing.values()}))


def visible(result: Result, number: int) -> list[Trajectory]:
    """The trajectories that a client sees, at most `number`: the result's answer first, then others by their mass.

    If no text states an answer, as in small talk, each text counts as an answer of its own: the result's text first,
    which is the likeliest, then the others by likelihood. If all texts are empty, the client sees one of them. A text
    that the method stopped is shown only if there is no other.
    """
    places = likeliest_texts(result.trajectories, Weights(result.log_weights), result.scores)
    by_text = {result.trajectories[place].text: result.trajectories[place] for place in places}
    texts = result.texts()
    if result.answer is None:
        ranked = dict.fromkeys([result.text, *by_text])
    else:
        ranked = dict.fromkeys([texts.pop(result.answer), *texts.values()])
    answers = [by_text[text] for text in ranked if text in by_text]
    whole = [trajectory for trajectory in answers if trajectory.finished != "low_confidence"]
    empty = [trajectory for trajectory in result.trajectories if trajectory.finished and not trajectory.is_cut_off]
    return (whole or answers)[:number] or empty[:1]


def _with_stops(sampling: Sampling, stops: Sequence[str]) -> Sampling:
    """The sampling for answers that end at these texts. A step ends at a delimiter, before a stop text that contains
    the delimiter is complete: answers with such a stop text are drawn whole, in one step."""
    if not any(delimiter in stop for stop in stops for delimiter in sampling.delimiters):
        return sampling
    return sampling.whole()


def _value_within(value: Any, default: Any, maximum: Any, field: str, unit: str) -> Any:
    """`value`, or the default if it is None. Raises RefusedError if it exceeds the maximum."""
    if value is None:
        return default
    if value > maximum:
        raise RefusedError(f"{field}: at most {maximum:,.12g} {unit}, not {value:,.12g}", field)
    return value
