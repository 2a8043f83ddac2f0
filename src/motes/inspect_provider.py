"""motes in Inspect (`inspect_ai`): a model provider and a solver, which Inspect finds through entry points.

    inspect eval TASK --model motes/tiny -M reward=tiny -M method=pf -M budget=16
    inspect eval TASK --model openai/gpt-4o --solver motes/particles -S method=majority -S budget=16

See docs/inspect.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from motes import api, prompts
from motes.concurrency import gather
from motes.core import Problem, Result, Sampling, SamplingOptions, Step, Trajectory, Usage
from motes.errors import ConfigurationError, MissingExtraError, UnknownNameError
from motes.lab import method_from_spec
from motes.methods.method import MethodTraits
from motes.protocols import LanguageModel

try:
    from inspect_ai.log._samples import ActiveSample, sample_active  # no public function returns the epoch
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentText,
        GenerateConfig,
        Model,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        get_model,
        modelapi,
    )
    from inspect_ai.solver import Generate, Solver, TaskState, solver
    from inspect_ai.tool import ToolChoice, ToolInfo
except ImportError as error:
    raise MissingExtraError("Inspect", "inspect") from error

MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
REFUSED = (
    "best_of", "extra_body", "frequency_penalty", "logit_bias", "logprobs", "modalities", "presence_penalty",
    "prompt_logprobs", "reasoning_tokens", "response_schema", "top_logprobs",
)  # fmt: skip
"""Fields of Inspect's configuration that are refused. Temperature, top_p, top_k, max_tokens, stop_seqs, seed and
num_choices have their effect; Inspect itself uses the others (connections, retries, caches)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SamplingOptions):
    """Settings for answering questions, from `-M` and `-S`.

    Args:
        reward, outcome_reward: names of reward models, see `motes.asolve`.
        method: a method spec, see `motes.lab.method_from_spec`.
        budget: the number of trajectories.
        prompt: the name of a prompt, see `motes.prompt`.
        task: the task, or the rule, that reads and compares answers, such as "math-500", see `motes.answer_rule`.
        rule: another rule that reads the answers, such as "last-number"; `task`, if there is one, only compares them.
        seed: the base of all seeds, unless Inspect's configuration has one.
        deadline, token_budget: limits for each question, see `motes.asolve`.
        others: see `SamplingOptions`; the sampling settings of Inspect's configuration override them.
    """

    reward: str | None = None
    outcome_reward: str | None = None
    method: str = "pf"
    budget: int = 16
    prompt: str | None = None
    task: str | None = None
    rule: str | None = None
    seed: int = 0
    deadline: float | None = None
    token_budget: int | None = None

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings from their values by name. Raises UnknownNameError for an unknown name."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UnknownNameError("setting", name, names)
        return cls(**values)

    def sampling(self, config: GenerateConfig, prompt: prompts.Prompt | None) -> Sampling:
        """The sampling for a configuration of Inspect. Fields that motes does not support are a ConfigurationError."""
        for name in REFUSED:
            if getattr(config, name, None):
                raise ConfigurationError(f"motes cannot honour {name}: leave it out")
        names = ("temperature", "top_p", "top_k", "max_tokens")
        overrides: dict[str, Any] = {name: value for name in names if (value := getattr(config, name)) is not None}
        if config.stop_seqs:
            overrides["stop"] = config.stop_seqs
        options = dataclasses.replace(self, **overrides)
        return options.apply(Sampling() if prompt is None else prompt.sampling)


class Answerer:
    """Answers conversations by a method over a language model and reward models."""

    def __init__(self, lm: LanguageModel, name: str, settings: Settings) -> None:
        self._lm, self._name, self._settings = lm, name, settings
        self._method = method_from_spec(settings.method, settings.budget)
        self._prompt = None if settings.prompt is None else prompts.prompt(settings.prompt)
        self._rule = api.answer_rule(settings.task, settings.rule)
        self._reward = None
        if settings.reward is not None and MethodTraits(self._method).needs_reward:
            self._reward = api.reward_model(settings.reward)
        self._outcome = None if settings.outcome_reward is None else api.reward_model(settings.outcome_reward)
        self._counts: Counter[str] = Counter()
        self._counts_by_sample: WeakKeyDictionary[ActiveSample, Counter[str]] = WeakKeyDictionary()

    async def answer(self, messages: Sequence[ChatMessage], config: GenerateConfig) -> ModelOutput:
        """The `num_choices` answers with the most weight, or fewer if there are fewer, as choices."""
        problem = Problem(messages=[turn(message) for message in messages])
        sampling = self._settings.sampling(config, self._prompt)
        if sampling.temperature == 0 and self._method.budget > 1:
            raise ConfigurationError(
                f"temperature 0 makes all {self._method.budget} trajectories the same: leave it out (a seed makes runs "
                "repeatable), or use method=greedy"
            )
        result = await api.asolve(
            problem if self._prompt is None else self._prompt.problem(problem),
            lm=self._lm,
            reward=self._reward,
            outcome_reward=self._outcome,
            method=self._method,
            sampling=sampling,
            seed=self._seed(problem, config),
            task=self._rule,
            deadline=self._settings.deadline,
            token_budget=self._settings.token_budget,
        )
        return self._output(result, config.num_choices or 1)

    def _seed(self, problem: Problem, config: GenerateConfig) -> int:
        """A seed from the conversation, the epoch, and the number of requests for it in this epoch: the order of the
        samples does not matter."""
        sample = sample_active()
        base = self._settings.seed if config.seed is None else config.seed
        name = json.dumps([base, sample and sample.epoch, [dict(message) for message in problem.messages]])
        counts = self._counts if sample is None else self._counts_by_sample.setdefault(sample, Counter())
        counts[name] += 1
        return int.from_bytes(hashlib.sha256(f"{name} {counts[name]}".encode()).digest()[:8], "big") >> 1

    def _output(self, result: Result, number: int) -> ModelOutput:
        usage, texts = result.usage, result.texts()
        first = result.text if result.answer is None else texts.pop(result.answer)
        metadata = {
            "method": self._settings.method,
            "budget": self._settings.budget,
            "seed": result.seed,
            "answer": result.answer,
            "confidence": result.confidence,
            "posterior": dict(result.posterior),
            "log_evidence": result.log_evidence,
            "rounds": len(result.records),
            "dropped": len(result.dropped),
            "stopped": result.stopped,
            "usage": usage.to_dict(),
        }
        return ModelOutput(
            model=self._name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=text, model=self._name, source="generate"),
                    stop_reason="max_tokens" if result.stopped == "token_budget" else "stop",
                )
                for text in [first, *texts.values()][:number]
            ],
            usage=ModelUsage(
                input_tokens=usage.prefill_tokens,
                input_tokens_cache_read=usage.prefill_tokens_cached,
                output_tokens=usage.generated_tokens,
                reasoning_tokens=usage.thought_tokens or None,
                total_tokens=usage.prefill_tokens + usage.prefill_tokens_cached + usage.generated_tokens,
            ),
            metadata={"motes": metadata},
        )


