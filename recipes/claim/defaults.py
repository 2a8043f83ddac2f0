"""Which settings should be the defaults of the particle filter: candidates, beside the searches, on long and short
validation problems, with the reward model unchanged and with noise on its logits.

The best default is not the one that wins somewhere, but one that is never far behind the best method: the table shows
how far behind each candidate is, at each budget in each world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from claim.cells import Measured, Setting, World, csv_metadata, measure, provenance_of, write
from motes.lab.measure.comparison import PairedRuns
from motes.lab.measure.formats import csv_text, markdown_rows, percent
from motes.lab.measure.statistics import FloatArray, Interval, percentile_interval
from motes.lab.run.method_spec import NAMES
from motes.lab.show.forest import Forest, forest_figure, whole_points
from motes.lab.show.report import Report
from motes.lab.show.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CANDIDATES = (
    "pf:potential=absolute:beta=0.5:ess_threshold=1.0",  # the default
    "pf:potential=increment:beta=1.0:ess_threshold=0.5",  # the default before this measurement
    "pf:potential=increment:beta=1.0:ess_threshold=1.0",
    "pf:potential=increment:beta=2.0:ess_threshold=1.0",
    "pf:potential=0.5:beta=1.0:ess_threshold=1.0",
    "pf:potential=0.5:beta=2.0:ess_threshold=1.0",
    "pf:potential=1.0:beta=0.5:ess_threshold=1.0",
    "pf:potential=absolute:beta=1.0:ess_threshold=1.0",
)
OTHERS = ("wbon", "beam", "dvts", "rebase")
BUDGETS = (2, 4, 8, 16, 32, 64)
PROBLEMS = 100
WORLDS: Mapping[str, World] = {
    "long": World(title="long", split="long-validation", limit=PROBLEMS),
    "long-noisy": World(title="long, noise 0.7", split="long-validation", limit=PROBLEMS, noise=0.7),
    "long-noisier": World(title="long, noise 1.8", split="long-validation", limit=PROBLEMS, noise=1.8),
    "short": World(title="short", split="validation", limit=PROBLEMS),
    "short-noisy": World(title="short, noise 0.7", split="validation", limit=PROBLEMS, noise=0.7),
    "short-noisier": World(title="short, noise 1.8", split="validation", limit=PROBLEMS, noise=1.8),
}
CLOSE = 0.02
"""The largest distance to the best method that counts as close."""


@dataclass(frozen=True)
class WorldResult:
    """The measurements in a world.

    Attributes:
        means: (1 + B,) for each method and budget, the accuracy, then those on B bootstrap samples of the problems.
    """

    world: World
    report: Report
    means: Mapping[tuple[str, int], FloatArray]

    @classmethod
    def of(cls, world: World, measured: Measured) -> WorldResult:
        report = measured.report()
        cells = [(cell.method, cell.budget) for cell in report.cells]
        means = PairedRuns(measured.named()).means(cells)
        return cls(world, report, dict(zip(cells, means.T, strict=True)))

    def best(self, budget: int) -> FloatArray:
        """The means of the best method at a budget."""
        return max((means for (_, at), means in self.means.items() if at == budget), key=lambda means: float(means[0]))

    @property
    def common(self) -> list[int]:
        """The budgets at which all methods were measured."""
        methods = {method for method, _ in self.means}
        budgets = sorted({budget for _, budget in self.means})
        return [budget for budget in budgets if all((method, budget) in self.means for method in methods)]

    def behind(self, method: str) -> dict[int, FloatArray]:
        """How far a method is behind the best one, at each of the `common` budgets."""
        return {budget: self.best(budget) - self.means[method, budget] for budget in self.common}


def run(setting: Setting, worlds: Sequence[str], budgets: Sequence[int] | None, methods: Sequence[str] | None) -> int:
    """Measure the worlds, and write the report. Returns the number of failed runs."""
    results: list[WorldResult] = []
    measured: list[Measured] = []
    for name in worlds:
        world = WORLDS[name]
        new = measure(world.setting(setting), world.cells(methods or (*CANDIDATES, *OTHERS), budgets or BUDGETS))
        if new is not None:
            measured.append(new)
            results.append(WorldResult.of(world, new))
            write_report(results, measured, setting)
    return sum(each.failed for each in measured)


def write_report(results: Sequence[WorldResult], measured: Sequence[Measured], setting: Setting) -> None:
    methods = list(dict.fromkeys(method for each in results for method, _ in each.means))
    budgets = sorted({budget for each in results for _, budget in each.means})
    compared = sorted({budget for each in results for budget in each.common})
    parts = [
        "# Settings of the particle filter, beside searches, on validation problems",
        "How many points each method is behind the best one at its budget, if all were measured there: the mean over "
        "the worlds at each budget; the mean over all budgets, with a 95 % interval over problems; the largest "
        f"distance; and the number of cases in which it is at most {100 * CLOSE:.0f}. The best of several looks better "
        "than it is, so no method is 0 points behind.",
        "\n".join(_shortfalls(results, methods, compared)),
    ]
    for each in results:
        table = [[method, *(_accuracy(each, method, budget) for budget in budgets)] for method in methods]
        parts += [
            f"## {each.world.title.capitalize()}",
            "\n".join(markdown_rows(["accuracy", *map(str, budgets)], table)),
        ]
    parts.append(f"Made by `{setting.command}`.")
    rows = [{"world": each.world.title, **cell.row()} for each in results for cell in each.report.cells]
    out = setting.out
    metadata = csv_metadata(measured, "report.csv")
    write(out, {"report.md": "\n\n".join(parts) + "\n", "report.csv": csv_text(rows), **metadata})
    save(partial(figure, results, methods, compared), out / "defaults", provenance_of(measured))


def figure(results: Sequence[WorldResult], methods: Sequence[str], budgets: Sequence[int]) -> Figure:
    """How far each method is behind, in the mean of the worlds: at each budget, and over all."""
    panels = [
        Forest(
            "all budgets" if budget is None else f"N = {budget}",
            {method: value for method in methods if (value := mean_shortfall(results, method, budget)) is not None},
            words=whole_points,
        )
        for budget in (*budgets, None)
    ]
    groups = {
        "particle filter": [method for method in methods if method.startswith("pf:")],
        "others": [method for method in methods if not method.startswith("pf:")],
    }
    labels = {method: _short(method) for method in methods}
    title = "Points behind the best method at that budget"
    worlds = ", ".join(each.world.title for each in results)
    subtitle = f"{worlds}; {PROBLEMS} validation problems each; 95 % intervals"
    return forest_figure(panels, {name: rows for name, rows in groups.items() if rows}, title, subtitle, labels)


def _short(method: str) -> str:
    """A method's settings in few words."""
    name, *settings = method.split(":")
    words = {"beta": "β ", "ess_threshold": "ESS "}
    pairs = [setting.partition("=") for setting in settings]
    return ", ".join(words.get(key, "") + value for key, _, value in pairs) or NAMES.get(name, name)


