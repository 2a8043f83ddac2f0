"""Open language models and reward models by name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from motes.arguments import fit, instance_of
from motes.errors import ConfigurationError, MissingExtraError, UnknownNameError, closest
from motes.models.fleet import Fleet
from motes.opening.specs import attribute, is_address, make_own, names_attribute, parse_spec, select_parameters
from motes.protocols import LanguageModel, RewardModel
from motes.rewards.calibration import CalibratedReward, Calibration
from motes.rewards.confidence import ConfidenceReward
from motes.rewards.judge import Judge
from motes.rewards.mixture import MixedReward, Mixture
from motes.rewards.probe import Probe, ProbeReward
from motes.rewards.rubric import Rubric

ROLES: Mapping[str, tuple[str, type]] = {"lm": ("language model", LanguageModel), "prm": ("reward model", RewardModel)}

ENGINES: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "lm": {
        "local": ("motes.models.local", "LocalLanguageModel", "local"),
        "served": ("motes.models.served", "HTTPLanguageModel", "http"),
    },
    "prm": {
        "local": ("motes.rewards.prm", "LocalPRM", "local"),
        "served": ("motes.rewards.served.model", "ServedPRM", "http,tokenizer"),
    },
}
"""The engines by role, for checkpoints and for servers: a module, a class, and the extra that it needs."""


def language_model(spec: str | Sequence[str] | LanguageModel, **options: Any) -> LanguageModel:
    """Open a language model.

    Args:
        spec: "tiny" (bundled), "hf:PATH_OR_NAME" (local, extra `local`; for a GGUF file, see `motes.gguf.find_gguf`,
            extra `gguf`), "http://HOST:PORT/v1#MODEL" (served, extra `http`; https, too), "MODULE:ATTRIBUTE" (your own
            model, or a function that makes one from `options`), or a model, which is returned as is. Options may
            follow, as in "hf:PATH?device=cuda&max_batch_size=64". Several addresses of the same model are one model,
            see `motes.models.fleet.Fleet`.
        options: the engine's options, see `motes.models.local.LocalLanguageModel` and
            `motes.models.served.HTTPLanguageModel.open`.

    Raises:
        ConfigurationError: the spec is not understood, or there is no such model.
        ServerError: the server does not answer requests about its capabilities.
        MissingExtraError: the engine's packages are not installed.
    """
    model: LanguageModel
    if isinstance(spec, str):
        model = _open("lm", *parse_spec(spec, options))
    elif isinstance(spec, (list, tuple)):
        specs = [fit("lm", each, str) for each in spec]
        if others := [each for each in specs if not is_address(each)]:
            raise ConfigurationError(
                f"{others[0]!r}: a list of language models names servers, http://HOST:PORT/v1#MODEL"
            )
        for each in specs:
            check_spec("lm", each)  # a spec with a fault will never work, unlike a server that fails now
        model = Fleet(specs, lambda each: _open_member(each, options))
    else:
        model = instance_of("lm", spec, LanguageModel, "'tiny'")
    return model


def reward_model(spec: str | RewardModel, **options: Any) -> RewardModel:
    """Open a reward model.

    Args:
        spec: "tiny" (bundled), "hf:PATH_OR_NAME" (local, extra `local`), "http://HOST:PORT#MODEL" (served, extras
            `http` and `tokenizer`; https, too), "judge:LM" (LM is any language model's spec), "confidence:MEASURE" (the
            language model's own confidence; without MEASURE its "certainty"), "mix:NAME" (several of these, with the
            weights in a file from `motes calibrate`, or with equal weights, "mix:SPEC,SPEC"), "probe:FOLDER" (a head on
            the language model's own hidden states, extra `local`), "MODULE:ATTRIBUTE" (your own model, or a function
            that makes one from `options`), or a model, which is returned as is. Options may follow, as in
            "tiny?prefix=whole".
        options: the engine's options, see `motes.rewards.prm.LocalPRM.open` and
            `motes.rewards.served.model.ServedPRM.open`. For a judge: those of `motes.Judge`, whose `rubric` may be
            "MODULE:ATTRIBUTE", too, and those of its language model. For confidence: those of
            `motes.ConfidenceReward`. For a probe: `lm`, the spec of a local language model that reads answers which
            come from elsewhere. For any reward model: `calibration`, the name or file of a calibration from `motes
            calibrate`, see `motes.Calibration`.

    Raises:
        ConfigurationError: the spec is not understood, there is no such model, or its scores do not vary.
        ServerError: the server does not answer requests for scores.
        MissingExtraError: the engine's packages are not installed.
    """
    if not isinstance(spec, str):
        model: RewardModel = instance_of("reward", spec, RewardModel, "'tiny'")
        return model
    spec, options = parse_spec(spec, options)
    if (calibration := options.pop("calibration", None)) is not None:
        loaded = Calibration.load(str(calibration))  # before anything large is opened
        return CalibratedReward(reward_model(spec, **options), loaded)
    if spec.startswith("judge:"):
        return _open_judge(spec.removeprefix("judge:"), options)
    if spec.startswith("confidence:"):
        return _open_confidence(spec, options)
    if spec.startswith("mix:"):
        return _open_mixture(spec, options)
    if spec.startswith("probe:"):
        return _open_probe(spec.removeprefix("probe:"), options)
    opened: RewardModel = _open("prm", spec, options)
    return opened


def check_spec(role: str, spec: str) -> None:
    """Check the spec of a language model (`role` "lm") or a reward model ("prm") as far as that is possible without
    opening the model: its form, and for a server the address and the options of the connection.

    Raises:
        ConfigurationError, MissingExtraError: see `language_model` and `reward_model`.
    """
    name, options = parse_spec(spec, {})
    if role == "prm":
        options.pop("calibration", None)
        if name.startswith("confidence:"):
            _open_confidence(name, options)
            return
        if name.startswith("mix:"):
            for member in read_mixture(name, options)[0]:
                check_spec(role, member)
            return
        if name.startswith("probe:"):
            if reader := _reader_of(name, options):
                check_spec("lm", reader)
            return
        if name.startswith("judge:"):
            judges = select_parameters(Judge, options)
            options = {option: value for option, value in options.items() if option not in judges}
            role, name = "lm", name.removeprefix("judge:")
    if names_attribute(name):
        return
    if not is_address(name):
        local_path(name, role)
        return
    _engine(role, name, options)
    from motes.transport import Address, Client

    Client.open(Address.parse(name), **select_parameters(Client.open, options))


def _open_member(spec: str, options: Mapping[str, Any]) -> LanguageModel:
    """One of several servers. It has fewer attempts than a server alone: another one is tried instead."""
    name, options = parse_spec(spec, options)
    return language_model(name, **{"attempts": 2, **options})


def _open(role: str, spec: str, options: Mapping[str, Any]) -> Any:
    """Make the user's own model, or open a model by an engine."""
    if names_attribute(spec):
        return make_own(spec, ROLES[role][1], options)
    path = spec if is_address(spec) else local_path(spec, role)
    return _engine(role, spec, options).open(path, **options)