def turn(message: ChatMessage) -> dict[str, str]:
    """A message in the form that `motes.Problem` takes. One with tools, or more than text, is a ConfigurationError."""
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise ConfigurationError("motes calls no tools: leave them out of the conversation")
    parts = [ContentText(text=message.content)] if isinstance(message.content, str) else message.content
    texts = [part.text for part in parts if isinstance(part, ContentText)]
    if len(texts) < len(parts):
        kinds = {part.type for part in parts} - {"text"}
        raise ConfigurationError(f"motes reads text only: leave out parts of type {', '.join(sorted(kinds))}")
    return {"role": message.role, "content": "".join(texts)}


class MotesAPI(ModelAPI):
    """The provider of `motes/MODEL`: `motes.language_model` opens MODEL, `-M` gives the `Settings`."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  # as in Inspect's base class
        **values: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None:
            raise ConfigurationError("name the server in the model: motes/http://HOST:PORT/v1#MODEL")
        settings = Settings.of({"reward": "tiny" if model_name == "tiny" else None, **values})
        self._answerer = Answerer(api.language_model(model_name), f"motes/{model_name}", settings)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        if tools and tool_choice != "none":
            raise ConfigurationError("motes calls no tools: take them out of the task")
        return await self._answerer.answer(input, config)

    def max_connections(self) -> int:
        return 64

    def connection_key(self) -> str:
        return self.model_name


class WholeAnswers:
    """Makes any model of Inspect a language model that writes whole answers."""

    continues_prefixes = False

    def __init__(self, model: Model) -> None:
        self._model = model

    def gives_logprobs(self, sampling: Sampling) -> bool:
        return False

    gives_certainty = gives_logprobs

    def __repr__(self) -> str:
        return str(self._model)

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        if any(trajectory.depth for trajectory in trajectories):
            raise ConfigurationError(f"{self!r} cannot continue an answer: draw whole ones")
        if sampling.min_p:
            raise ConfigurationError("models of Inspect know no min_p: leave it out")
        return await gather(
            self._write(trajectory, sampling, seed) for trajectory, seed in zip(trajectories, seeds, strict=True)
        )

    async def _write(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step:
        config = GenerateConfig(
            temperature=sampling.temperature,
            top_p=None if sampling.top_p == 1 else sampling.top_p,
            top_k=sampling.top_k or None,
            max_tokens=sampling.max_tokens,
            stop_seqs=list(sampling.stops) or None,
            seed=seed % 2**31,
        )
        messages = [MESSAGES[turn["role"]](content=turn["content"]) for turn in trajectory.problem.messages]
        output = await self._model.generate(messages, config=config)
        tokens = output.usage or ModelUsage()
        usage = Usage(
            generated_tokens=tokens.output_tokens,
            prefill_tokens=tokens.input_tokens + (tokens.input_tokens_cache_write or 0),
            prefill_tokens_cached=tokens.input_tokens_cache_read or 0,
        )
        was_cut = output.stop_reason in ("max_tokens", "model_length")
        return Step(output.completion, "length" if was_cut else "eos", usage=usage)


@modelapi(name="motes")
def provider() -> type[ModelAPI]:
    """The function that Inspect calls to get the provider."""
    return MotesAPI


@solver
def particles(lm: str | None = None, **settings: Any) -> Solver:
    """Answer the task's conversation with a method of motes, and add its result to the sample's metadata.

    Args:
        lm: the language model's name, see `motes.language_model`; by default the model under evaluation, which then
            writes whole answers: method=majority, bon, wbon, refine or pdr.
        settings: see `Settings`.
    """
    answerer: Answerer | None = None

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        nonlocal answerer
        model = get_model()
        if answerer is None:
            opened = WholeAnswers(model) if lm is None else api.language_model(lm)
            answerer = Answerer(opened, str(model) if lm is None else f"motes/{lm}", Settings.of(settings))
        state.output = await answerer.answer(state.messages, model.config)
        state.messages.append(state.output.message)
        state.metadata["motes"] = (state.output.metadata or {})["motes"]
        return state

    return solve
