"""Mistakes made on purpose, so that tests show that they can fail.

A mutant is a module compiled from its source with one passage replaced. What uses the module goes on as before until
the mutant's classes, or their methods, are put in the place of its own.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import pytest


def mutant(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """The module as it would be if `old` read `new`."""
    source = inspect.getsource(module)
    if source.count(old) != 1:  # not an AssertionError, which a test of the mutant may expect
        pytest.fail(f"{module.__name__} no longer has the passage that this mutation replaces: {old!r}")
    copy = types.ModuleType(module.__name__)
    exec(compile(source.replace(old, new), f"mutant of {module.__name__}", "exec"), copy.__dict__)
    return copy


def mutate(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, name: str, old: str, new: str) -> None:
    """Let the module's class of that name do what it would do if the module read `new`."""
    replace_methods(monkeypatch, getattr(module, name), getattr(mutant(module, old, new), name))


def replace_methods(monkeypatch: pytest.MonkeyPatch, cls: type, mutated: type) -> None:
    """Give a class the methods and properties of its mutant, but for those that dataclasses write."""
    for name, value in vars(mutated).items():
        if not name.startswith("__") and (method := _of_class(value, cls)) is not None:
            monkeypatch.setattr(cls, name, method)


def _of_class(value: Any, cls: type) -> Any:
    """A method or property as one of `cls`: what it calls `super()` of is that, not the mutant's own class. None of
    what is neither."""
    match value:
        case property():
            return property(_of_class(value.fget, cls))
        case staticmethod() | classmethod():
            return type(value)(_of_class(value.__func__, cls))
        case types.FunctionType() if "__class__" in value.__code__.co_freevars:
            closure = tuple(
                types.CellType(cls) if name == "__class__" else cell
                for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
            )
            return types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
        case types.FunctionType():
            return value
    return None
