"""Claim: a particle filter needs 4 to 16 times less budget than searches and sampling, where answers are long, samples
are seldom right and the reward model can tell; elsewhere it does not.

Four worlds: the long problems of the bundled task; the same with noise on the reward model's logits, twice; and the
short problems. What theory and simulation predict of each stands in `WORLDS` and `PREDICTED`, written down before
anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from claim.cells import Measured, Setting, World, measure, told_of, write
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
"""The filter that the predictions are about. Defaults were chosen after them, on other problems (`defaults`)."""
DEFAULT = "pf"
FILTERS = {DEFAULT: "the default", REGISTERED: "the registered filter"}
"""That others are held against, and what they are called."""
CALLED = {**NAMES, REGISTERED: "registered filter"}
METHODS = (DEFAULT, REGISTERED, "pf:paper", "wbon", "bon", "majority", "beam", "dvts", "rebase")
BUDGETS = (2, 4, 8, 16, 32, 64, 128)
REFERENCES = (4, 8)

Range = tuple[float, float]
"""The factors at 4 and at 8 particles lie in between, it is predicted."""


@dataclass(frozen=True, kw_only=True)
class Registered(World):
    """A world, with what was predicted of weighted best-of-N in it."""

    wbon: Range
    methods: Sequence[str] = METHODS
    budgets: Sequence[int] = BUDGETS


FEWER = (DEFAULT, REGISTERED, "wbon", "bon", "majority", "dvts", "rebase")
FEWER_BUDGETS = BUDGETS[:-2]
WORLDS: Mapping[str, Registered] = {
    "long": Registered(title="long problems", split="long", wbon=(8, 20)),
    "noisy": Registered(
        title="long problems, AUROC 0.86", split="long", noise=0.7, wbon=(2.4, 5), methods=FEWER, budgets=FEWER_BUDGETS
    ),
    "noisier": Registered(
        title="long problems, AUROC 0.76",
        split="long",
        noise=1.8,
        wbon=(0.5, 1.3),
        methods=FEWER,
        budgets=FEWER_BUDGETS,
    ),
    "short": Registered(
        title="short problems", split="test", limit=200, wbon=(1, 2), methods=FEWER, budgets=FEWER_BUDGETS
    ),
}
"""In the order in which they are measured. The noise is what took the reward model to that AUROC, of partial answers to
the same problem with as many steps, on the validation split."""

PREDICTED: Mapping[str, Range] = {"bon": (8, 20), "majority": (20, 64), "rebase": (0.5, 1)}
"""On the long problems, beside weighted best-of-N. Of beam search and DVTS nothing was predicted: simulated, they are 8
to 10 points too good."""


def expected(name: str, method: str, filter: str) -> Range | None:
    if filter != REGISTERED:
        return None
    if method == "wbon":
        return WORLDS[name].wbon
    return PREDICTED.get(method) if name == "long" else None


@dataclass(frozen=True)
class Found:
    """What was measured in a world. `rates`: by the filter they are relative to; in trajectories, tokens and FLOPs."""

    name: str
    measured: Measured
    report: Report
    rates: Mapping[str, Mapping[str, Mapping[tuple[str, int], Rate]]]

    @classmethod
    def of(cls, name: str, measured: Measured) -> Found:
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
        """T, P and AUROC, as the independent answers tell them."""
        told = max((each for each in self.report.step_qualities if each.is_independent), key=lambda each: each.budget)
        auroc = three(told.abreast)
        return f"T = {told.steps.value:.1f}, P = {percent(told.right.value)}, AUROC within a problem {auroc}"


def run(setting: Setting, worlds: Sequence[str], budgets: Sequence[int] | None, methods: Sequence[str] | None) -> int:
    """Measure the worlds, and tell them. How many runs failed."""
    found = []
    for name in worlds:
        world = WORLDS[name]
        cells = world.cells(methods or world.methods, budgets or world.budgets)
        measured = measure(world.setting(setting), cells)
        if measured is not None:
            found.append(Found.of(name, measured))
            tell(found, setting)
    return sum(each.measured.failed for each in found)


def tell(found: Sequence[Found], setting: Setting) -> None:
    parts = [
        "# How much less budget particles need, inside the paper's regime and outside",
        "The budget at which a method is as accurate as a particle filter is at 4, and at 8, over 4 and 8; and the "
        "same in tokens and in FLOPs of both models. Each with a 95 % interval over problems and seeds of its own. "
        f"Predicted: written down before, of the filter `{REGISTERED}`. The default was chosen later, on other "
        "problems.",
    ]
    for each in found:
        parts += [f"## {each.title[:1].upper()}{each.title[1:]}", f"{each.regime}.", "\n".join(_accuracies(each))]
        for filter in each.rates:
            parts += [f"Times the budget of {FILTERS[filter]}:", "\n".join(_factors(each, filter))]
    parts += [found[0].measured.setting.made_by]
    out = setting.out
    tables = {"report.csv": csv_text(_cells(found)), "rates.csv": csv_text(_rates(found))}
    write(out, {"report.md": "\n\n".join(parts) + "\n", **tables, **told_of(found[0].measured, *tables)})
    save(partial(curves_figure, found[0].report, [BUDGET]), out / "accuracy", found[0].measured.provenance())
    save(partial(figure, found), out / "factors", found[0].measured.provenance())


def _factors(found: Found, filter: str) -> list[str]:
    relative = found.rates[filter]
    units = list(relative)
    header = ["method", "at", "predicted", *units]
    rows = []
    for method, budget in relative[units[0]]:
        told = expected(found.name, method, filter)
        rows.append(
            [
                CALLED.get(method, method),
                str(budget),
                "" if told is None else f"{told[0]:g} – {told[1]:g}",
                *(relative[unit][method, budget].with_own_interval() for unit in units),
            ]
        )
    return markdown_rows(header, rows)


def _accuracies(found: Found) -> list[str]:
    cells = {(cell.method, cell.budget): percent(cell.accuracy.value) for cell in found.report.cells}
    budgets = sorted({budget for _, budget in cells})
    rows = [
        [CALLED.get(method, method), *(cells.get((method, budget), "") for budget in budgets)]
        for method in dict.fromkeys(method for method, _ in cells)
    ]
    return markdown_rows(["accuracy", *map(str, budgets)], rows)


def _cells(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [{"world": each.name, **cell.row()} for each in found for cell in each.report.cells]


def _rates(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"world": each.name, "relative_to": filter, "unit": unit, **rate.row()}
        for each in found
        for filter, units in each.rates.items()
        for unit, of in units.items()
        for rate in of.values()
    ]


def figure(found: Sequence[Found]) -> Figure:
    """Factors with their intervals over the ranges that were predicted; a group of rows for each world."""
    filters = [filter for filter in FILTERS if any(filter in each.rates for each in found)]
    panels = [
        Forest(
            f"{at} particles of {FILTERS[filter]}",
            {name: rate.value for name, rate in _rows(found, filter, at).items()},
            reference=1.0,
            log2=True,
            expected={
                name: told
                for name, rate in _rows(found, filter, at).items()
                if (told := expected(name.partition("/")[0], rate.method, filter)) is not None
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
        for each in found
    }
    labels = {name: CALLED.get(method := name.partition("/")[2], method) for names in groups.values() for name in names}
    title = "How many times the budget of a particle filter the others need"
    subtitle = "95 % intervals; bars: predicted; arrowheads: beyond what was measured"
    return forest_figure(panels, groups, title, subtitle, labels)


def _rows(found: Sequence[Found], filter: str, at: int) -> dict[str, Rate]:
    """In trajectories, by world and method."""
    return {
        f"{each.name}/{method}": rate
        for each in found
        if filter in each.rates
        for (method, budget), rate in each.rates[filter]["trajectories"].items()
        if budget == at
    }
