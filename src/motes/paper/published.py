"""The paper's numbers (arXiv 2502.01618). Those of figure 2 are read off by eye, to about a point."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from motes.paper.row import Experiment

COLUMNS: Mapping[str, str] = MappingProxyType({"math-500": "MATH-500", "aime-2024": "AIME 2024"})
"""The paper's name of each of its benchmarks, by our name."""

SIZES: Mapping[str, int] = MappingProxyType({"math-500": 500, "aime-2024": 30})
"""Number of problems of each benchmark."""

TASKS: Mapping[Experiment, tuple[str, ...]] = MappingProxyType(
    {"table1": ("math-500", "aime-2024"), "figure2": ("math-500",)}
)
"""The benchmarks of each experiment, in the order of its numbers."""


class Point(NamedTuple):
    """A place in a table or figure: the row, the paper's name of the method, and the budget, which is None in table 1,
    where all are the same."""

    row: str
    label: str
    budget: int | None


def results() -> dict[str, Any]:
    """All numbers, as in the shipped file."""
    numbers: dict[str, Any] = json.loads((resources.files("motes.paper") / "results.json").read_text(encoding="utf-8"))
    return numbers


@cache
def published(experiment: Experiment) -> Mapping[Point, tuple[float | None, ...]]:
    """Accuracy in percent at each point, on each of the experiment's tasks, in the paper's order; None if the paper
    gives no number."""
    numbers: dict[Point, tuple[float | None, ...]] = {}
    if experiment == "table1":
        table = results()["table1_budget64"]
        rows = {row: {"pass@1": pair} for row, pair in table["reference_models"].items()}
        rows |= {row: lines | table["particle_gibbs"].get(row, {}) for row, lines in table["scaled_models"].items()}
        numbers = {Point(row, label, None): tuple(pair) for row, lines in rows.items() for label, pair in lines.items()}
    else:
        for row, curves in results()["figure2_read_off_by_eye_plus_minus_1_point"].items():
            for label, values in curves.items():
                if label != "budgets":
                    budgets = curves["budgets"][-len(values) :]  # a curve may begin at a later budget
                    name = label.removesuffix("_from_4")
                    numbers.update((Point(row, name, n), (value,)) for n, value in zip(budgets, values, strict=True))
    return MappingProxyType(numbers)
