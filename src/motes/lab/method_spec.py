"""Methods written as text: what stands on a command line, in an evaluation's configuration and in its records.

    pf                                     the method with that id, as it comes
    pf:paper                               a preset of it
    pf:ess_threshold=1.0:selector=argmax   with fields set; after a preset, these win
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

from motes.errors import ConfigurationError, UnknownNameError
from motes.methods import METHODS, ParticleFilter, method
from motes.protocols import Method

PRESETS: Mapping[str, Mapping[str, Callable[[int], Method]]] = MappingProxyType({"pf": {"paper": ParticleFilter.paper}})
"""For each method id, its presets: what makes one of a budget."""


def method_from_spec(spec: str, budget: int) -> Method:
    """The method that `spec` writes out, at that budget (number of trajectories; `greedy` always draws one).

    Raises:
        UnknownNameError: no method, preset or field has that name.
        ConfigurationError: a value is not of its field's type or range, or the budget is less than 1.
    """
    name, *parts = spec.split(":")
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    preset: Callable[[int], Method] | None = None
    settings: dict[str, str] = {}
    for i, part in enumerate(parts):
        field, equals, value = part.partition("=")
        if equals:
            settings[field] = value
        elif i == 0:
            presets = PRESETS.get(name, {})
            if part not in presets:
                raise UnknownNameError(f"preset of {name}", part, presets or ("none",))
            preset = presets[part]
        else:
            raise ConfigurationError(f"{part!r} in the method {spec!r} is no setting: write FIELD=VALUE")
    values = _values(METHODS[name], settings)
    if preset is None:
        return method(name, budget, **values)
    made: Any = preset(budget)
    changed: Method = dataclasses.replace(made, **values)
    return changed


def _values(cls: Any, settings: Mapping[str, str]) -> dict[str, Any]:
    """The settings as values of the fields of a method's class. Its first field is the budget's."""
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
    assert dataclasses.is_dataclass(made)
    assert not isinstance(made, type)
    return {"type": type(made).__name__, **dataclasses.asdict(made)}


def canonical(spec: str) -> str:
    """The spec without blanks; known ids only.

    Raises:
        UnknownNameError: no method has that id.
    """
    spec = "".join(spec.split())
    name = spec.partition(":")[0]
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return spec