def _engine(role: str, spec: str, options: Mapping[str, Any]) -> Any:
    """The engine for a checkpoint or a server, which has options of these names."""
    noun = ROLES[role][0]
    module, name, extra = ENGINES[role]["served" if is_address(spec) else "local"]
    try:
        engine = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise MissingExtraError(f"the {noun} {spec!r}", extra) from error
    parameters = inspect.signature(engine.open).parameters
    known = set(parameters)
    if "options" in parameters:  # `open` passes them to the constructor
        known |= set(inspect.signature(engine).parameters)
    if "connection" in parameters:  # `open` passes it to the client
        from motes.transport import Client

        known |= set(inspect.signature(Client.open).parameters)
    known -= {"path", "options", "connection", "address", "model", "vocabulary", "name", "transport"}
    _require_known(options, known)
    return engine


def _require_known(options: Iterable[str], known: Collection[str]) -> None:
    for option in options:
        if option not in known:
            raise UnknownNameError("option", option, known)


def serves_rewards(spec: str, **options: Any) -> bool:
    """Whether the server at an address has a reward model: it was started for one, its model is named like one, or
    `spec` sets `format`.

    Raises:
        ServerError, ConfigurationError: see `motes.transport.identify`.
        MissingExtraError: the packages for servers are not installed.
    """
    spec, options = parse_spec(spec, options)
    if "format" in options:
        return True
    try:
        from motes.rewards.served.probe import is_reward_server
        from motes.transport import Address, Client, now
    except ImportError as error:
        raise MissingExtraError(f"the server {spec!r}", "http") from error
    address = Address.parse(spec)
    client = Client.open(address, **select_parameters(Client.open, options))
    return now(is_reward_server(client, address, options.get("engine")))


