"""Draw a report: accuracy against budget, against tokens, against FLOPs, and by level."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from motes.lab.measure.cells import Cell
from motes.lab.measure.comparison import chief_of
from motes.lab.measure.formats import flops
from motes.lab.measure.reliability import Quality
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.report import Report
from motes.lab.show.style import FAINT, Style, heading, save, styles_of
from motes.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 16
"""So many levels have room for a panel each."""
COLUMNS = 4
"""Small panels side by side."""
PANELS = 5
"""Budgets whose differences are drawn: the largest."""


class Scale(NamedTuple):
    """What accuracy is drawn against: its name, a cell's place on it, and the ticks for places. `dodged`: whether
    points of several methods at one place stand side by side; elsewhere each stands where it was measured."""

    label: str
    place: Callable[[Cell], float]
    ticks: Callable[[Sequence[float]], dict[float, str]]
    dodged: bool = False


class Reference(NamedTuple):
    """What others measured of a method, drawn dashed in its colour: shares, each at its place."""

    method: str
    places: Sequence[float]
    shares: Sequence[float]


class Panel(NamedTuple):
    """Cells, each at its place on a logarithmic axis that spans `span`, and what they are compared with."""

    title: str
    cells: Sequence[Cell]
    places: Sequence[float]
    span: Sequence[float]
    ticks: Mapping[float, str]
    label: str
    references: Sequence[Reference] = ()
    dodged: bool = True


def draw(report: Report, directory: Path) -> list[Path]:
    """Write `accuracy`, where models' sizes are known `cost`, where several methods are compared `differences`, where
    there are levels `levels`, and where records tell `reliability`, as PNG and SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = {
        "accuracy": accuracy_figure,
        "cost": cost_figure,
        "differences": differences_figure,
        "levels": levels_figure,
        "reliability": reliability_figure,
    }
    return [
        path
        for name, figure in figures.items()
        for path in save(partial(figure, report), directory / name, report.provenance)
    ]


def accuracy_figure(report: Report) -> Figure:
    """Two panels with a common accuracy axis: against the budget, and against all tokens that a run needs."""
    return curves_figure(report, [BUDGET, TOKENS])


def cost_figure(report: Report) -> Figure | None:
    """Against FLOPs, and against seconds where runs were timed alone; None where a model's size is unknown, or nothing
    was counted."""
    if not all(cell.total_flops for cell in report.cells):
        return None
    alone = all(cell.seconds.concurrency == 1 for cell in report.cells)
    return curves_figure(report, [FLOPS, SECONDS] if alone else [FLOPS])


def differences_figure(report: Report) -> Figure | None:
    """Each method's difference to the chief one at each budget, with simultaneous intervals, as a forest plot: a panel
    for each budget; None where there is nothing to compare."""
    budgets = sorted({difference.budget for difference in report.differences})[-PANELS:]
    if not budgets:
        return None
    named = {method: " ".join(style.label.split("\n")) for method, style in styles_of(report.cells).items()}
    compared = {method: named[method] for method in named if any(d.method == method for d in report.differences)}
    if len(set(compared.values())) < len(compared):
        compared = {method: visible(method) for method in compared}
    panels = [
        Forest(
            f"at {budget}, points",
            {compared[d.method]: d.simultaneous for d in report.differences if d.budget == budget},
        )
        for budget in budgets
    ]
    return forest_figure(
        panels,
        {"": list(compared.values())},
        f"Accuracy less that of {named[report.chief]} on {report.title}",
        "at the same budget, on the same problems; 95 % intervals that hold together; full: 0 is outside",
    )


