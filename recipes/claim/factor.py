"""Claim: a particle filter needs 4 to 16 times less budget than searches and sampling if answers are long, samples are
seldom right and the reward model is good; otherwise it does not.

Four worlds: the long problems of the bundled task; the same with two levels of noise on the reward model's logits; and
the short problems. `WORLDS` and `PREDICTED` hold the predictions of theory and simulation for each, written down before
anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from claim.cells import Measured, Setting, World, csv_metadata, measure, provenance_of, write
from motes.lab.measure.comparison import PairedRuns, Rate, rates
from motes.lab.measure.formats import csv_text, markdown_rows, percent, three
from motes.lab.run.method_spec import NAMES
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.plot import BUDGET, curves_figure
from motes.lab.show.report import Report
from motes.lab.show.style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGISTERED = "pf:potential=increment:beta=1.0:ess_threshold=1.0"
"""The filter that the predictions are about. The default was chosen later, on other problems (`defaults`)."""
DEFAULT = "pf"
FILTERS = {DEFAULT: "the default", REGISTERED: "the registered filter"}
"""The filters that other methods are compared with, and their names."""
LABELS = {**NAMES, REGISTERED: "registered filter"}
METHODS = (DEFAULT, REGISTERED, "pf:paper", "wbon", "bon", "majority", "beam", "dvts", "rebase")
BUDGETS = (2, 4, 8, 16, 32, 64, 128)
REFERENCES = (4, 8)

Range = tuple[float, float]
"""A predicted range of the factors at 4 and at 8 particles."""


@dataclass(frozen=True, kw_only=True)
class Registered(World):
    """A world, with the predicted range of weighted best-of-N in it."""

    wbon: Range
    methods: Sequence[str] = METHODS
    budgets: Sequence[int] = BUDGETS


FEWER = (DEFAULT, REGISTERED, "wbon", "bon", "majority", "dvts", "rebase")
CONTROL: Mapping[str, Any] = {"methods": FEWER, "budgets": BUDGETS[:-2], "seeds": (0,)}
"""What is measured in the worlds in which the filter is not to win."""
WORLDS: Mapping[str, Registered] = {
    "long": Registered(title="long problems", split="long", wbon=(8, 20)),
    "noisy": Registered(title="long problems, AUROC 0.86", split="long", noise=0.7, wbon=(2.4, 5), **CONTROL),
    "noisier": Registered(title="long problems, AUROC 0.76", split="long", noise=1.8, wbon=(0.5, 1.3), **CONTROL),
    "short": Registered(title="short problems", split="test", limit=200, wbon=(1, 2), **CONTROL),
}
"""In the order in which they are measured. The noise is chosen such that the reward model has the stated AUROC, among
partial answers to the same problem with as many steps, on the validation split."""

PREDICTED: Mapping[str, Range] = {"bon": (8, 20), "majority": (20, 64), "rebase": (0.5, 1)}
"""For the long problems, in addition to weighted best-of-N. There is no prediction for beam search and DVTS: in the
simulation they are 8 to 10 points too good."""


def prediction(name: str, method: str, filter: str) -> Range | None:
    if filter != REGISTERED:
        return None
    if method == "wbon":
        return WORLDS[name].wbon
    return PREDICTED.get(method) if name == "long" else None


@dataclass(frozen=True)
class WorldResult:
    """The measurements in a world.

    Attributes:
        rates: how many times a filter's budget other methods need: by filter, then by unit ("trajectories", "tokens",
            "FLOPs"), then by (method, budget of the filter).
    """

    name: str
    measured: Measured
    report: Report
    rates: Mapping[str, Mapping[str, Mapping[tuple[str, int], Rate]]]

    @classmethod
    def of(cls, name: str, measured: Measured) -> WorldResult:
        runs, report = PairedRuns(measured.named()), measured.report()
        costs: dict[str, dict[tuple[str, int], float] | None] = {
            "trajectories": None,
            "tokens": {(cell.method, cell.budget): cell.total_tokens for cell in report.cells},
        }
        if all(cell.total_flops is not None for cell in report.cells):
            costs["FLOPs"] = {(cell.method, cell.budget): cell.total_flops or 0.0 for cell in report.cells}
        methods = list(dict.fromkeys(cell.method for cell in report.cells))
        relative = {
            filter: {
                unit: {(rate.method, rate.budget): rate for rate in rates(runs, methods, REFERENCES, filter, cost)}
                for unit, cost in costs.items()
            }
            for filter in FILTERS
            if filter in methods
        }
        return cls(name, measured, report, relative)

    @property
    def title(self) -> str:
        return WORLDS[self.name].title

    @property
    def regime(self) -> str:
        """T, P and AUROC, measured on independent answers."""
        independent = [each for each in self.report.step_qualities if each.is_independent]
        if not independent:
            return "No method draws answers independently, so T, P and AUROC are unknown"
        quality = max(independent, key=lambda each: each.budget)
        auroc = three(quality.abreast)
        return f"T = {quality.steps.value:.1f}, P = {percent(quality.right.value)}, AUROC within a problem {auroc}"


def run(setting: Setting, worlds: Sequence[str], budgets: Sequence[int] | None, methods: Sequence[str] | None) -> int:
    """Measure the worlds, and write the report. Returns the number of failed runs."""
    results = []
    for name in worlds:
        world = WORLDS[name]
        cells = world.cells(methods or world.methods, budgets or world.budgets)
        measured = measure(world.setting(setting), cells)
        if measured is not None:
            results.append(WorldResult.of(name, measured))
            write_report(results, setting)
    return sum(each.measured.failed for each in results)


def write_report(results: Sequence[WorldResult], setting: Setting) -> None:
    parts = [
        "# How much less budget particles need, inside the paper's regime and outside",
        "The budget at which a method is as accurate as a particle filter is at 4, and at 8, over 4 and 8; and the "
        "same in tokens and in FLOPs of both models. Each with a 95 % interval over problems and seeds of its own. "
        f"Predicted: written down before, of the filter `{REGISTERED}`. The default was chosen later, on other "
        "problems.",
    ]
    for each in results:
        parts += [f"## {each.title[:1].upper()}{each.title[1:]}", f"{each.regime}.", "\n".join(_accuracies(each))]
        for filter in each.rates:
            parts += [f"Times the budget of {FILTERS[filter]}:", "\n".join(_factors(each, filter))]
    parts += [results[0].measured.setting.made_by]
    out = setting.out
    tables = {"report.csv": csv_text(_cells(results)), "rates.csv": csv_text(_rates(results))}
    measured = [each.measured for each in results]
    write(out, {"report.md": "\n\n".join(parts) + "\n", **tables, **csv_metadata(measured, *tables)})
    save(partial(curves_figure, results[0].report, [BUDGET]), out / "accuracy", results[0].measured.provenance())
    if any(each.rates for each in results):
        save(partial(figure, results), out / "factors", provenance_of(measured))


def _factors(result: WorldResult, filter: str) -> list[str]:
    relative = result.rates[filter]
    units = list(relative)
    header = ["method", "at", "predicted", *units]
    rows = []
    for method, budget in relative[units[0]]:
        predicted = prediction(result.name, method, filter)
        rows.append(
            [
                LABELS.get(method, method),
                str(budget),
                "" if predicted is None else f"{predicted[0]:g} – {predicted[1]:g}",
                *(relative[unit][method, budget].with_own_interval() for unit in units),
            ]
        )
    return markdown_rows(header, rows)


def _accuracies(result: WorldResult) -> list[str]:
    cells = {(cell.method, cell.budget): percent(cell.accuracy.value) for cell in result.report.cells}
    budgets = sorted({budget for _, budget in cells})
    rows = [
        [LABELS.get(method, method), *(cells.get((method, budget), "") for budget in budgets)]
        for method in dict.fromkeys(method for method, _ in cells)
    ]
    return markdown_rows(["accuracy", *map(str, budgets)], rows)


def _cells(results: Sequence[WorldResult]) -> list[dict[str, Any]]:
    return [{"world": each.name, **cell.row()} for each in results for cell in each.report.cells]


def _rates(results: Sequence[WorldResult]) -> list[dict[str, Any]]:
    return [
        {"world": each.name, "relative_to": filter, "unit": unit, **rate.row()}
        for each in results
        for filter, units in each.rates.items()
        for unit, unit_rates in units.items()
        for rate in unit_rates.values()
    ]


def figure(results: Sequence[WorldResult]) -> Figure:
    """Factors with their intervals over the predicted ranges; a group of rows for each world."""
    filters = [filter for filter in FILTERS if any(filter in each.rates for each in results)]
    panels = [
        Forest(
            f"{at} particles of {FILTERS[filter]}",
            {name: rate.value for name, rate in _rows(results, filter, at).items()},
            reference=1.0,
            log2=True,
            expected={
                name: predicted
                for name, rate in _rows(results, filter, at).items()
                if (predicted := prediction(name.partition("/")[0], rate.method, filter)) is not None
            },
        )
        for filter in filters
        for at in REFERENCES
    ]
    groups = {
        each.title: [
            name
            for name in dict.fromkeys(name for panel in panels for name in panel.values)
            if name.startswith(f"{each.name}/")
        ]
        for each in results
    }
    labels = {name: LABELS.get(method := name.partition("/")[2], method) for names in groups.values() for name in names}
    title = "How many times the budget of a particle filter the others need"
    subtitle = "95 % intervals; bars: predicted; arrowheads: beyond what was measured"
    return forest_figure(panels, groups, title, subtitle, labels)


def _rows(results: Sequence[WorldResult], filter: str, at: int) -> dict[str, Rate]:
    """The rates in trajectories, by world and method."""
    return {
        f"{each.name}/{method}": rate
        for each in results
        if filter in each.rates
        for (method, budget), rate in each.rates[filter]["trajectories"].items()
        if budget == at
    }
