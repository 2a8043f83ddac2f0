"""Methods: one small file per selection rule, over one population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from motes.errors import UnknownNameError
from motes.methods.independent import BestOfN, Greedy, Majority, WeightedBestOfN
from motes.methods.particle_filter import ParticleFilter
from motes.methods.population import Population, Run
from motes.methods.potential import log_increment
from motes.methods.selectors import SELECTORS, conclude
from motes.protocols import Method

METHODS: Mapping[str, Callable[[int], Method]] = MappingProxyType(
    {
        "greedy": lambda budget: Greedy(),
        "majority": Majority,
        "bon": BestOfN,
        "wbon": WeightedBestOfN,
        "pf": ParticleFilter,
    }
)
"""Method ids and what makes one of a budget (number of trajectories). `greedy` always draws one."""


def method(name: str, budget: int) -> Method:
    """The method of that id at that budget.

    Raises:
        UnknownNameError: no method has that id.
        ConfigurationError: the budget is less than 1.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name](budget)


__all__ = [
    "METHODS",
    "SELECTORS",
    "BestOfN",
    "Greedy",
    "Majority",
    "ParticleFilter",
    "Population",
    "Run",
    "WeightedBestOfN",
    "conclude",
    "log_increment",
    "method",
]