def curves_figure(
    report: Report, scales: Sequence[Scale], groups: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Figure:
    """A panel for each scale, side by side. With groups, a column for each, of its methods and the chief one, and a row
    for each scale.

    Args:
        groups: the methods of each group, by its name; methods that the report lacks are passed over.
    """
    columns = {name: [cell for cell in report.cells if cell.method in (report.chief, *methods)]
               for name, methods in groups.items() if any(cell.method in methods for cell in report.cells)}  # fmt: skip
    panels = []
    scales = [scale for scale in scales if all(scale.place(cell) > 0 for cell in report.cells)]  # they are logarithmic
    for scale in scales:
        everywhere = [scale.place(cell) for cell in report.cells]
        for name, cells in (columns or {"": list(report.cells)}).items():
            places = [scale.place(cell) for cell in cells]
            ticks = scale.ticks(everywhere)
            panels.append(Panel(name, cells, places, everywhere, ticks, scale.label, dodged=scale.dodged))
    title, subtitle = f"Accuracy on {report.title}", f"{report.models}; band and whiskers: 95 % intervals"
    return panels_figure(panels, len(columns) or len(scales), title, subtitle)


def panels_figure(panels: Sequence[Panel], columns: int, title: str, subtitle: str) -> Figure:
    """Panels of one size, row by row, with a common accuracy axis and room for labels on the right of each."""
    from matplotlib.figure import Figure

    across, down, gap, below, above, left = 3.25, 3.2, 1.4, 0.95, 1.0, 0.715  # all in inches
    rows = len(panels) // columns
    width, height = left + columns * (across + gap), above + rows * down + (rows - 1) * below + 0.65
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=1 - gap / width, top=1 - above / height, bottom=0.65 / height,
        wspace=gap / across, hspace=below / down,
    )  # fmt: skip
    everything = [cell for panel in panels for cell in panel.cells]
    references = [share for panel in panels for reference in panel.references for share in reference.shares]
    styles = styles_of(everything)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _limits(axes, everything, references)
        _curves(axes, panel.cells, panel.places, styles, dodged=panel.dodged)
        for method, places, shares in panel.references:
            colour = styles[method].colour if method in styles else FAINT
            axes.plot(places, shares, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), zorder=2.5, clip_on=False)
        _log2_axis(axes, panel.ticks, panel.label)
        margin = max(1.02, (max(panel.span) / min(panel.span)) ** 0.045)
        axes.set_xlim(min(panel.span) / margin, max(panel.span) * margin)
        axes.set_title(panel.title, loc="left", fontsize=10, color="#555555")
    heading(figure, title, subtitle)
    return figure


def levels_figure(report: Report) -> Figure | None:
    """One small panel for each level, accuracy against budget; None where there are no levels to tell apart."""
    from matplotlib.figure import Figure

    levels = sorted({cell.level for cell in report.levels if cell.level is not None})
    if not 2 <= len(levels) <= LEVELS:
        return None
    figure = Figure(figsize=(2.2 * len(levels) + 2, 3.8))
    panels: Sequence[Axes] = figure.subplots(1, len(levels), sharey=True)
    width = figure.get_figwidth()
    figure.subplots_adjust(left=0.6 / width, right=1 - 1.75 / width, top=0.72, bottom=0.17, wspace=0.1)
    for level, panel in zip(levels, panels, strict=True):
        cells = [cell for cell in report.levels if cell.level == level]
        _limits(panel, report.levels)
        budgets = [float(cell.budget) for cell in cells]
        _curves(panel, cells, budgets, styles_of(report.cells), labels=level == levels[-1], whiskers=False)
        _log2_axis(panel, BUDGET.ticks([BUDGET.place(cell) for cell in report.cells]), "")
        panel.set_title(f"level {level}", loc="left", fontsize=10, color="#555555")
    figure.supxlabel("budget: trajectories drawn per problem", fontsize=10, x=(0.6 + width - 1.75) / 2 / width, y=0.02)
    each = max(cell.problems for cell in report.levels)
    heading(figure, f"Accuracy by level on {report.title}", f"{each} problems a level; band: 95 % interval")
    return figure


