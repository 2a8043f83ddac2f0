"""Open language models, reward models and tasks by name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from motes.arguments import fit, instance_of, parse_options
from motes.errors import ConfigurationError, MissingExtraError, UnknownNameError, closest
from motes.models.fleet import Fleet
from motes.protocols import AnswerRule, LanguageModel, RewardModel, Task
from motes.rewards.calibration import CalibratedReward, Calibration
from motes.rewards.confidence import ConfidenceReward
from motes.rewards.judge import Judge
from motes.rewards.mixture import MixedReward, Mixture
from motes.rewards.rubric import Rubric
from motes.tasks import DECLARED, Benchmark, BoxedAnswers, read_by, split_rule
from motes.tasks import answer_rule as answer_rule_named
from motes.tasks import task as task_named


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
            weights in a file from `motes calibrate`, or with equal weights, "mix:SPEC,SPEC"), "MODULE:ATTRIBUTE" (your
            own model, or a function that makes one from `options`), or a model, which is returned as is. Options may
            follow, as in "tiny?prefix=whole".
        options: the engine's options, see `motes.rewards.prm.LocalPRM.open` and
            `motes.rewards.served.model.ServedPRM.open`. For a judge: those of `motes.Judge`, whose `rubric` may be
            "MODULE:ATTRIBUTE", too, and those of its language model. For confidence: those of
            `motes.ConfidenceReward`. For any reward model: `calibration`, the name or file of a calibration from `motes
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
            for member in _read_mixture(name, options)[0]:
                check_spec(role, member)
            return
        if name.startswith("judge:"):
            judges = _select_parameters(Judge, options)
            options = {option: value for option, value in options.items() if option not in judges}
            role, name = "lm", name.removeprefix("judge:")
    if _names_attribute(name):
        return
    if not is_address(name):
        _local_path(name, role)
        return
    _engine(role, name, options)
    from motes.transport import Address, Client

    Client.open(Address.parse(name), **_select_parameters(Client.open, options))


SCHEMES = ("hf:", "judge:", "confidence:", "mix:")
"""Beginnings of specs that name no module."""

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


def _open_member(spec: str, options: Mapping[str, Any]) -> LanguageModel:
    """One of several servers. It has fewer attempts than a server alone: another one is tried instead."""
    name, options = parse_spec(spec, options)
    return language_model(name, **{"attempts": 2, **options})


def is_address(spec: str) -> bool:
    """Whether a spec is the address of a server."""
    return spec.lower().startswith(("http://", "https://"))


def _open(role: str, spec: str, options: Mapping[str, Any]) -> Any:
    """Make the user's own model, or open a model by an engine."""
    if _names_attribute(spec):
        return _make_own(spec, ROLES[role][1], options)
    path = spec if is_address(spec) else _local_path(spec, role)
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
    for option in options:
        if option not in known:
            raise UnknownNameError("option", option, known)
    return engine


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
    client = Client.open(address, **_select_parameters(Client.open, options))
    return now(is_reward_server(client, address, options.get("engine")))


def task(spec: str | Task, *, run_code: bool = True) -> Task:
    """Open a task.

    Args:
        spec: NAME, FILE.jsonl or NAME:FILE.jsonl with options, see `motes.tasks.task`; "MODULE:ATTRIBUTE" (your own
            task, or a function that makes one from the options), or a task, which is returned as is. With the option
            `rule`, as in "FILE.jsonl?rule=last-number", another rule reads the answers, see `answer_rule`; the task
            compares and grades them.
        run_code: False for a spec from somebody else: then only motes's own tasks and files of problems are opened, no
            code, and of the hub's data sets only what their authors published.

    Raises:
        ConfigurationError: the spec is not understood, there is no such task, or it may not be opened.
        MissingExtraError: grading needs a package that is not installed.
    """
    if not isinstance(spec, str):
        return spec
    source, rule = split_rule(spec)
    name, options = parse_spec(source, {})
    is_code = _is_code(name)
    if not run_code and (is_code or _is_code(rule or "") or "revision" in options or "sandbox" in options):
        if "sandbox" in options:
            risk = "says how programs are confined"
        elif is_code:
            risk = "is code"
        elif _is_code(rule or ""):
            risk = f"has the rule {rule!r}, which is code"
        else:
            risk = "is a revision that anybody may have written"
        raise ConfigurationError(
            f"the task {spec!r} {risk}, and only the directory names it: if you know what it does, name it yourself, "
            f"`--task {shlex.quote(spec)}`, or allow it by `--run-code`"
        )
    if rule is not None:
        return cast(Task, read_by(task(source, run_code=run_code), answer_rule(rule)))
    if is_code:
        own: Task = _make_own(name, Task, options)
        return own
    named = task_named(spec)
    if not run_code and isinstance(named, Benchmark) and named.path is not None and not named.path.is_file():
        raise ConfigurationError(f"the task {spec!r}: {named.path} is not a file: name the task yourself, `--task …`")
    return named


