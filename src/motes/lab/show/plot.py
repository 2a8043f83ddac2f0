"""Draw the figures of a report: accuracy against budget, tokens and FLOPs, by level, and more."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from motes.lab.measure.cells import Cell
from motes.lab.measure.comparison import chief_of
from motes.lab.measure.formats import flops
from motes.lab.measure.reliability import Quality
from motes.lab.show.forest import Forest, forest_figure
from motes.lab.show.report import Report
from motes.lab.show.style import FAINT, Style, heading, styles_of
from motes.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LEVELS, COLUMNS, MAX_PANELS = 16, 4, 5
"""Maximum number of levels in a figure, of small panels side by side, and of budgets (the largest ones) with a panel of
differences."""


class Scale(NamedTuple):
    """The horizontal axis of a plot of accuracy: its label, a cell's place on it, and the ticks for given places.
    `dodged`: whether points of several methods at one place are drawn side by side."""

    label: str
    place: Callable[[Cell], float]
    ticks: Callable[[Sequence[float]], dict[float, str]]
    dodged: bool = False


class Panel(NamedTuple):
    """Cells, each at its place on a logarithmic axis over `span`. `references`: for some methods, the places and shares
    that others measured; they become a dashed line in the method's colour."""

    title: str
    cells: Sequence[Cell]
    places: Sequence[float]
    span: Sequence[float]
    ticks: Mapping[float, str]
    label: str
    references: Mapping[str, Sequence[tuple[float, float]]] = MappingProxyType({})
    dodged: bool = True


def cost_figure(report: Report) -> Figure | None:
    """Accuracy against FLOPs, and against seconds if each run was timed alone; None if FLOPs are unknown or 0."""
    if not all(cell.total_flops for cell in report.cells):
        return None
    alone = all(cell.seconds.concurrency == 1 for cell in report.cells)
    return curves_figure(report, [FLOPS, SECONDS] if alone else [FLOPS])


def differences_figure(report: Report) -> Figure | None:
    """The difference of each method to the chief one, with simultaneous intervals: a forest plot with a panel for each
    budget. None if there is nothing to compare."""
    budgets = sorted({difference.budget for difference in report.differences})[-MAX_PANELS:]
    if not budgets:
        return None
    names = {
        method: style.label.replace("=\n", "=").replace("\n", " ")
        for method, style in styles_of(report.methods).items()
    }
    labels = {difference.method: names[difference.method] for difference in report.differences}
    if len(set(labels.values())) < len(labels):
        labels = {method: visible(method) for method in labels}
    panels = []
    for budget in budgets:
        values = {labels[d.method]: d.simultaneous for d in report.differences if d.budget == budget}
        panels.append(Forest(f"at {budget}, points", values))
    return forest_figure(
        panels,
        {"": list(labels.values())},
        f"Accuracy less that of {names[report.chief]} on {report.title}",
        "at the same budget, on the same problems; simultaneous 95 % intervals; full marker: 0 is outside",
    )


def curves_figure(
    report: Report, scales: Sequence[Scale], groups: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Figure:
    """A panel for each scale, side by side. With groups (methods by the group's name; those that the report lacks are
    ignored): a row for each scale, and a column for each group, with its methods and the chief one."""
    columns = {
        name: [cell for cell in report.cells if cell.method in (report.chief, *methods)]
        for name, methods in groups.items()
        if not set(methods).isdisjoint(report.methods)
    }
    panels = []
    scales = [scale for scale in scales if all(scale.place(cell) > 0 for cell in report.cells)]  # they are logarithmic
    for scale in scales:
        span = [scale.place(cell) for cell in report.cells]
        for name, cells in (columns or {"": list(report.cells)}).items():
            places = [scale.place(cell) for cell in cells]
            panels.append(Panel(name, cells, places, span, scale.ticks(span), scale.label, dodged=scale.dodged))
    title, subtitle = f"Accuracy on {report.title}", f"{report.models}; band and whiskers: 95 % intervals"
    return panels_figure(panels, len(columns) or len(scales), title, subtitle)


def panels_figure(panels: Sequence[Panel], columns: int, title: str, subtitle: str) -> Figure:
    """Panels of the same size, row by row, with a common accuracy axis and room for labels to the right of each."""
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
    cells = [cell for panel in panels for cell in panel.cells]
    references = [share for panel in panels for points in panel.references.values() for _, share in points]
    styles = styles_of(cell.method for cell in cells)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _set_accuracy_axis(axes, cells, references)
        _draw_curves(axes, panel.cells, panel.places, styles, dodged=panel.dodged)
        for method, points in panel.references.items():
            colour = styles[method].colour if method in styles else FAINT
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linewidth=1.4,
                linestyle=(0, (4, 2)),
                zorder=2.5,
                clip_on=False,
            )
        set_log2_axis(axes, panel.ticks, panel.label)
        margin = max(1.02, (max(panel.span) / min(panel.span)) ** 0.045)
        axes.set_xlim(min(panel.span) / margin, max(panel.span) * margin)
        axes.set_title(panel.title, loc="left", fontsize=10, color="#555555")
    heading(figure, title, subtitle)
    return figure


