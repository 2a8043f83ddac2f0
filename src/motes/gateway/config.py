"""`motes.toml`: which virtual models the gateway serves, to whom, and within which limits.

    [models.math]                        # what clients ask for
    lm = "http://127.0.0.1:8000/v1#Qwen/Qwen2.5-Math-1.5B-Instruct"
    reward = "http://127.0.0.1:8001#Qwen/Qwen2.5-Math-PRM-7B"
    particles = 16
    max_particles = 64

    [[keys]]                             # from `motes key team-a`
    name = "team-a"
    sha256 = "…"

A key is 256 random bits, so that one round of SHA-256 keeps it: there is nothing to guess. Upstreams' own keys stay in
the environment, see `motes.transport`; the configuration holds no secret.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from motes import api, files, prompts
from motes.core import Sampling, SamplingOptions
from motes.errors import ConfigurationError, MissingExtraError, MotesError
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.presets import expanded, preset_of
from motes.methods.run import Method, MethodTraits
from motes.tasks.arithmetic import Arithmetic

try:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator
except ImportError as error:
    raise MissingExtraError("the gateway", "serve") from error

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # a list, in a file


class Part(BaseModel):
    """A table of the file: what it may not say is an error, values of another type are not made to fit, and nobody
    changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Key(Part):
    """Who may ask.

    Attributes:
        name: in logs and metrics.
        sha256: of the key, in hexadecimal digits.
        concurrency: requests that it may have in flight.
        requests_per_minute: that it may begin; None: any number.
        models: that it may ask for; None: all.
    """

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    concurrency: Positive = 64
    requests_per_minute: Positive | None = None
    models: Texts | None = None

    @classmethod
    def make(cls, name: str) -> tuple[str, Key]:
        """A new key, which is told once, and what the configuration keeps of it."""
        secret = f"motes-{secrets.token_urlsafe(32)}"
        return secret, cls(name=name, sha256=digest(secret))


def digest(secret: str) -> str:
    """What a configuration keeps of a key."""
    return hashlib.sha256(secret.encode()).hexdigest()


Sampled = create_model(
    "Sampled", __base__=Part, **{name: (kind, None) for name, kind in get_type_hints(SamplingOptions).items()}
)  # type: ignore[call-overload]
"""The table `sampling`: the fields of `SamplingOptions`."""


