"""Former names that still work, with a warning: of modules (`RENAMED`) and of arguments.

A module named `types`, `http` or `inspect` hides the standard library's from programs that run in its directory.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

ClassT = TypeVar("ClassT", bound=type)

RENAMED = {
    "motes.types": "motes.core",
    "motes.contracts": "motes.conformance",
    "motes.http": "motes.transport",
    "motes.inspect": "motes.inspect_provider",
}
"""The new name of each module, by the former one."""


class RenamedModule(ModuleType):
    """Stands for a module under its former name; imports it when it is first used."""

    def __init__(self, former: str, new: str) -> None:
        super().__init__(former, f"Deprecated: use `{new}`.")
        self._new = new

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for these names
            raise AttributeError(name)
        warnings.warn(f"{self.__name__} is deprecated: use {self._new}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(self._new), name)


def install() -> None:
    """Make the former names importable."""
    for former, new in RENAMED.items():
        package, _, name = former.rpartition(".")
        sys.modules[former] = module = RenamedModule(former, new)
        setattr(sys.modules[package], name, module)


def renamed_argument(former: str, new: str) -> Callable[[ClassT], ClassT]:
    """A decorator of a dataclass: its field `new` can still be given, and read, by its former name."""

    def warn(cls: type) -> None:
        message = f"{former} of {cls.__name__} is deprecated: use {new}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)

    def decorate(cls: ClassT) -> ClassT:
        changed: Any = cls
        init = changed.__init__

        @functools.wraps(init)
        def with_former_name(self: Any, *args: Any, **settings: Any) -> None:
            if former in settings:
                warn(cls)
                settings = {new: settings.pop(former), **settings}
            init(self, *args, **settings)

        def read(self: Any) -> Any:
            warn(cls)
            return getattr(self, new)

        changed.__init__ = with_former_name
        setattr(changed, former, property(read, doc=f"Deprecated: use `{new}`."))
        return cls

    return decorate