def reliability_figure(report: Report) -> Figure | None:
    """The share of right answers against what was predicted, a small panel for each method at its largest budget: a row
    for scores, one for confidences. A point's area is in proportion to its number of answers. None where records do not
    tell."""
    from matplotlib.figure import Figure

    kinds = {"score": "the reward model's score in %", "confidence": "confidence in the answer in %"}
    largest = {quality.method: quality.budget for quality in sorted(report.qualities, key=lambda q: q.budget)}
    shown = [quality for quality in report.qualities if 1 < quality.budget == largest[quality.method]]
    of_kind = {kind: [quality for quality in shown if quality.kind == kind] for kind in kinds}
    rows: list[list[Quality]] = [
        of[start : start + COLUMNS] for of in of_kind.values() for start in range(0, len(of), COLUMNS)
    ]
    if not rows:
        return None
    columns = max(map(len, rows))
    styles = styles_of(report.cells)
    side, gap, left, below = 1.75, 0.25, 0.75, 0.65  # all in inches, as the next ones
    titles = 0.15 * max(styles[quality.method].label.count("\n") + 2 for quality in shown)
    above, apart = 0.9 + titles, 0.55 + titles  # from the top, and from row to row
    width = max(5.5, left + columns * (side + gap))
    height = above + len(rows) * (side + apart) - apart + below
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=(left + columns * (side + gap) - gap) / width, top=1 - above / height,
        bottom=below / height, wspace=gap / side, hspace=apart / side,
    )  # fmt: skip
    for row, panels in zip(rows, grid, strict=True):
        for number, axes in enumerate(panels):
            if number >= len(row):
                axes.set_visible(False)
                continue
            _reliability(axes, row[number], styles[row[number].method])
            axes.tick_params(labelleft=number == 0)
        panels[0].set_xlabel(kinds[row[0].kind], loc="left")
        panels[0].set_ylabel("right in %")
    heading(
        figure,
        f"Calibration on {report.title}",
        "share that is right against what was predicted, ten bins, 95 % intervals; area: number of answers",
    )
    return figure


def _reliability(axes: Axes, quality: Quality, style: Style) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    most = max(each.count for each in quality.bins)
    for each in quality.bins:
        axes.vlines(each.mean, each.right.low, each.right.high, color=style.colour, linewidth=1.1, alpha=0.5, zorder=3)
        axes.scatter(
            each.mean, each.right.value, s=6 + 90 * each.count / most, color=style.colour, alpha=0.85,
            edgecolors="white", linewidths=0.6, zorder=5, clip_on=False,
        )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1], labels=["0", "50", "100"])
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    title = f"{style.label}\nN = {quality.budget}, ECE {quality.ece:.2f}"
    axes.set_title(title, loc="left", fontsize=9, color=style.colour)


def _limits(axes: Axes, cells: Sequence[Cell], references: Sequence[float] = ()) -> None:
    """A percent axis that holds everything drawn: of the oracles, those of `majority`."""
    oracles = [cell.oracle.value for cell in cells if cell.method == "majority"]
    ends = [end for cell in cells for end in dataclasses.astuple(cell.accuracy) if math.isfinite(end)]
    low = min([*ends, *references, 0.9])  # room for a curve where everything is right
    high = max([*ends, *oracles, *references])
    axes.set_ylim(math.floor(low * 10) / 10, min(1.0, math.ceil(high * 10) / 10) + 0.005)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")


def _curves(
    axes: Axes,
    cells: Sequence[Cell],
    positions: Sequence[float],
    styles: Mapping[str, Style],
    *,
    labels: bool = True,
    whiskers: bool = True,
    dodged: bool = True,
) -> None:
    """A line for each method, the chief one with a band and the others with whiskers; a level line for one that has a
    single budget; a dashed line for what any of the samples reached. Points with their whiskers are set side by side
    where they are `dodged`."""
    chief = chief_of(list(styles))
    shown = {method: styles[method] for method in styles if any(cell.method == method for cell in cells)}
    ends: list[tuple[float, float, str, str]] = []  # x and y of a line's end, label, colour
    right = max(positions)
    apart = 0.012 * (math.log2(right) - math.log2(min(positions))) if dodged and whiskers else 0.0
    for place, (method, (label, colour, marker)) in enumerate(shown.items()):
        points = sorted((x, cell.accuracy) for x, cell in zip(positions, cells, strict=True) if cell.method == method)
        x = [point[0] * 2 ** (apart * (place - (len(shown) - 1) / 2)) for point in points]
        y, low, high = ([getattr(point[1], end) for point in points] for end in ("value", "low", "high"))
        if method == chief and len(points) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        elif whiskers:
            axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.45, zorder=3, clip_on=False)
        if len(points) == 1 and right > x[0]:
            axes.plot([x[0], right], [y[0], y[0]], color=colour, linewidth=1.2, linestyle=(0, (1, 2)), zorder=3)
        width, size = (2.6, 7.0) if method == chief else (1.6, 5.5)
        axes.plot(
            x, y, color=colour, marker=marker, markersize=size, linewidth=width, markeredgecolor="white",
            markeredgewidth=0.8, zorder=5 + (method == chief), clip_on=False,
        )  # fmt: skip
        ends.append((x[-1] if len(points) > 1 else right, y[-1], label, colour))
    sampled = [(x, cell.oracle.value) for x, cell in zip(positions, cells, strict=True) if cell.method == "majority"]
    if len(sampled) > 1:
        x, y = map(list, zip(*sorted(sampled), strict=True))
        axes.plot(x, y, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1, clip_on=False)
        ends.append((x[-1], y[-1], "any of N right", FAINT))
    if labels:
        _label(axes, ends)