def levels_figure(report: Report) -> Figure | None:
    """Accuracy against budget, a small panel for each level; None if there are fewer than two levels, or too many."""
    from matplotlib.figure import Figure

    levels = sorted({cell.level for cell in report.levels if cell.level is not None})
    if not 2 <= len(levels) <= MAX_LEVELS:
        return None
    figure = Figure(figsize=(2.2 * len(levels) + 2, 3.8))
    panels: Sequence[Axes] = figure.subplots(1, len(levels), sharey=True)
    width = figure.get_figwidth()
    figure.subplots_adjust(left=0.6 / width, right=1 - 1.75 / width, top=0.72, bottom=0.17, wspace=0.1)
    for level, panel in zip(levels, panels, strict=True):
        cells = [cell for cell in report.levels if cell.level == level]
        _set_accuracy_axis(panel, report.levels)
        budgets = [float(cell.budget) for cell in cells]
        _draw_curves(panel, cells, budgets, styles_of(report.methods), labels=level == levels[-1], whiskers=False)
        set_log2_axis(panel, BUDGET.ticks([BUDGET.place(cell) for cell in report.cells]), "")
        panel.set_title(f"level {level}", loc="left", fontsize=10, color="#555555")
    figure.supxlabel(BUDGET.label, fontsize=10, x=(0.6 + width - 1.75) / 2 / width, y=0.02)
    most = max(cell.problems for cell in report.levels)
    heading(figure, f"Accuracy by level on {report.title}", f"{most} problems a level; band: 95 % interval")
    return figure


def reliability_figure(report: Report) -> Figure | None:
    """The share of right answers against the prediction, a small panel for each method at its largest budget: a row for
    scores, a row for confidences. A point's area is proportional to its number of answers. None without predictions."""
    from matplotlib.figure import Figure

    kinds = {"score": "the reward model's score in %", "confidence": "confidence in the answer in %"}
    largest = {quality.method: quality.budget for quality in sorted(report.qualities, key=lambda q: q.budget)}
    shown = [quality for quality in report.qualities if 1 < quality.budget == largest[quality.method]]
    of_kind = {kind: [quality for quality in shown if quality.kind == kind] for kind in kinds}
    rows: list[list[Quality]] = [
        kind[start : start + COLUMNS] for kind in of_kind.values() for start in range(0, len(kind), COLUMNS)
    ]
    if not rows:
        return None
    columns = max(map(len, rows))
    styles = styles_of(report.methods)
    side, gap, left, below = 1.75, 0.25, 0.75, 0.65  # all in inches, like the following ones
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
            _draw_reliability(axes, row[number], styles[row[number].method])
            axes.tick_params(labelleft=number == 0)
        panels[0].set_xlabel(kinds[row[0].kind], loc="left")
        panels[0].set_ylabel("right in %")
    heading(
        figure,
        f"Calibration on {report.title}",
        "share of right answers against the prediction, ten bins, 95 % intervals; area: number of answers",
    )
    return figure


def _draw_reliability(axes: Axes, quality: Quality, style: Style) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    bins, error = quality.predictions.bins(), quality.predictions.expected_calibration_error()
    most = max(bin.count for bin in bins)
    for bin in bins:
        axes.vlines(bin.mean, bin.right.low, bin.right.high, color=style.colour, linewidth=1.1, alpha=0.5, zorder=3)
        axes.scatter(
            bin.mean, bin.right.value, s=6 + 90 * bin.count / most, color=style.colour, alpha=0.85,
            edgecolors="white", linewidths=0.6, zorder=5, clip_on=False,
        )  # fmt: skip
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1], labels=["0", "50", "100"])
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    title = f"{style.label}\nN = {quality.budget}, ECE {error:.2f}"
    axes.set_title(title, loc="left", fontsize=9, color=style.colour)


def _set_accuracy_axis(axes: Axes, cells: Sequence[Cell], references: Sequence[float] = ()) -> None:
    """Let the vertical axis, in percent, contain all accuracies, the references, and the oracle of `majority`."""
    oracles = [cell.oracle.value for cell in cells if cell.method == "majority"]
    ends = [end for cell in cells for end in dataclasses.astuple(cell.accuracy) if math.isfinite(end)]
    low = min([*ends, *references, 0.9])  # leaves room if everything is right
    high = max([*ends, *oracles, *references])
    axes.set_ylim(math.floor(low * 10) / 10, min(1.0, math.ceil(high * 10) / 10) + 0.005)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")