class VirtualModel(Part):
    """What clients call a model: a language model, a reward model, a method, and how far a request may go.

    Attributes:
        lm, reward, outcome_reward: see `motes.language_model` and `motes.reward_model`. A request never names them.
        method: a method spec.
        methods: others that a request may choose.
        particles: the budget.
        max_particles: the largest that a request may choose, by default the same.
        deadline: seconds after which the best answer so far is given.
        max_deadline: the longest that a request may choose, by default the same.
        max_tokens: of one answer, the most that a request may choose; None: what the model's context holds.
        prompt: how the model is asked, see `motes.prompt`.
        task: whose rule reads answers, see `motes.api.answer_rule`.
        sampling: how the language model is sampled unless a request says otherwise, and where its steps end.
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
    max_tokens: Positive | None = None
    prompt: str | None = None
    task: str | None = None
    sampling: Sampled = Sampled()  # type: ignore[valid-type]
    examples: Texts = ()

    @model_validator(mode="after")
    def _consistent(self) -> VirtualModel:
        try:
            for spec in (self.method, *self.methods):
                needs_reward = MethodTraits.of(self.chosen(spec, self.particles)).needs_reward
                if needs_reward and self.reward is None:
                    raise ConfigurationError(f"the method {spec!r} needs a reward model: name one as `reward`")
            self.asked()
            self.rule()
            self.base()
        except MotesError as error:
            raise ValueError(str(error)) from error
        if self.most_particles < self.particles:
            raise ValueError(f"max_particles, {self.max_particles}, is less than particles, {self.particles}")
        if self.longest < self.deadline:
            raise ValueError(f"max_deadline, {self.max_deadline:g}, is less than deadline, {self.deadline:g}")
        return self

    @property
    def most_particles(self) -> int:
        return self.particles if self.max_particles is None else self.max_particles

    @property
    def longest(self) -> float:
        return self.deadline if self.max_deadline is None else self.max_deadline

    def chosen(self, spec: str, particles: int) -> Method:
        """The method of a request."""
        return method_from_spec(spec, particles)

    def asked(self) -> prompts.Prompt | None:
        """How the language model is asked."""
        return None if self.prompt is None else prompts.prompt(self.prompt)

    def rule(self) -> Any:
        """Whose rule reads answers; None: the last box."""
        return None if self.task is None else api.answer_rule(self.task)

    def base(self) -> Sampling:
        """The sampling of requests that say nothing of it."""
        prompt = self.asked()
        options = SamplingOptions(**dict(self.sampling))
        return options.apply(Sampling() if prompt is None else prompt.sampling)


class Limits(Part):
    """What the whole gateway bears.

    Attributes:
        particles: in flight, all requests together; a request waits until its own have room.
        waiting: requests that may wait; more are told to come back.
        body_bytes, messages: of one request.
        choices: answers (`n`) of one request.
        heartbeat: seconds without anything to tell after which a stream is told that the gateway is alive.
        drain: seconds that requests in flight have to finish when the gateway is told to stop.
    """

    particles: Positive = 1024
    waiting: Annotated[int, Field(ge=0)] = 256
    body_bytes: Positive = 1_000_000
    messages: Positive = 256
    choices: Positive = 16
    heartbeat: Seconds = 10.0
    drain: Seconds = 30.0


class Config(Part):
    """Everything that the gateway is told.

    Attributes:
        host, port: where it listens. Without keys this must be a loopback address.
        playground: whether there is a page at `/` to ask on.
        models: by the name that clients ask for.
        keys: of those who may ask; none: whoever is on this machine.
        limits: see `Limits`.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    playground: bool = True
    models: Annotated[Mapping[str, VirtualModel], Field(min_length=1)]
    keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _safe(self) -> Config:
        if not self.keys and not _is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from elsewhere, and there is no key: make one (`motes key NAME`), or "
                "listen on 127.0.0.1"
            )
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
        """The bundled models, for whoever is on this machine."""
        methods = ("majority", "bon", "wbon", "beam", "dvts", "rebase", "pg", "epf", "islands", "adaptive")
        examples = tuple(problem.question for problem in Arithmetic().problems("validation")[:5])
        tiny = VirtualModel(
            lm="tiny", reward="tiny", task="arithmetic", methods=methods, max_particles=256, examples=examples
        )
        return checked(cls, {"models": {"tiny": tiny}, **changes}, "the settings")

    @classmethod
    def load(cls, path: Path, **changes: Any) -> Config:
        """Read a file; `changes` win.

        Raises:
            ConfigurationError: it cannot be read, or what it says cannot work: every fault with its place.
        """
        return checked(cls, {**_with_presets(files.read_toml(path), path.parent), **changes}, str(path))

    def key(self, secret: str) -> Key | None:
        """Whose key this is. Every one is compared, each in constant time."""
        offered, found = digest(secret), None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, offered):
                found = key
        return found


def _with_presets(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The file with methods in the place of the "@FILE" that name them, from the file's own folder, and the preset's
    budget where the model has no particles of its own."""
    models = told.get("models")
    if not isinstance(models, dict):
        return told
    read = {}
    for name, model in models.items():
        method = model.get("method") if isinstance(model, dict) else None
        if isinstance(method, str) and (preset := preset_of(method, folder)) is not None:
            model = {"particles": preset.budget, **model, "method": preset.method}
        if isinstance(model, dict) and isinstance(others := model.get("methods"), list):
            model = {**model, "methods": [expanded(m, folder) if isinstance(m, str) else m for m in others]}
        read[name] = model
    return {**told, "models": read}


def checked(cls: type[Config], told: Mapping[str, Any], where: str) -> Config:
    """What is told as a configuration.

    Raises:
        ConfigurationError: every fault with its place.
    """
    try:
        return cls.model_validate(told)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])) or 'all of it'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors()
        ]
        raise ConfigurationError(f"{where}: {'; '.join(faults)}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
