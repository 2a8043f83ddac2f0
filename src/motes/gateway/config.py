"""`motes.toml`: the virtual models that the gateway serves, the API keys, and the limits.

    [models.math]                        # the model name that clients use
    lm = "http://127.0.0.1:8000/v1#Qwen/Qwen2.5-Math-1.5B-Instruct"
    reward = "http://127.0.0.1:8001#Qwen/Qwen2.5-Math-PRM-7B"
    particles = 16
    max_particles = 64

    [[keys]]                             # from `motes key team-a`
    name = "team-a"
    sha256 = "…"

A key is 256 random bits, which nobody can guess, so a single SHA-256 protects it. Upstream servers' keys stay in the
environment, see `motes.transport`; the configuration holds no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from motes import api, files, prompts
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.presets import expanded, preset_of
from motes.methods.run import MethodTraits
from motes.tasks.arithmetic import Arithmetic

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # a list, in a file


class Part(BaseModel):
    """A table of the file. Unknown keys and values of other types are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Key(Part):
    """An API key.

    Attributes:
        name: the caller's name in logs and metrics.
        sha256: the key's hash, in hexadecimal digits.
        concurrency: maximum number of requests in flight or waiting.
        requests_per_minute: maximum rate of new requests; None: no limit.
        models: virtual models that the key gives access to; None: all.
    """

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    concurrency: Positive = 64
    requests_per_minute: Positive | None = None
    models: Texts | None = None

    @classmethod
    def make(cls, name: str) -> tuple[str, Key]:
        """A new key: the secret, which is stored nowhere, and its entry in the configuration."""
        secret = f"motes-{secrets.token_urlsafe(32)}"
        return secret, cls(name=name, sha256=digest(secret))


def digest(secret: str) -> str:
    """The hash of a key, as the configuration has it."""
    return hashlib.sha256(secret.encode()).hexdigest()


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

    lm: str
    reward: str | None = None
    outcome_reward: str | None = None
    method: str = "pf"
    methods: Texts = ()
    particles: Positive = 16
    max_particles: Positive | None = None
    deadline: Seconds = 60.0
    max_deadline: Seconds | None = None
    efforts: Mapping[str, Positive] = {}
    max_tokens: Positive | None = None
    prompt: str | None = None
    task: str | None = None
    reasoning: Literal["field", "text"] = "field"
    tool_vote: Literal["call", "name"] = "call"
    tool_ignore: Texts = ()
    sampling: SamplingTable = SamplingTable()  # type: ignore[valid-type]
    examples: Texts = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> VirtualModel:
        if self.is_passed_through:
            if not self.lm.startswith(("http://", "https://")):
                raise ValueError("method = 'none' passes a served model through: its lm is an address, http://…")
            if self.reward is not None or self.outcome_reward is not None or self.methods:
                raise ValueError("method = 'none' needs no reward model, and excludes other methods")
            return self
        for spec in (self.method, *self.methods):
            needs_reward = MethodTraits(method_from_spec(spec, self.particles)).needs_reward
            if needs_reward and self.reward is None:
                raise ConfigurationError(f"the method {spec!r} needs a reward model: name one as `reward`")
        self.open_prompt()
        self.answer_rule()
        self.default_sampling()
        if self.most_particles < self.particles:
            raise ValueError(f"max_particles, {self.max_particles}, is less than particles, {self.particles}")
        for effort, particles in self.efforts.items():
            if particles > self.most_particles:
                raise ValueError(f"efforts: {effort} has {particles} particles, more than {self.most_particles}")
        if self.longest_deadline < self.deadline:
            raise ValueError(f"max_deadline, {self.max_deadline:g}, is less than deadline, {self.deadline:g}")
        return self

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
        prompt = self.open_prompt()
        options = SamplingOptions(**dict(self.sampling))
        return options.apply(Sampling() if prompt is None else prompt.sampling)


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
    models: Annotated[Mapping[str, VirtualModel], Field(min_length=1)]
    keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check_safety(self) -> Config:
        if not self.keys and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from elsewhere, and there is no key: make one (`motes key NAME`), or "
                "listen on 127.0.0.1"
            )
        if "*" in self.cors and not self.keys:
            raise ValueError('cors = ["*"] lets every web page use a gateway without keys: make a key, or name origins')
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names):
            raise ValueError("two keys have the same name: give each its own")
        for key in self.keys:
            for name in key.models or ():
                if name not in self.models:
                    raise ValueError(f"the key {key.name!r} may ask for {name!r}, which is no model here")
        for name, model in self.models.items():
            if model.most_particles > self.limits.particles:
                raise ValueError(
                    f"{name!r} may use {model.most_particles} particles, all together only {self.limits.particles}: "
                    "raise limits.particles, or lower max_particles"
                )
        return self

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
        return parse_config(cls, {**_with_presets(files.read_toml(path), path.parent), **changes}, str(path))

    def key(self, secret: str) -> Key | None:
        """The entry of a secret, None if it has none. The secret is compared with every key, and in constant time."""
        sha256 = digest(secret)
        matches = [key for key in self.keys if hmac.compare_digest(key.sha256, sha256)]
        return matches[-1] if matches else None


def _with_presets(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The file's table, with the method of the preset in the place of each "@FILE", a path from the file's folder. A
    model without `particles` gets the preset's budget."""
    models = table.get("models")
    if not isinstance(models, dict):
        return table
    expanded_models = {}
    for name, model in models.items():
        method = model.get("method") if isinstance(model, dict) else None
        if isinstance(method, str) and (preset := preset_of(method, folder)) is not None:
            model = {"particles": preset.budget, **model, "method": preset.method}
        if isinstance(model, dict) and isinstance(others := model.get("methods"), list):
            model = {**model, "methods": [expanded(m, folder) if isinstance(m, str) else m for m in others]}
        expanded_models[name] = model
    return {**table, "models": expanded_models}


def parse_config(cls: type[Config], table: Mapping[str, Any], source: str) -> Config:
    """The configuration of a table. `source` names its origin in messages.

    Raises:
        ConfigurationError: it cannot work; the message lists every fault with its place.
    """
    try:
        return cls.model_validate(table)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'all of it'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise ConfigurationError(f"{source}: {'; '.join(faults)}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