def _draw_curves(
    axes: Axes,
    cells: Sequence[Cell],
    positions: Sequence[float],
    styles: Mapping[str, Style],
    *,
    labels: bool = True,
    whiskers: bool = True,
    dodged: bool = True,
) -> None:
    """Draw a line for each method, the chief one with a band and the others with whiskers; a level line for a method
    with a single budget; and a dashed line for the oracle of the independent samples. If `dodged`, points and whiskers
    at the same place are drawn side by side."""
    chief = chief_of(list(styles))
    shown = {method: styles[method] for method in styles if any(cell.method == method for cell in cells)}
    ends: list[tuple[float, float, str, str]] = []  # x and y of a line's end, label, colour
    right = max(positions)
    distance = 0.012 * (math.log2(right) - math.log2(min(positions))) if dodged and whiskers else 0.0
    for place, (method, (label, colour, marker, _)) in enumerate(shown.items()):
        points = sorted((x, cell.accuracy) for x, cell in zip(positions, cells, strict=True) if cell.method == method)
        x = [point[0] * 2 ** (distance * (place - (len(shown) - 1) / 2)) for point in points]
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
    oracle = [(x, cell.oracle.value) for x, cell in zip(positions, cells, strict=True) if cell.method == "majority"]
    if len(oracle) > 1:
        x, y = map(list, zip(*sorted(oracle), strict=True))
        axes.plot(x, y, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1, clip_on=False)
        ends.append((x[-1], y[-1], "any of N right", FAINT))
    if labels:
        _draw_labels(axes, ends)


def _draw_labels(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write the name of each line to the right of its end, moved up or down so that names do not overlap."""
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
    """Ascending values, moved as little as possible so that each is at least its gap above the one before, and none is
    above `high`: isotonic regression by pooling adjacent violators."""
    offsets = [sum(gaps[: i + 1]) for i in range(len(values))]
    pools: list[tuple[float, int]] = []  # mean of value − offset, count
    for value, offset in zip(values, offsets, strict=True):
        pools.append((value - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    spread = [mean for mean, count in pools for _ in range(count)]
    return [min(mean + offset, high - offsets[-1] + offset) for mean, offset in zip(spread, offsets, strict=True)]


def _powers(values: Sequence[float]) -> dict[float, str]:
    """The powers of two in the range of the values, about seven at most."""
    low, high = (math.log2(max(1.0, value)) for value in (min(values), max(values)))
    step = max(1, math.ceil((high - low) / 7))
    powers = [2.0**power for power in range(math.ceil(low - 0.3), math.floor(high + 0.3) + 1, step)]
    return {power: _short(power) for power in powers}


def _seconds(values: Sequence[float]) -> dict[float, str]:
    """1, 2 and 5 times powers of ten, or only powers of ten over a large range."""
    low, high = math.log10(min(values)), math.log10(max(values))
    ticks = _decimal_ticks(low, high, (1, 2, 5) if high - low < 2.5 else (1,))
    return {tick: f"{tick:g}" for tick in ticks}


def _decades(values: Sequence[float]) -> dict[float, str]:
    """The powers of ten in the range of the values, and multiples of them over a small range."""
    low, high = (math.log10(max(1.0, value)) for value in (min(values), max(values)))
    factors = (1, 2, 5) if high - low < 1.4 else (1, 3) if high - low < 4 else (1,)
    return {tick: flops(tick) for tick in _decimal_ticks(low, high, factors)}


def _decimal_ticks(low: float, high: float, factors: Sequence[int]) -> list[float]:
    """The powers of ten from 10^low to 10^high or just outside, times the factors."""
    ticks = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [tick for tick in ticks if low - 0.1 <= math.log10(tick) <= high + 0.1]


BUDGET = Scale(
    "budget: trajectories drawn per problem",
    lambda cell: float(cell.budget),
    lambda budgets: {budget: _short(budget) for budget in budgets},
    dodged=True,
)
TOKENS = Scale("tokens needed per problem, both models", lambda cell: cell.total_tokens, _powers)
SECONDS = Scale("seconds per problem, median, alone", lambda cell: cell.seconds.median, _seconds)
FLOPS = Scale("FLOPs per problem, both models", lambda cell: cell.total_flops or math.nan, _decades)


def set_log2_axis(axes: Axes, ticks: Mapping[float, str], label: str) -> None:
    """Make the horizontal axis logarithmic, with these ticks and this label."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), labels=[ticks[tick] for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _short(number: float) -> str:
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


FIGURES: Mapping[str, Callable[[Report], Figure | None]] = {
    "accuracy": partial(curves_figure, scales=[BUDGET, TOKENS]),
    "cost": cost_figure,
    "differences": differences_figure,
    "levels": levels_figure,
    "reliability": reliability_figure,
}
"""The figures of a report, by file name; None where there is nothing to draw."""