def _label(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Each line's name to the right of its end, moved up or down until none covers another."""
    inches = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    lines = [label.count("\n") + 1 for _, _, label, _ in ends]
    line = 12.5 / 72 / inches * (high - low)
    gaps = [0.0, *((a + b) / 2 * line + 0.08 * line for a, b in itertools.pairwise(lines))]
    for (x, y, label, colour), height in zip(ends, _spread([end[1] for end in ends], gaps, high), strict=True):
        axes.annotate(
            label, (x, y), (1.04, height), textcoords=("axes fraction", "data"), color=colour, va="center",
            fontsize=9.5, linespacing=1.0, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 5,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread(values: Sequence[float], gaps: Sequence[float], high: float) -> list[float]:
    """Ascending values moved apart to at least `gaps` (from each one's predecessor), as little as it takes, none above
    `high`: isotonic regression by pooling adjacent violators."""
    offsets = [sum(gaps[: i + 1]) for i in range(len(values))]
    pools: list[tuple[float, int]] = []  # mean of value − offset, count
    for value, offset in zip(values, offsets, strict=True):
        pools.append((value - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    spread = [mean for mean, count in pools for _ in range(count)]
    return [min(mean + offset, high - offsets[-1] + offset) for mean, offset in zip(spread, offsets, strict=True)]


def _budgets(values: Sequence[float]) -> dict[float, str]:
    return {value: _short(value) for value in values}


def _powers(values: Sequence[float]) -> dict[float, str]:
    """The powers of two among the values, at most seven or so."""
    low, high = (math.log2(max(1.0, value)) for value in (min(values), max(values)))
    step = max(1, math.ceil((high - low) / 7))
    powers = [2.0**power for power in range(math.ceil(low - 0.3), math.floor(high + 0.3) + 1, step)]
    return {power: _short(power) for power in powers}


def _seconds(values: Sequence[float]) -> dict[float, str]:
    """1, 2 and 5 times powers of ten, or powers alone where there are many."""
    low, high = math.log10(min(values)), math.log10(max(values))
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return {tick: f"{tick:g}" for tick in ticks if low - 0.1 <= math.log10(tick) <= high + 0.1}


def _decades(values: Sequence[float]) -> dict[float, str]:
    """The powers of ten among the values; where there are few, multiples of them as well."""
    low, high = (math.log10(max(1.0, value)) for value in (min(values), max(values)))
    factors = (1, 2, 5) if high - low < 1.4 else (1, 3) if high - low < 4 else (1,)
    ticks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return {tick: flops(tick) for tick in ticks if low - 0.1 <= math.log10(tick) <= high + 0.1}


BUDGET = Scale("budget: trajectories drawn per problem", lambda cell: float(cell.budget), _budgets, dodged=True)
TOKENS = Scale("tokens needed per problem, both models", lambda cell: cell.total_tokens, _powers)
SECONDS = Scale("seconds per problem, median, alone", lambda cell: cell.seconds.median, _seconds)
FLOPS = Scale("FLOPs per problem, both models", lambda cell: cell.total_flops or math.nan, _decades)


def _log2_axis(axes: Axes, ticks: Mapping[float, str], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), labels=[ticks[tick] for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _short(number: float) -> str:
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