def mean_shortfall(results: Sequence[WorldResult], method: str, budget: int | None = None) -> Interval | None:
    """How far a method is behind the best one, in the mean of the worlds, with a 95 % interval over problems: at a
    budget, or in the mean of all budgets (None). None if the method was not measured there."""
    behind = [means for each in results for at, means in each.behind(method).items() if budget is None or at == budget]
    return percentile_interval(np.mean(behind, axis=0), problems=PROBLEMS) if behind else None


def _shortfalls(results: Sequence[WorldResult], methods: Sequence[str], budgets: Sequence[int]) -> list[str]:
    table = []
    for method in methods:
        values = [100 * float(means[0]) for each in results for means in each.behind(method).values()]
        at = [mean_shortfall(results, method, budget) for budget in budgets]
        whole = mean_shortfall(results, method)
        assert whole is not None
        table.append(
            [
                method,
                *("" if value is None else f"{100 * value.value:.1f}" for value in at),
                f"{100 * whole.value:.1f} ({100 * whole.low:.1f} – {100 * whole.high:.1f})",
                f"{max(values):.1f}",
                f"{sum(value <= 100 * CLOSE + 1e-9 for value in values)} of {len(values)}",
            ]
        )
    return markdown_rows(["points behind", *map(str, budgets), "all", "at worst", "close"], table)


def _accuracy(result: WorldResult, method: str, budget: int) -> str:
    means = result.means.get((method, budget))
    return "" if means is None else percent(float(means[0]))
