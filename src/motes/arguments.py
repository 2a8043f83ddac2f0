"""What callers pass, held to the type that a parameter is declared with: refused by its name when it is given.

NumPy's numbers become Python's own, lists become the tuples that they stand for, and texts become well-formed.
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

import numpy as np

from motes.errors import ConfigurationError, UnknownNameError
from motes.text import well_formed


class _UnfitError(Exception):
    """A value is not of the type."""


def fit(name: str, value: Any, hint: Any) -> Any:
    """`value` as the parameter `name` holds it, which is declared with the type `hint`.

    A type that says nothing about values (`Any`, that of a protocol) takes everything. NaN is a number: whoever says
    in which range a number must lie refuses it there.

    Raises:
        ConfigurationError: it is no such value.
        UnknownNameError: it is a text that is none of those of a `Literal`.
    """
    try:
        return _fitted(value, hint)
    except _UnfitError:
        alternatives = _alternatives(hint)
    for alternative in alternatives:
        if typing.get_origin(alternative) is typing.Literal and isinstance(value, str):
            raise UnknownNameError(name, value, typing.get_args(alternative))
    raise ConfigurationError(f"{name} must be {' or '.join(map(_named, alternatives))}, not {_shown(value)}")


def fit_fields(instance: Any, prefix: str = "") -> None:
    """Hold every field of a dataclass to its type, as `fit` does: the first thing that its `__post_init__` does.

    Args:
        prefix: what messages say before a field's name.
    """
    cls: type = type(instance)
    hints = _hints(cls)
    for field in dataclasses.fields(instance):
        if field.name in hints:
            given = getattr(instance, field.name)
            fitted = fit(prefix + field.name, given, hints[field.name])
            if fitted is not given:
                object.__setattr__(instance, field.name, fitted)


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """`value` as a whole number of at least `least`.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        number: int = _fitted(value, int)
        _require(least is None or number >= least)
    except _UnfitError:
        at_least = "" if least is None else f" of at least {least}"
        raise ConfigurationError(f"{name} must be a whole number{at_least}, not {_shown(value)}") from None
    return number


def instance_of(name: str, value: Any, protocol: Any, example: str) -> Any:
    """`value`, which is to be an object of a protocol, such as `example`.

    Raises:
        ConfigurationError: it is none; a class is none of its objects.
    """
    if isinstance(value, protocol) and not isinstance(value, type):
        return value
    raise ConfigurationError(f"{name} must be {example} or another {protocol.__name__}, not {_shown(value)}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields. Of a base whose annotations cannot be resolved nothing is known."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        with contextlib.suppress(NameError):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fitted(value: Any, hint: Any) -> Any:
    """Raises _UnfitError where `value` is not of the type."""
    for read in _readers(hint):
        try:
            return read(value)
        except _UnfitError:
            pass
    raise _UnfitError


@functools.cache
def _readers(hint: Any) -> tuple[Callable[[Any], Any], ...]:
    """One for each alternative of a type. Made once: values are read each time that anything is configured."""
    return tuple(map(_reader, _alternatives(hint)))


def _reader(hint: Any) -> Callable[[Any], Any]:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if (convert := CONVERSIONS.get(kind)) is not None:
        return lambda value: convert(value, arguments)
    return _anything if _says_nothing(kind) else lambda value: _instance(value, kind)


def _anything(value: Any) -> Any:
    return value


def _instance(value: Any, kind: type) -> Any:
    _require(isinstance(value, kind))
    return value


def _says_nothing(kind: Any) -> bool:
    return kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False)


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


def _none(value: Any, arguments: Sequence[Any]) -> None:
    _require(value is None)


def _literal(value: Any, arguments: Sequence[Any]) -> Any:
    _require(any(type(value) is type(known) and value == known for known in arguments))
    return value


def _tuple(value: Any, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Of tuple[X, ...]: any sequence of X is taken."""
    _require(isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, (str, bytes)))
    return tuple(_fitted(one, arguments[0]) for one in value)


CONVERSIONS: Mapping[Any, Callable[[Any, Sequence[Any]], Any]] = types.MappingProxyType(
    {
        bool: _bool,
        int: _int,
        float: _float,
        str: _str,
        None: _none,
        types.NoneType: _none,
        typing.Literal: _literal,
        tuple: _tuple,
    }
)
"""How values of a type are read. Of every other type, `isinstance` decides."""

NAMES: Mapping[Any, str] = types.MappingProxyType(
    {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a text",
        None: "None",
        types.NoneType: "None",
        re.Pattern: "a compiled pattern",
        Mapping: "a dict",
    }
)
"""What messages call a type."""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"a {type(value).__name__}"


def _named(hint: Any) -> str:
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind is tuple:
        return f"several, each {' or '.join(map(_named, _alternatives(arguments[0])))}"
    return NAMES.get(kind) or f"a {kind.__name__}"