def _is_code(spec: str) -> bool:
    """Whether the spec of a task or a rule names a user's own."""
    name = spec.strip().partition("?")[0]
    return _names_attribute(name) and name.partition(":")[0] not in DECLARED


def answer_rule(spec: str | AnswerRule | None, rule: str | AnswerRule | None = None) -> AnswerRule:
    r"""Open the rule by which answers are read and compared.

    Args:
        spec: the name of a rule: "boxed", "answer-is", "last-number", "last-line", "whole-text",
            r"regex?pattern=A: (\d+)", "exact-match", "multiple-choice", "math"; the name of a task, see `task`, whose
            rule it is; "MODULE:ATTRIBUTE" (your own rule, which needs no problems); a rule, which is returned as is; or
            None, the last box of a text.
        rule: another rule, which reads the answers that the first one compares.

    Raises:
        ConfigurationError, MissingExtraError: as for `task`.
    """
    if rule is not None:
        return answer_rule(rule) if spec is None else read_by(answer_rule(spec), answer_rule(rule))
    if spec is None:
        return BoxedAnswers()
    if not isinstance(spec, str):
        return spec
    spec, reader = split_rule(spec)
    if reader is not None:
        return answer_rule(spec, reader)
    name, options = parse_spec(spec, {})
    if _is_code(name):
        own: AnswerRule = _make_own(name, AnswerRule, options)
        return own
    return answer_rule_named(spec)


def _open_confidence(spec: str, options: Mapping[str, Any]) -> ConfidenceReward:
    known = set(inspect.signature(ConfidenceReward).parameters) - {"measure"}
    for option in options:
        if option not in known:
            raise UnknownNameError("option", option, known)
    measures = filter(None, [spec.removeprefix("confidence:")])
    return ConfidenceReward(*measures, **options)  # type: ignore[arg-type]


def _open_mixture(spec: str, options: Mapping[str, Any]) -> MixedReward:
    members, mixture = _read_mixture(spec, options)
    return MixedReward([reward_model(member) for member in members], mixture)


def _read_mixture(spec: str, options: Mapping[str, Any]) -> tuple[Sequence[str], Mixture | None]:
    """The specs of the reward models that "mix:NAME" or "mix:SPEC,SPEC" names, and their weights."""
    if options:
        raise UnknownNameError("option", next(iter(options)), ("calibration",))
    rest = spec.removeprefix("mix:")
    if "," in rest:
        return [member.strip() for member in rest.split(",")], None
    mixture = Mixture.load(rest)
    return mixture.rewards, mixture


def _open_judge(lm: str, options: Mapping[str, Any]) -> Judge:
    own = _select_parameters(Judge, options)
    rubric = own.get("rubric", "step")
    if isinstance(rubric, str) and ":" in rubric:
        own["rubric"] = attribute(rubric)
        if not isinstance(own["rubric"], Rubric):
            raise ConfigurationError(f"{rubric!r} is not a Rubric")
    rest = {name: value for name, value in options.items() if name not in own}
    return Judge(language_model(lm, **rest), **own)


def parse_spec(spec: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name in a spec and all options; those in `options` override those in the spec."""
    name, _, query = spec.strip().partition("?")
    return name, {**{key: _parse_value(text) for key, text in parse_options(query).items()}, **options}


def _parse_value(text: str) -> int | float | str:
    """The value of an option: a number if the text is one. Python does not convert texts of thousands of digits."""
    if text.isascii() and text.isdigit() and len(text) < 100:
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text) else text


def _select_parameters(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are parameters of a function or a class."""
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}


def _local_path(spec: str, role: str) -> str:
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
        + (", a 'judge:' before one, or 'confidence:'" if role == "prm" else "")
    )


