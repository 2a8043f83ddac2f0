"""Former names of modules, which still work: see `RENAMED`.

A module named `types`, `http` or `inspect` hides the standard library's from programs that run in its directory.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

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
