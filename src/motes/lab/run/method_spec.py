"""Method specs: methods as text, on the command line, in an evaluation's configuration and in its records.

    pf                                     the method with that id, with its default settings
    pf:paper                               a preset of it
    pf:ess_threshold=1.0:selector=argmax   with settings, which override a preset's
    my_methods:Mine:patience=2             your own class, whose module is on the Python path, with a setting
    pt:num_sweeps=8:ladder=1/0.5/0.25      a setting with several values, separated by slashes

The budget is never part of a spec. Methods with several sweeps, chains or islands divide the budget evenly.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from motes import api
from motes.errors import ConfigurationError, MotesError, UnknownNameError
from motes.methods import METHODS, EntropicParticleFilter, ParticleFilter, method
from motes.methods.method import Method, MethodTraits

PRESETS: Mapping[str, Mapping[str, Callable[[int], Method]]] = MappingProxyType(
    {"pf": {"paper": ParticleFilter.paper}, "epf": {"paper": EntropicParticleFilter.paper}}
)
"""For each method id, its presets by name: functions from a budget to a method."""

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "greedy": "pass@1 (greedy)",
        "majority": "majority vote",
        "bon": "best of N",
        "wbon": "weighted best of N",
        "beam": "beam search",
        "dvts": "DVTS",
        "rebase": "REBASE",
        "pf": "particle filter",
        "pg": "particle Gibbs",
        "pt": "parallel tempering",
        "epf": "entropic filter",
        "islands": "islands",
        "adaptive": "adaptive budget",
        "power": "power filter",
        "asc": "adaptive self-consistency",
        "deepconf": "DeepConf",
        "refine": "refinement",
        "pdr": "parallel, distil, refine",
    }
)
"""The usual name of each method, by its id."""


def method_from_spec(spec: str, budget: int) -> Method:
    """The method with this spec and budget (number of trajectories; `greedy` always draws one).

    Raises:
        UnknownNameError: no method, preset or setting has that name.
        ConfigurationError: a value is not of its setting's type or range, or the budget is less than 1.
    """
    name, parts = _split(spec)
    cls = METHODS[name] if name in METHODS else api.attribute(name)
    preset: Callable[[int], Method] | None = None
    settings: dict[str, str] = {}
    for i, part in enumerate(parts):
        field, equals, value = part.partition("=")
        if equals:
            settings[field] = value
        elif i == 0 and name in METHODS:
            presets = PRESETS.get(name, {})
            if part not in presets:
                raise UnknownNameError(f"preset of {name}", part, presets or ("none",))
            preset = presets[part]
        else:
            raise ConfigurationError(f"{part!r} in the method {spec!r} is not a setting: write FIELD=VALUE")
    values = _parse_settings(cls, settings)
    if preset is None:
        return method(name, budget, **values) if name in METHODS else _make_own(name, cls, budget, values)
    preset_method: Any = preset(budget)
    changed: Method = dataclasses.replace(preset_method, **values)
    return changed


def draws_independently(spec: str) -> bool:
    """Whether the method's answers are independent samples of the language model; False for an unknown method."""
    return MethodTraits(METHODS.get(spec.partition(":")[0])).independent


def draws_one(spec: str) -> bool:
    """Whether the method draws one trajectory whatever the budget, as `greedy` does; False for an unknown method, and
    for a user's own method, whose code is not run for this."""
    try:
        return not is_own(spec) and method_from_spec(spec, 2).budget == 1
    except MotesError:
        return False


def is_own(spec: str) -> bool:
    """Whether the method is a user's own code, MODULE:CLASS, which runs when the method is made."""
    name, *parts = spec.split(":")
    return name not in METHODS and bool(parts) and "=" not in parts[0]


def _split(spec: str) -> tuple[str, list[str]]:
    """A method's name, which is an id or MODULE:CLASS, and the parts that follow it."""
    name, *parts = spec.split(":")
    if is_own(spec):
        return f"{name}:{parts[0]}", parts[1:]
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return name, parts


def _make_own(name: str, cls: Any, budget: int, values: Mapping[str, Any]) -> Method:
    """Make a method of a user's own class."""
    try:
        own = (MethodTraits(cls).of_budget or cls)(budget, **values)
    except TypeError as error:
        raise ConfigurationError(f"{name!r} makes no method of a budget: {error}") from error
    if not isinstance(own, Method):
        raise ConfigurationError(f"{name!r} makes no method of a budget: it needs `budget` and `run`")
    return own


def _parse_settings(cls: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """The settings as values for the fields of a method's class. The first that is not given by name alone holds the
    budget."""
    if not settings:
        return {}
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ConfigurationError(f"{', '.join(settings)}: {cls!r} has no settings, only a dataclass has")
    hints = typing.get_type_hints(cls)
    by_position_first = sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))
    budget, *fields = [field.name for field in by_position_first]
    for name in settings:
        if name == budget:
            raise ConfigurationError(f"{name} is not a setting: set the number of trajectories as the budget")
        if name not in fields:
            raise UnknownNameError(f"setting of {cls.__name__}", name, fields)
    return {name: _parse(name, text, hints[name]) for name, text in settings.items()}


def _parse(name: str, text: str, hint: Any) -> Any:
    """`text` as a value of the field's type."""
    if typing.get_origin(hint) is tuple:
        return tuple(_parse(name, part, typing.get_args(hint)[0]) for part in text.split("/"))
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if types.NoneType in options and text.lower() == "none":
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in options:
            try:
                return kind(text)
            except ValueError:
                continue
    if {bool, int, float}.issuperset(set(options) - {types.NoneType}):
        expected = " or ".join(option.__name__ for option in options)
        raise ConfigurationError(f"{name} must be {expected}, not {text!r}")
    return text


def describe(configured: Method) -> dict[str, Any]:
    """A method's whole configuration, as JSON can hold it."""
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(configured):
        assert not isinstance(configured, type)
        settings = dataclasses.asdict(configured)
    return {"type": type(configured).__name__, **settings}


def canonical(spec: str) -> str:
    """The spec without blanks; an UnknownNameError if it names neither a known id nor a class by its module."""
    spec = "".join(spec.split())
    _split(spec)
    return spec