def _open_confidence(spec: str, options: Mapping[str, Any]) -> ConfidenceReward:
    _require_known(options, set(inspect.signature(ConfidenceReward).parameters) - {"measure"})
    measures = filter(None, [spec.removeprefix("confidence:")])
    return ConfidenceReward(*measures, **options)  # type: ignore[arg-type]


def _open_probe(folder: str, options: Mapping[str, Any]) -> RewardModel:
    reader = _reader_of(folder, options)
    probe = Probe.load(folder)
    return ProbeReward(probe, reader=None if reader is None else language_model(reader))  # type: ignore[arg-type]


def _reader_of(folder: str, options: Mapping[str, Any]) -> str | None:
    """The language model that reads for a probe; None if it rides on the run's own."""
    _require_known(options, {"lm", "calibration"})
    reader = options.get("lm")
    if reader is not None and (not isinstance(reader, str) or is_address(reader)):
        raise ConfigurationError(f"a probe reads the states of a local model: lm=hf:PATH_OR_NAME, not lm={reader}")
    return reader


def _open_mixture(spec: str, options: Mapping[str, Any]) -> MixedReward:
    members, mixture = read_mixture(spec, options)
    return MixedReward([reward_model(member) for member in members], mixture)


def read_mixture(spec: str, options: Mapping[str, Any]) -> tuple[Sequence[str], Mixture | None]:
    """The specs of the reward models that "mix:NAME" or "mix:SPEC,SPEC" names, and their weights."""
    _require_known(options, {"calibration"})
    rest = spec.removeprefix("mix:")
    if "," in rest:
        return [member.strip() for member in rest.split(",")], None
    mixture = Mixture.load(rest)
    return mixture.rewards, mixture


def _open_judge(lm: str, options: Mapping[str, Any]) -> Judge:
    own = select_parameters(Judge, options)
    rubric = own.get("rubric", "step")
    if isinstance(rubric, str) and ":" in rubric:
        own["rubric"] = attribute(rubric)
        if not isinstance(own["rubric"], Rubric):
            raise ConfigurationError(f"{rubric!r} is not a Rubric")
    rest = {name: value for name, value in options.items() if name not in own}
    return Judge(language_model(lm, **rest), **own)


def local_path(spec: str, role: str) -> str:
    if spec == "tiny":
        from motes import bundled

        return str(bundled.path(role))
    scheme, _, rest = spec.partition(":")
    if scheme == "hf" and rest:
        return rest
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+(/.+\.gguf)?", spec, re.IGNORECASE)
    is_path = spec != "" and (os.path.exists(os.path.expanduser(spec)) or on_hub is not None)
    suggestion = f"hf:{spec}" if is_path else closest(spec, ("tiny",))
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    raise ConfigurationError(
        f"{spec!r} names no model: {hint}"
        "use 'tiny', 'hf:PATH_OR_NAME', 'http://HOST:PORT/v1#MODEL' or 'MODULE:ATTRIBUTE'"
        + (", a 'judge:' before one, 'confidence:' or 'probe:FOLDER'" if role == "prm" else "")
    )
