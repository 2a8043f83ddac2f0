"""Claim: a pilot of 100 problems with 8 answers each predicts the accuracy of methods, and which one to take.

Each case is a set of problems, a language model and a reward model. The pilot's problems are from the validation split;
the predictions of `motes advise` from them are compared with the accuracies of the methods on the test split.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from claim.cells import Measured, Setting, World, csv_metadata, measure, provenance_of, write
from motes.lab.measure.advice import BUDGETS, CLOSE, METHODS, Advice, Prediction, advise
from motes.lab.measure.comparison import ends
from motes.lab.measure.formats import csv_text, markdown_rows, percent, three
from motes.lab.measure.statistics import Interval
from motes.lab.run.method_spec import NAMES
from motes.lab.show.style import heading, save, styles_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PILOT = 100
"""Number of problems of the pilot."""
ANSWERS = 8
"""Number of answers to each of them."""


@dataclass(frozen=True, kw_only=True)
class Case(World):
    """A world, and the split that the pilot takes its problems from."""

    pilot: str


LONG, SHORT = {"split": "long", "pilot": "long-validation"}, {"split": "test", "pilot": "validation"}
CASES: Mapping[str, Case] = {
    "long": Case(title="long problems", **LONG),
    "noisy": Case(title="long, noise 0.7", noise=0.7, **LONG),
    "noisier": Case(title="long, noise 1.8", noise=1.8, **LONG),
    "short": Case(title="short problems", limit=200, **SHORT),
    "short-noisy": Case(title="short, noise 1", limit=200, noise=1.0, **SHORT),
    "hot": Case(title="short, temperature 1.2", limit=200, temperature=1.2, **SHORT),
}


@dataclass(frozen=True)
class CaseResult:
    """The predictions and measurements of a case."""

    case: Case
    pilot: Measured
    measured: Measured
    advice: Advice
    accuracy: Mapping[tuple[str, int], Interval]

    @property
    def pairs(self) -> list[tuple[Prediction, Interval]]:
        """Prediction and measured accuracy of each method and budget that has both."""
        known = [(each, self.accuracy.get((each.method, each.budget))) for each in self.advice.predictions]
        return [(each, accuracy) for each, accuracy in known if accuracy is not None]

    @property
    def shortfall(self) -> float:
        """How far the recommended method is behind the best measured one at its budget."""
        chosen = self.advice.chosen
        at_budget = [interval.value for (_, budget), interval in self.accuracy.items() if budget == chosen.budget]
        return max(at_budget) - self.accuracy[chosen.method, chosen.budget].value


def run(setting: Setting, cases: Sequence[str], budgets: Sequence[int] | None, methods: Sequence[str] | None) -> int:
    """Measure the cases, and write the report. Returns the number of failed runs."""
    results = []
    methods, budgets = methods or METHODS, budgets or BUDGETS
    for name in cases:
        case = CASES[name]
        pilot_setting = dataclasses.replace(setting, split=case.pilot, limit=setting.limit or PILOT, seeds=(0,))
        pilot = measure(pilot_setting, case.cells(["wbon"], [ANSWERS]))
        measured = measure(case.setting(setting), case.cells(methods, budgets))
        if pilot is None or measured is None:
            continue
        advice = asyncio.run(advise(pilot.named(), methods, budgets))
        accuracy = {(cell.method, cell.budget): cell.accuracy for cell in measured.report().cells}
        results.append(CaseResult(case, pilot, measured, advice, accuracy))
        write_report(results, setting)
    return sum(each.measured.failed for each in results)


def write_report(results: Sequence[CaseResult], setting: Setting) -> None:
    pairs = [pair for each in results for pair in each.pairs]
    errors = np.array([predicted.accuracy.value - interval.value for predicted, interval in pairs])
    overlaps = [_overlap(predicted.accuracy, interval) for predicted, interval in pairs]
    right = sum(each.shortfall <= CLOSE for each in results)
    parts = [
        "# Predicted by a pilot, and measured",
        f"Accuracies that `motes advise` predicts from {PILOT} validation problems with {ANSWERS} answers each, and "
        "those that the methods reach on test problems. The predictions are off by "
        f"{100 * np.abs(errors).mean():.1f} points in the mean ({100 * errors.mean():+.1f} with its sign). Their 95 % "
        f"intervals overlap the measured ones in {sum(overlaps)} of {len(overlaps)} cells. The recommended method is "
        f"within {100 * CLOSE:.0f} points of the best one at its budget in {right} of {len(results)} cases.",
    ]
    budgets = sorted({predicted.budget for predicted, _ in pairs})
    for each in results:
        regime = each.advice.regime
        cells = {(predicted.method, predicted.budget): (predicted, interval) for predicted, interval in each.pairs}
        rows = [
            [
                NAMES.get(method, method),
                *(_format_pair(*cells[method, budget]) for budget in budgets if (method, budget) in cells),
            ]
            for method in dict.fromkeys(method for method, _ in cells)
        ]
        parts += [
            f"## {each.case.title.capitalize()}",
            f"T = {regime.steps.value:.1f}, P = {percent(regime.success.value)}, AUROC {three(regime.auroc)}. "
            + " ".join(each.advice.words())
            + f" Measured: {100 * each.shortfall:.1f} points behind the best method at that N.",
            "\n".join(markdown_rows(["predicted / measured", *(f"N = {budget}" for budget in budgets)], rows)),
        ]
    parts.append(f"Made by `{setting.command}`.")
    rows = [
        {"case": each.case.title, **predicted.row(), **ends(interval, "found")}
        for each in results
        for predicted, interval in each.pairs
    ]
    measured = [part for each in results for part in (each.pilot, each.measured)]
    out, metadata = setting.out, csv_metadata(measured, "report.csv")
    write(out, {"report.md": "\n\n".join(parts) + "\n", "report.csv": csv_text(rows), **metadata})
    save(partial(figure, results), out / "advice", provenance_of(measured))


def _format_pair(predicted: Prediction, interval: Interval) -> str:
    return f"{100 * predicted.accuracy.value:.0f} / {100 * interval.value:.0f}"


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high


MARKERS = "osD^vP*X"


def figure(results: Sequence[CaseResult]) -> Figure:
    """Measured against predicted accuracy: a colour for each method, a marker for each case."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    canvas = Figure(figsize=(8.2, 5.9))
    axes: Any = canvas.add_axes((0.09, 0.1, 0.6, 0.74))
    axes.plot([0, 1], [0, 1], color="#9a9a9a", linewidth=0.9, zorder=1)
    styles = styles_of(predicted.method for each in results for predicted, _ in each.pairs)
    for each, marker in zip(results, MARKERS, strict=False):
        for predicted, interval in each.pairs:
            colour = styles[predicted.method].colour
            x, y = predicted.accuracy.value, interval.value
            axes.plot([predicted.accuracy.low, predicted.accuracy.high], [y, y], color=colour, linewidth=0.8, alpha=0.4)
            axes.plot([x, x], [interval.low, interval.high], color=colour, linewidth=0.8, alpha=0.4)
            axes.plot([x], [y], marker=marker, color=colour, markersize=3 + predicted.budget**0.4, zorder=3,
                      markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted", ylabel="measured")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    handles = [Line2D([], [], color=style.colour, linewidth=4, label=style.label) for style in styles.values()]
    handles += [
        Line2D([], [], color="#777777", marker=marker, linestyle="", label=each.case.title)
        for each, marker in zip(results, MARKERS, strict=False)
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9.5)
    sizes = ", ".join(map(str, sorted({predicted.budget for each in results for predicted, _ in each.pairs})))
    subtitle = f"N = {sizes}, the larger the larger the marker; 95 % intervals"
    heading(canvas, "Accuracy: predicted by a pilot, and measured", subtitle)
    return canvas