def _names_attribute(spec: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", spec) is not None and not spec.startswith(SCHEMES)


def attribute(spec: str) -> Any:
    """The object that "MODULE:ATTRIBUTE" names. The module may also be in the working directory.

    This runs the module's code: `spec` must come from the person who runs this program, never from a file.

    Raises:
        ConfigurationError: there is no such module, or it has no such attribute.
    """
    module_name, _, name = spec.partition(":")
    with contextlib.suppress(FileNotFoundError):  # the working directory may be gone
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigurationError(f"{spec!r}: there is no module {error.name!r} on the Python path") from error
    if (value := getattr(module, name, None)) is None:
        close = closest(name, (public for public in dir(module) if not public.startswith("_")))
        hint = f": did you mean {close!r}?" if close else ""
        raise ConfigurationError(f"{spec!r}: the module {module_name!r} has no {name!r}{hint}")
    return value


def _make_own(spec: str, protocol: Any, options: Mapping[str, Any]) -> Any:
    """The object in a user's module, or the one that its function makes; it must implement `protocol`."""
    model = attribute(spec)
    if callable(model) and (isinstance(model, type) or not isinstance(model, protocol)):
        try:
            model = model(**options)
        except TypeError as error:
            raise ConfigurationError(f"{spec!r} makes no {protocol.__name__}: {error}") from error
    if not isinstance(model, protocol):
        raise ConfigurationError(f"{spec!r} is no {protocol.__name__}: it must be one, or a function that makes one")
    return model


class Opened:
    """Objects that take long to open, by name: each is opened once per process. If several threads request a name at
    the same time, the first one opens it.

    A forked process starts with an empty cache, because it lacks the threads that work for the opened objects.
    """

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Release all objects. The next request for a name opens it again."""
        self._lock = threading.Lock()
        self._futures: dict[Hashable, tuple[Any, Future[Any]]] = {}

    def get(self, name: Hashable, state: Any, open_it: Callable[[], Any]) -> Any:
        """The object with that name. `open_it` opens it in the first call, and again when `state` has changed, which is
        everything else that the object depends on. A failure is not cached."""
        with self._lock:
            previous_state, future = self._futures.get(name, (state, None))
            is_mine = future is None or previous_state != state
            if is_mine:
                future = Future()
                self._futures[name] = state, future
        assert future is not None
        if is_mine:
            try:
                future.set_result(open_it())
            except BaseException as error:
                with self._lock:
                    if self._futures.get(name, (None, None))[1] is future:
                        del self._futures[name]
                future.set_exception(error)
        return future.result()


_MODELS = Opened()


def close_models() -> None:
    """Release the models that `solve` opened by name and keeps for later calls.

    A run in progress keeps its models until it ends.
    """
    _MODELS.forget()


def open_once(open_model: Callable[..., Any], spec: str) -> Any:
    """The model with that spec, which the first call opens. A calibration is read each time, because it is small and
    `motes calibrate` may have changed it."""
    name, options = parse_spec(spec, {})
    calibration = options.pop("calibration", None) if open_model is reward_model else None
    loaded = None if calibration is None else Calibration.load(str(calibration))
    key = open_model, name, tuple(sorted(options.items()))
    model = _MODELS.get(key, _opening_state(name, options), lambda: open_model(name, **options))
    return model if loaded is None else CalibratedReward(model, loaded)


SETTINGS = re.compile(r"(MOTES|OPENAI|HF|CUDA|SSL)_\w+|\w+_PROXY", re.IGNORECASE)
"""Environment variables on which the opening of a model depends: keys, proxies, folders, devices."""


def _opening_state(name: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Everything on which the opening of a model depends, except its name: the environment, the files of a checkpoint,
    and a module's attribute, because the module may have been reloaded."""
    variables = {key: value for key, value in os.environ.items() if SETTINGS.fullmatch(key)}
    if (variable := options.get("api_key_env")) is not None:
        variables[str(variable)] = os.environ.get(str(variable), "")
    files: list[tuple[str, int]] = []
    with contextlib.suppress(OSError):
        path = Path(os.path.expanduser(name.removeprefix("judge:").removeprefix("hf:"))).absolute()
        found = [path] if path.is_file() else sorted(path.iterdir())
        files = [(str(file), file.stat().st_mtime_ns) for file in found]
    return variables, files, attribute(name) if _names_attribute(name) else None
