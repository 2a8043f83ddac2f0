"""Specs: the names of models and tasks, with options, and of objects in a user's modules."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from motes.arguments import parse_options
from motes.errors import ConfigurationError, closest

SCHEMES = ("hf:", "judge:", "confidence:", "mix:", "probe:")
"""Beginnings of specs that name no module."""


def parse_spec(spec: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name in a spec and all options; those in `options` override those in the spec."""
    name, _, query = spec.strip().partition("?")
    return name, {**{key: _parse_value(text) for key, text in parse_options(query).items()}, **options}


def _parse_value(text: str) -> int | float | str:
    """The value of an option: a number if the text is one. Python does not convert texts of thousands of digits."""
    if text.isascii() and text.isdigit() and len(text) < 100:
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text) else text


def is_address(spec: str) -> bool:
    """Whether a spec is the address of a server."""
    return spec.lower().startswith(("http://", "https://"))


def select_parameters(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are parameters of a function or a class."""
    return {name: options[name] for name in inspect.signature(function).parameters if name in options}


def names_attribute(spec: str) -> bool:
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


def make_own(spec: str, protocol: Any, options: Mapping[str, Any]) -> Any:
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
