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
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from motes import files
from motes.errors import ConfigurationError
from motes.gateway.keys import Key, faults_between
from motes.gateway.shared_address import SharedAddress
from motes.gateway.tables import FaultsError, Name, Part, Positive, Seconds, Texts, faults_of, place, valid_or_none
from motes.gateway.virtual import VirtualModel
from motes.lab.run.presets import expanded, preset_of
from motes.tasks.arithmetic import Arithmetic


class Limits(Part):
    """Limits of the whole gateway.

    Attributes:
        particles: maximum number of particles in flight, all requests together; further requests wait.
        waiting: maximum number of waiting requests; further ones get a 429.
        body_bytes: maximum size of a request.
        upload_bytes: the same for a form, which models that are passed through take: audio, say.
        messages: maximum number of messages in a request.
        choices: maximum number of answers (`n`) to a request.
        heartbeat: seconds without an event after which a stream gets a comment that shows that the gateway is alive.
        drain: seconds that requests in flight have to finish when the gateway stops.
        connections: maximum number of open connections, and at most half of the process's limit on open files. At the
            bound, silent connections make room; further ones are refused.
        head, body: seconds that a client has to send a request's head, and its body.
        idle: seconds that a connection may be without a request, or its client without reading a response.
        shared: address of a Redis or Valkey server through which gateways share the keys' quotas; None: each process
            counts alone. See `motes.gateway.shared_address`.
    """

    particles: Positive = 1024
    waiting: Annotated[int, Field(ge=0)] = 256
    body_bytes: Positive = 1_000_000
    upload_bytes: Positive = 25_000_000
    messages: Positive = 256
    choices: Positive = 16
    heartbeat: Seconds = 10.0
    drain: Seconds = 30.0
    connections: Positive = 2048
    head: Seconds = 10.0
    body: Seconds = 60.0
    idle: Seconds = 75.0
    shared: SharedAddress | None = None


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
        trusted_proxies: addresses or networks of proxies whose header X-Forwarded-For names the client in logs; by
            default none.
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
    trusted_proxies: Texts = ()
    models: Annotated[Mapping[Name, VirtualModel], Field(min_length=1)]
    keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    limits: Limits = Limits()

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ipaddress.ip_network(proxy)
        return proxies

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

    @property
    def takes_forms(self) -> bool:
        """Whether a request may be a form: models that are passed through take them."""
        return any(model.is_passed_through for model in self.models.values())

    @classmethod
    def bundled(cls, **changes: Any) -> Config:
        """A configuration with the bundled models, for everybody on this machine."""
        methods = ("majority", "bon", "wbon", "beam", "dvts", "rebase", "pg", "epf", "islands", "adaptive", "asc")
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
