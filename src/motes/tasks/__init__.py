"""Tasks: problems, how an answer is read from a text, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from motes.errors import UnknownNameError
from motes.protocols import Task
from motes.tasks.arithmetic import Arithmetic
from motes.tasks.boxed import BoxedAnswers

TASKS: Mapping[str, Callable[[], Task]] = MappingProxyType({"arithmetic": Arithmetic})
"""Task names and what makes one."""


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]()


__all__ = ["TASKS", "Arithmetic", "BoxedAnswers", "task"]
