"""Virtual models: what clients see as one model, as `motes.toml` describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, ValidationInfo, create_model, field_validator

from motes import api, prompts
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError
from motes.gateway.tables import MAX_COUNT, Part, Positive, Seconds, Spec, Texts
from motes.lab.run.method_spec import method_from_spec
from motes.methods.limits import ANSWER_SHARE
from motes.methods.method import MethodTraits
from motes.opening import check_spec, is_address

SamplingTable = create_model(
    "SamplingTable", __base__=Part, **{name: (kind, None) for name, kind in get_type_hints(SamplingOptions).items()}
)  # type: ignore[call-overload]
"""The table `sampling`. Its keys are the fields of `SamplingOptions`."""


class VirtualModel(Part):
    """What clients see as one model: a language model, a reward model, a method, and limits for requests.

    Attributes:
        lm, reward, outcome_reward: see `motes.language_model` and `motes.reward_model`. Requests cannot name them. `lm`
            may be a list of addresses, several servers of one model.
        method: the default method, a method spec. "none": the model is passed through as it is, see
            `motes.gateway.relay`.
        methods: further methods that a request may choose.
        particles: the default budget.
        max_particles: the largest budget that a request may choose; by default `particles`.
        deadline: seconds after which the best answer so far is returned.
        answer_share: the share of the time until the deadline that is kept for answers: open thoughts are ended when it
            begins. 0: a thought may take all of it.
        max_deadline: the longest deadline that a request may choose; by default `deadline`.
        efforts: the budget for each value of a request's `reasoning_effort`, such as {low = 4, high = 32}; within
            `max_particles`.
        max_tokens: the most tokens of one answer that a request may choose; None: as many as fit the model's context.
        prompt: the prompt format, see `motes.prompt`.
        task: the task, or the rule, that reads and compares the answers, see `motes.answer_rule`.
        rule: another rule that reads the answers; `task`, if there is one, only compares them.
        reasoning: where a chat's answer has what the model thinks: "field", in `reasoning_content`; "text", between its
            tags in `content`.
        tool_vote: which tool calls count as the same answer: "call", with the same arguments, or "name", with any.
        tool_ignore: names of arguments that do not count when calls are compared.
        sampling: settings of the language model's sampling, which a request may override, and of where steps end.
        without_reward: what to do where the reward model fails: "error"; or answer all the same, by "majority" of as
            many particles or by a single "sample". The reply says so.
        examples: questions that the page at `/` offers.
    """

    lm: Spec | Annotated[tuple[Spec, ...], Field(strict=False, min_length=1)]
    reward: Spec | None = None
    outcome_reward: Spec | None = None
    particles: Positive = 16
    max_particles: Positive | None = None
    method: Annotated[Spec, Field(validate_default=True)] = "pf"
    methods: Annotated[tuple[Spec, ...], Field(strict=False)] = ()
    deadline: Seconds = 60.0
    answer_share: Annotated[float, Field(ge=0, lt=1)] = ANSWER_SHARE
    max_deadline: Seconds | None = None
    efforts: Mapping[str, Positive] = {}
    max_tokens: Positive | None = None
    prompt: Spec | None = None
    task: Spec | None = None
    rule: Spec | None = None
    reasoning: Literal["field", "text"] = "field"
    tool_vote: Literal["call", "name"] = "call"
    tool_ignore: Texts = ()
    sampling: SamplingTable = SamplingTable()  # type: ignore[valid-type]
    without_reward: Literal["error", "majority", "sample"] = "error"
    examples: Texts = ()

    # A validator of a field sees the fields above it, as far as they have no fault.

    @field_validator("lm")
    @classmethod
    def _check_lm(cls, specs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for spec in (specs,) if isinstance(specs, str) else specs:
            _check_model("lm", spec)
            if specs is not spec and not is_address(spec):
                raise ValueError("a list names servers of one model: write http://HOST:PORT/v1#MODEL")
        return specs

    @field_validator("reward", "outcome_reward")
    @classmethod
    def _check_reward(cls, spec: str | None) -> str | None:
        if spec is not None:
            _check_model("prm", spec)
        return spec

    @field_validator("max_particles")
    @classmethod
    def _check_max_particles(cls, most: int | None, info: ValidationInfo) -> int | None:
        particles = info.data.get("particles", 1)
        if most is not None and most < particles:
            raise ValueError(f"{most} is less than particles, {particles}")
        return most

    @field_validator("efforts")
    @classmethod
    def _check_efforts(cls, efforts: Mapping[str, int], info: ValidationInfo) -> Mapping[str, int]:
        most = info.data.get("max_particles") or info.data.get("particles", MAX_COUNT)
        for effort, particles in efforts.items():
            if particles > most:
                raise ValueError(f"{effort} has {particles} particles, more than {most}")
        return efforts

    @field_validator("max_deadline")
    @classmethod
    def _check_max_deadline(cls, longest: float | None, info: ValidationInfo) -> float | None:
        deadline = info.data.get("deadline", 0.0)
        if longest is not None and longest < deadline:
            raise ValueError(f"{longest:g} is less than deadline, {deadline:g}")
        return longest

    @field_validator("method", "methods")
    @classmethod
    def _check_methods(cls, value: Any, info: ValidationInfo) -> Any:
        has_no_reward = info.data.get("reward", "unknown") is None
        if value == "none":
            lm = info.data.get("lm", "http://")
            if isinstance(lm, str) and not is_address(lm):
                raise ValueError("method = 'none' passes a served model through: its lm is an address, http://…")
            if info.data.get("reward") is not None or info.data.get("outcome_reward") is not None:
                raise ValueError("method = 'none' needs no reward model")
            return value
        if value and info.data.get("method") == "none":
            raise ValueError("method = 'none' excludes other methods")
        for spec in (value,) if isinstance(value, str) else value:
            method = method_from_spec(spec, info.data.get("particles", 16))
            if MethodTraits(method).needs_reward and has_no_reward:
                raise ConfigurationError(f"the method {spec!r} needs a reward model: name one as `reward`")
        return value

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None:
            prompts.prompt(prompt)
        return prompt

    @field_validator("task", "rule")
    @classmethod
    def _check_rule(cls, spec: str | None) -> str | None:
        if spec is not None:
            api.answer_rule(spec)
        return spec

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, table: Part, info: ValidationInfo) -> Part:
        for name, value in table:
            if isinstance(value, int) and value > MAX_COUNT:
                raise ValueError(f"{name} must be at most {MAX_COUNT:,}")
        try:
            _sampling(table, info.data.get("prompt"))
        except ConfigurationError as error:
            raise ValueError(str(error).removeprefix("Sampling: ")) from error
        return table

    @property
    def is_passed_through(self) -> bool:
        return self.method == "none"

    @property
    def most_particles(self) -> int:
        return self.particles if self.max_particles is None else self.max_particles

    @property
    def longest_deadline(self) -> float:
        return self.deadline if self.max_deadline is None else self.max_deadline

    def open_prompt(self) -> prompts.Prompt | None:
        """The prompt; None: the bare question."""
        return None if self.prompt is None else prompts.prompt(self.prompt)

    def answer_rule(self) -> Any:
        """The answer rule; None: the last box counts."""
        return None if self.task is None and self.rule is None else api.answer_rule(self.task, self.rule)

    def default_sampling(self) -> Sampling:
        """The sampling of requests without sampling fields."""
        return _sampling(self.sampling, self.prompt)


def _sampling(table: Part, prompt: str | None) -> Sampling:
    options = SamplingOptions(**dict(table))
    return options.apply(Sampling() if prompt is None else prompts.prompt(prompt).sampling)


def _check_model(role: str, spec: str) -> None:
    """Check the spec of a language model ("lm") or a reward model ("prm") without opening it.

    Raises:
        ConfigurationError: it cannot work, or contains a key. Then the message does not quote the address.
    """
    if not spec.strip():
        raise ConfigurationError("a model's name must not be blank")
    if re.match(r"\s*(judge:)*https?:.*[?&]\s*api_?key\s*=", spec, re.IGNORECASE | re.DOTALL):
        raise ConfigurationError(
            "a key does not belong into this file: put it into an environment variable, and name that, "
            "?api_key_env=NAME after the model"
        )
    try:
        check_spec(role, spec)
    except ConfigurationError as error:
        if "@" not in spec.partition("hf:")[0]:
            raise
        raise ConfigurationError(
            "this is no address of a model, or it contains a name and a password: write http://HOST:PORT/v1#MODEL, and "
            "put a key into MOTES_API_KEY, or into the variable that ?api_key_env=NAME names"
        ) from error
