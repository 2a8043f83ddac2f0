"""Methods written as text: what stands on a command line, in an evaluation's configuration and in its records.

    pf                                     the method with that id, as it comes
    pf:paper                               a preset of it
    pf:ess_threshold=1.0:selector=argmax   with fields set; after a preset, these win
    my_methods:Mine:patience=2             a class of your own, its module on the Python path, with a field set
    pt:num_sweeps=8:ladder=1/0.5/0.25      a field of several values: with strokes between

The budget is never part of it. Methods of several sweeps, chains or islands share it out evenly.
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
from motes.methods.run import Method, MethodTraits

PRESETS: Mapping[str, Mapping[str, Callable[[int], Method]]] = MappingProxyType(
    {"pf": {"paper": ParticleFilter.paper}, "epf": {"paper": EntropicParticleFilter.paper}}
)
"""For each method id, its presets: what makes one of a budget."""

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
    }
)
"""What people call each method id."""


def method_from_spec(spec: str, budget: int) -> Method:
    """The method that `spec` writes out, at that budget (number of trajectories; `greedy` always draws one).

    Raises:
        UnknownNameError: no method, preset or field has that name.
        ConfigurationError: a value is not of its field's type or range, or the budget is less than 1.
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
            raise ConfigurationError(f"{part!r} in the method {spec!r} is no setting: write FIELD=VALUE")
    values = _values(cls, settings)
    if preset is None:
        return method(name, budget, **values) if name in METHODS else _own(name, cls, budget, values)
    made: Any = preset(budget)
    changed: Method = dataclasses.replace(made, **values)
    return changed


def draws_independently(spec: str) -> bool:
    """Whether the answers of the method are independent samples of the language model; False of one unknown."""
    cls = METHODS.get(spec.partition(":")[0])
    return MethodTraits.of(cls).independent


def draws_one(spec: str) -> bool:
    """Whether the method draws one trajectory whatever the budget, as `greedy` does; False of one unknown, or of
    somebody's own, whose code is not run for that."""
    try:
        return not is_own(spec) and method_from_spec(spec, 2).budget == 1
    except MotesError:
        return False


def is_own(spec: str) -> bool:
    """Whether the method is code of somebody's, MODULE:CLASS: to make it runs that code."""
    name, *parts = spec.split(":")
    return name not in METHODS and bool(parts) and "=" not in parts[0]


def _split(spec: str) -> tuple[str, list[str]]:
    """A method's name, which is an id or MODULE:CLASS, and what follows it."""
    name, *parts = spec.split(":")
    if is_own(spec):
        return f"{name}:{parts[0]}", parts[1:]
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return name, parts


def _own(name: str, cls: Any, budget: int, values: Mapping[str, Any]) -> Method:
    """A method that is not one of ours, made in the same way."""
    try:
        made = (MethodTraits.of(cls).of_budget or cls)(budget, **values)
    except TypeError as error:
        raise ConfigurationError(f"{name!r} makes no method of a budget: {error}") from error
    if not isinstance(made, Method):
        raise ConfigurationError(f"{name!r} makes no method of a budget: it needs `budget` and `run`")
    return made


def _values(cls: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """The settings as values of the fields of a method's class. Its first field is the budget's."""
    if not settings:
        return {}
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise ConfigurationError(f"{', '.join(settings)}: {cls!r} has no settings, only a dataclass has")
    hints = typing.get_type_hints(cls)
    budget, *fields = [field.name for field in dataclasses.fields(cls)]
    for name in settings:
        if name == budget:
            raise ConfigurationError(f"{name}: set the number of trajectories as the budget, not so")
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


def describe(made: Method) -> dict[str, Any]:
    """A method's whole configuration, as JSON can hold it."""
    named = {"type": type(made).__name__}
    if not dataclasses.is_dataclass(made):
        return named
    assert not isinstance(made, type)
    return {**named, **dataclasses.asdict(made)}


def canonical(spec: str) -> str:
    """The spec without blanks; known ids, and classes by their module, only.

    Raises:
        UnknownNameError: no method has that id.
    """
    spec = "".join(spec.split())
    _split(spec)
    return spec
