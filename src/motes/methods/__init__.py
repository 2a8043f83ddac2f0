"""Methods: one small file per selection rule, over one population."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from motes.errors import UnknownNameError
from motes.methods.adaptive import AdaptiveFilter
from motes.methods.adaptive_majority import AdaptiveMajority
from motes.methods.deepconf import DeepConf
from motes.methods.entropic import EntropicParticleFilter
from motes.methods.independent import BestOfN, Greedy, Majority, WeightedBestOfN
from motes.methods.islands import Islands
from motes.methods.method import Method, MethodTraits, require
from motes.methods.parallel_distill import ParallelDistillRefine
from motes.methods.parallel_tempering import ParallelTempering
from motes.methods.particle_filter import FilterSettings, ParticleFilter
from motes.methods.particle_gibbs import ParticleGibbs
from motes.methods.population import Population
from motes.methods.potential import log_increment
from motes.methods.power import PowerFilter
from motes.methods.refine import Refine
from motes.methods.run import Run
from motes.methods.searches import DVTS, BeamSearch, Rebase
from motes.methods.selectors import SELECTORS, conclude, score_weights, select_by_outcome

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        "greedy": Greedy,
        "majority": Majority,
        "bon": BestOfN,
        "wbon": WeightedBestOfN,
        "beam": BeamSearch,
        "dvts": DVTS,
        "rebase": Rebase,
        "pf": ParticleFilter,
        "pg": ParticleGibbs,
        "pt": ParallelTempering,
        "epf": EntropicParticleFilter,
        "islands": Islands,
        "adaptive": AdaptiveFilter,
        "power": PowerFilter,
        "asc": AdaptiveMajority,
        "deepconf": DeepConf,
        "refine": Refine,
        "pdr": ParallelDistillRefine,
    }
)
"""The methods by their ids, which command lines use."""


def method(name: str, budget: int, **settings: Any) -> Method:
    """The method of that id at that budget (number of trajectories), with the given fields set.

    A method's first field is its budget, unless it has a class method `of_budget(budget, **settings)`.

    Raises:
        UnknownNameError: no method has that id.
        ConfigurationError: the budget or a setting is out of its range.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    make: Callable[..., Method] = MethodTraits(METHODS[name]).of_budget or METHODS[name]
    return make(budget, **settings)


__all__ = [
    "DVTS",
    "METHODS",
    "SELECTORS",
    "AdaptiveFilter",
    "AdaptiveMajority",
    "BeamSearch",
    "BestOfN",
    "DeepConf",
    "EntropicParticleFilter",
    "FilterSettings",
    "Greedy",
    "Islands",
    "Majority",
    "Method",
    "MethodTraits",
    "ParallelDistillRefine",
    "ParallelTempering",
    "ParticleFilter",
    "ParticleGibbs",
    "Population",
    "PowerFilter",
    "Rebase",
    "Refine",
    "Run",
    "WeightedBestOfN",
    "conclude",
    "log_increment",
    "method",
    "require",
    "score_weights",
    "select_by_outcome",
]
