"""`motes.toml`: the virtual models that the gateway serves, the API keys, and the limits.

    [models.math]                        # the model name that clients use
    lm = "http://127.0.0.1:8000/v1#Qwen/Qwen2.5-Math-1.5B-Instruct"
    reward = "http://127.0.0.1:8001#Qwen/Qwen2.5-Math-PRM-7B"
    particles = 16
    max_particles = 64

    [[keys]]                             # from `motes key team-a`
    name = "team-a"
    sha256 = "…"

Upstream servers' keys stay in the environment, see `motes.transport`; the configuration holds no secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from motes import api, files, prompts
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError
from motes.gateway.keys import Key, faults_between
from motes.gateway.tables import (
    MAX_COUNT,
    FaultsError,
    Name,
    Part,
    Positive,
    Seconds,
    Spec,
    Texts,
    faults_of,
    place,
    valid_or_none,
)
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.presets import expanded, preset_of
from motes.methods.run import MethodTraits
from motes.opening import check_spec
from motes.tasks.arithmetic import Arithmetic

SamplingTable = create_model(
    "SamplingTable", __base__=Part, **{name: (kind, None) for name, kind in get_type_hints(SamplingOptions).items()}
)  # type: ignore[call-overload]
"""The table `sampling`. Its keys are the fields of `SamplingOptions`."""


class VirtualModel(Part):
    """What clients see as one model: a language model, a reward model, a method, and limits for requests.

    Attributes:
        lm, reward, outcome_reward: see `motes.language_model` and `motes.reward_model`. Requests cannot name them.
        method: the default method, a method spec. "none": the model is passed through as it is, see
            `motes.gateway.relay`.
        methods: further methods that a request may choose.
        particles: the default budget.
        max_particles: the largest budget that a request may choose; by default `particles`.
        deadline: seconds after which the best answer so far is returned.
        max_deadline: the longest deadline that a request may choose; by default `deadline`.
        efforts: the budget for each value of a request's `reasoning_effort`, such as {low = 4, high = 32}; within
            `max_particles`.
        max_tokens: the most tokens of one answer that a request may choose; None: as many as fit the model's context.
        prompt: the prompt format, see `motes.prompt`.
        task: the task whose rule reads the answers, see `motes.api.answer_rule`.
        reasoning: where a chat's answer has what the model thinks: "field", in `reasoning_content`; "text", between its
            tags in `content`.
        tool_vote: which tool calls count as the same answer: "call", with the same arguments, or "name", with any.
        tool_ignore: names of arguments that do not count when calls are compared.
        sampling: settings of the language model's sampling, which a request may override, and of where steps end.
        examples: questions that the page at `/` offers.
    """

    lm: Spec
    reward: Spec | None = None
    outcome_reward: Spec | None = None
    particles: Positive = 16
    max_particles: Positive | None = None
    method: Annotated[Spec, Field(validate_default=True)] = "pf"
    methods: Annotated[tuple[Spec, ...], Field(strict=False)] = ()
    deadline: Seconds = 60.0
    max_deadline: Seconds | None = None
    efforts: Mapping[str, Positive] = {}
    max_tokens: Positive | None = None
    prompt: Spec | None = None
    task: Spec | None = None
    reasoning: Literal["field", "text"] = "field"
    tool_vote: Literal["call", "name"] = "call"
    tool_ignore: Texts = ()
    sampling: SamplingTable = SamplingTable()  # type: ignore[valid-type]
    examples: Texts = ()

    # A validator of a field sees the fields above it, as far as they have no fault.

    @field_validator("lm")
    @classmethod
    def _check_lm(cls, spec: str) -> str:
        _check_model("lm", spec)
        return spec

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
            if not re.match("https?://", info.data.get("lm", "http://")):
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

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str | None) -> str | None:
        if task is not None:
            api.answer_rule(task)
        return task

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
        return None if self.task is None else api.answer_rule(self.task)

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


class Limits(Part):
    """Limits of the whole gateway.

    Attributes:
        particles: maximum number of particles in flight, all requests together; further requests wait.
        waiting: maximum number of waiting requests; further ones get a 429.
        body_bytes: maximum size of a request.
        messages: maximum number of messages in a request.
        choices: maximum number of answers (`n`) to a request.
        heartbeat: seconds without an event after which a stream gets a comment that shows that the gateway is alive.
        drain: seconds that requests in flight have to finish when the gateway stops.
        connections: maximum number of open connections, and at most half of the process's limit on open files. At the
            bound, silent connections make room; further ones are refused.
        head, body: seconds that a client has to send a request's head, and its body.
        idle: seconds that a connection may be without a request, or its client without reading a response.
    """

    particles: Positive = 1024
    waiting: Annotated[int, Field(ge=0)] = 256
    body_bytes: Positive = 1_000_000
    messages: Positive = 256
    choices: Positive = 16
    heartbeat: Seconds = 10.0
    drain: Seconds = 30.0
    connections: Positive = 2048
    head: Seconds = 10.0
    body: Seconds = 60.0
    idle: Seconds = 75.0


class Config(Part):
    """The gateway's configuration.

    Attributes:
        host, port: the address to listen on. Without keys it must be a loopback address.
        hosts: further host names under which a gateway without keys answers; it always answers under those of this
            machine, such as localhost.
        playground: whether there is a page at `/` to try the models.
        cors: origins of web pages that may use the gateway from a browser, such as "https://app.example"; "*": all,
            which needs keys.
        strict: whether a request with a field that has no effect is refused; otherwise the field is left out, and the
            response's header X-Motes-Ignored names it.
        models: the virtual models, by the name that clients use.
        keys: the API keys; without keys everybody on this machine has access.
        limits: see `Limits`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    hosts: Texts = ()
    playground: bool = True
    cors: Texts = ()
    strict: bool = False
    models: Annotated[Mapping[Name, VirtualModel], Field(min_length=1)]
    keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    limits: Limits = Limits()

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        try:
            is_name = re.fullmatch(r"[\w.:%-]+", host) is not None and bool(host.encode("idna"))
        except UnicodeError:
            is_name = False
        if not is_name:
            raise ValueError("Input should be a name or an IP address, such as 127.0.0.1")
        return host

    @model_validator(mode="wrap")
    @classmethod
    def _find_all_faults(cls, table: Any, parse: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise one error for all faults: those within tables, and those between tables without faults."""
        faults: dict[str, str] = {}
        try:
            config = parse(table)
        except ValidationError as error:
            faults = faults_of(error)
        if isinstance(table, Mapping):
            for where, message in _faults_between(table):
                faults.setdefault(where, message)
        if faults:
            raise FaultsError(faults)
        return config

    @classmethod
    def bundled(cls, **changes: Any) -> Config:
        """A configuration with the bundled models, for everybody on this machine."""
        methods = ("majority", "bon", "wbon", "beam", "dvts", "rebase", "pg", "epf", "islands", "adaptive")
        examples = tuple(problem.question for problem in Arithmetic().problems("validation")[:5])
        tiny = VirtualModel(
            lm="tiny", reward="tiny", task="arithmetic", methods=methods, max_particles=256, examples=examples
        )
        return parse_config(cls, {"models": {"tiny": tiny}, **changes}, "the settings")

    @classmethod
    def load(cls, path: Path, **changes: Any) -> Config:
        """Read a file; `changes` override it.

        Raises:
            ConfigurationError: it cannot be read, or its settings cannot work; the message lists every fault.
        """
        table, faults = _with_presets(files.read_toml(path), path.parent)
        return parse_config(cls, {**table, **changes}, str(path), faults)


def parse_config(
    cls: type[Config], table: Mapping[str, Any], source: str, faults: Mapping[str, str] | None = None
) -> Config:
    """The configuration of a table.

    Args:
        source: its origin, for messages.
        faults: those that are known already, by their places.

    Raises:
        ConfigurationError: it cannot work; the message lists every fault with its place.
    """
    found = dict(faults or {})
    try:
        config = cls.model_validate(table)
    except ValidationError as error:
        found = {**faults_of(error), **found}
    if found:
        raise ConfigurationError(f"{source}: {FaultsError(found)}")
    return config


def _with_presets(table: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's table with the presets that "@FILE" names, paths from the file's folder; and the faults of presets."""
    faults: dict[str, str] = {}
    models = table.get("models")
    if not isinstance(models, dict):
        return table, faults
    expanded_models = dict(models)
    for name, model in models.items():
        for field in ("method", "methods"):
            try:
                if isinstance(model, dict):
                    model = _with_preset(model, field, folder)
            except ConfigurationError as error:
                faults[place("models", name, field)] = str(error)
        expanded_models[name] = model
    return {**table, "models": expanded_models}, faults


def _with_preset(model: dict[str, Any], field: str, folder: Path) -> dict[str, Any]:
    """The table of a model with presets in the place of "@FILE" in one field. A model without `particles` gets the
    budget of the preset of its method."""
    value = model.get(field)
    if isinstance(value, str) and (preset := preset_of(value, folder)) is not None:
        return {"particles": preset.budget, **model, field: preset.method}
    if isinstance(value, list):
        return {**model, field: [expanded(spec, folder) if isinstance(spec, str) else spec for spec in value]}
    return model


def _faults_between(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The faults between tables, with their places."""
    models = table.get("models")
    models = models if isinstance(models, Mapping) else {}
    limits = valid_or_none(Limits, table.get("limits", {}))
    for name, entry in models.items():
        model = valid_or_none(VirtualModel, entry)
        if model is not None and limits is not None and model.most_particles > limits.particles:
            message = (
                f"{model.most_particles} particles are more than all requests together may use, {limits.particles}: "
                "raise limits.particles, or lower max_particles"
            )
            yield place("models", name, "particles" if model.max_particles is None else "max_particles"), message
    keys = table.get("keys", ())
    if not keys and isinstance(host := table.get("host", "127.0.0.1"), str) and not _is_loopback(host):
        yield (
            "host",
            f"{host} can be reached from elsewhere, and there is no key: make one (`motes key NAME`), or listen on "
            "127.0.0.1",
        )
    cors = table.get("cors")
    if not keys and isinstance(cors, list | tuple) and "*" in cors:
        yield "cors", '"*" lets every web page use a gateway without keys: make a key, or name origins'
    yield from faults_between(keys if isinstance(keys, list | tuple) else (), models)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
