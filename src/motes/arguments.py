"""Checks of arguments against the declared types of parameters. Errors name the parameter.

NumPy's numbers become Python's, lists become tuples, and texts become well-formed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote

import numpy as np

from motes.errors import ConfigurationError, UnknownNameError
from motes.text import well_formed


class _UnfitError(Exception):
    """A value does not fit the type."""


def fit(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to `hint`, the declared type of the parameter `name`.

    `Any` and protocols accept every value. NaN is a number: a check of the number's range must refuse it.

    Raises:
        ConfigurationError: the value does not fit.
        UnknownNameError: `hint` is a `Literal` that does not contain the value, a text.
    """
    try:
        return _convert(value, hint)
    except _UnfitError:
        alternatives = _alternatives(hint)
    for alternative in alternatives:
        if typing.get_origin(alternative) is typing.Literal and isinstance(value, str):
            raise UnknownNameError(name, value, typing.get_args(alternative))
    raise ConfigurationError(f"{name} must be {' or '.join(map(_name_of, alternatives))}, not {_short_repr(value)}")


def fit_fields(instance: Any, prefix: str = "") -> None:
    """Apply `fit` to every field of a dataclass. Its `__post_init__` calls this first. `prefix` is written before a
    field's name in messages."""
    cls: type = type(instance)
    hints = _hints(cls)
    for field in dataclasses.fields(instance):
        if field.name in hints:
            value = getattr(instance, field.name)
            fitted = fit(prefix + field.name, value, hints[field.name])
            if fitted is not value:
                object.__setattr__(instance, field.name, fitted)


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        ConfigurationError: it is not a whole number, or less than `least`.
    """
    try:
        number: int = _convert(value, int)
        _require(least is None or number >= least)
    except _UnfitError:
        at_least = "" if least is None else f" of at least {least}"
        raise ConfigurationError(f"{name} must be a whole number{at_least}, not {_short_repr(value)}") from None
    return number


def instance_of(name: str, value: Any, protocol: Any, example: str) -> Any:
    """`value`, if it implements a protocol.

    Args:
        example: an object of the protocol, for the message.

    Raises:
        ConfigurationError: the value does not implement it, or is a class instead of an object.
    """
    if isinstance(value, protocol) and not isinstance(value, type):
        return value
    raise ConfigurationError(f"{name} must be {example} or another {protocol.__name__}, not {_short_repr(value)}")


def parse_options(query: str) -> dict[str, str]:
    """The options after the question mark of a spec, as in `tiny?device=cpu&prefix=whole`. In a value, %26 stands for &
    and %25 for %; a plus sign is one.

    Raises:
        ConfigurationError: an option has no value, or occurs twice. The message does not quote the query, which may
            contain a part of a password.
    """
    options: dict[str, str] = {}
    for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if not name or not value:
            raise ConfigurationError("an option after `?` has no value: write ?NAME=VALUE, or ?NAME=VALUE&NAME=VALUE")
        if name in options:
            raise ConfigurationError(f"the option {name!r} is given twice: give it once")
        options[name] = value
    return options


def make_spec(name: str, options: Mapping[str, str]) -> str:
    """The spec from which `parse_options` reads these options after the name."""
    parts = []
    for option, value in options.items():
        quoted = value.replace("%", "%25").replace("&", "%26")
        parts.append(f"{option}={quoted if quoted == quoted.strip() else quote(value)}")
    return f"{name}?{'&'.join(parts)}" if parts else name


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields, without those of a base class whose annotations cannot be resolved."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        with contextlib.suppress(NameError):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _convert(value: Any, hint: Any) -> Any:
    for convert in _converters(hint):
        try:
            return convert(value)
        except _UnfitError:
            pass
    raise _UnfitError


@functools.cache
def _converters(hint: Any) -> tuple[Callable[[Any], Any], ...]:
    """For each alternative of a type, a function that converts values to it. Cached, because it is called often."""
    return tuple(map(_converter, _alternatives(hint)))


def _converter(hint: Any) -> Callable[[Any], Any]:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if (convert := CONVERSIONS.get(kind)) is not None:
        return lambda value: convert(value, arguments)
    accepts_anything = kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False)

    def check(value: Any) -> Any:
        _require(accepts_anything or isinstance(value, kind))
        return value

    return check


def _require(fits: bool) -> None:
    if not fits:
        raise _UnfitError


def _bool(value: Any, arguments: Sequence[Any]) -> bool:
    _require(isinstance(value, (bool, np.bool_)))
    return bool(value)


def _int(value: Any, arguments: Sequence[Any]) -> int:
    _require(not isinstance(value, (bool, np.bool_)))
    try:
        return operator.index(value)
    except TypeError:
        raise _UnfitError from None


def _float(value: Any, arguments: Sequence[Any]) -> float:
    _require(isinstance(value, numbers.Real) and not isinstance(value, bool))
    return value if type(value) in (int, float) else float(value)


def _str(value: Any, arguments: Sequence[Any]) -> str:
    _require(isinstance(value, str))
    return well_formed(value)


def _literal(value: Any, arguments: Sequence[Any]) -> Any:
    _require(any(type(value) is type(choice) and value == choice for choice in arguments))
    return value


def _tuple(value: Any, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """For tuple[X, ...]; accepts any sequence of X."""
    _require(isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)))
    return tuple(_convert(item, arguments[0]) for item in value)


CONVERSIONS: Mapping[Any, Callable[[Any, Sequence[Any]], Any]] = {
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    typing.Literal: _literal,
    tuple: _tuple,
}
"""Functions that convert values to a type. Values of other types are only checked, by `isinstance`."""

NAMES: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "None",
    re.Pattern: "a compiled pattern",
    Mapping: "a dict",
}
"""Names of types in messages."""


def _short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def _name_of(hint: Any) -> str:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind is tuple:
        return f"several, each {' or '.join(map(_name_of, _alternatives(arguments[0])))}"
    return NAMES.get(kind) or f"a {kind.__name__}"
