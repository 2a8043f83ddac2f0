"""Draw a report: accuracy against budget, against tokens, and by level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from motes.errors import MissingExtraError
from motes.lab.method_spec import NAMES
from motes.lab.report import Cell, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8a8a8a"
STYLES: dict[str, tuple[str, str]] = {
    "greedy": (FAINT, "D"),
    "majority": ("#009E73", "s"),
    "bon": ("#0072B2", "^"),
    "wbon": ("#56B4E9", "v"),
    "beam": ("#332288", "P"),
    "dvts": ("#999933", "X"),
    "rebase": ("#44AA99", "p"),
    "pf": ("#D55E00", "o"),
    "pg": ("#E69F00", "h"),
    "pt": ("#CC79A7", "*"),
    "epf": ("#882255", "8"),
    "islands": ("#661100", "d"),
    "adaptive": ("#AA4499", "H"),
    "power": ("#117733", "<"),
}
"""Colour (Okabe and Ito's and Tol's colour-blind-safe palettes) and marker of each method id."""
SPARE = ("#882255", "#332288", "#999933", "#CC79A7", "#44AA99", "#E69F00")

SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c8c8c8",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "svg.hashsalt": "motes",
}


def draw(report: Report, directory: Path) -> list[Path]:
    """Write `accuracy` and, where there are levels, `levels`, each as PNG and SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("the plot", "plot") from error
    paths: list[Path] = []
    with matplotlib.rc_context(SETTINGS):
        for name, figure in (("accuracy", accuracy_figure(report)), ("levels", levels_figure(report))):
            if figure is not None:
                for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                    paths.append(directory / f"{name}.{suffix}")
                    figure.savefig(paths[-1], dpi=200, metadata=metadata, facecolor="white")
    return paths


def accuracy_figure(report: Report) -> Figure:
    """Two panels with a common accuracy axis: against the budget, and against all tokens computed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5))
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.065, right=0.865, top=0.8, bottom=0.13, wspace=0.4)
    _limits(left, report.cells)
    _curves(left, report.cells, [float(cell.budget) for cell in report.cells])
    _curves(right, report.cells, [cell.total_tokens for cell in report.cells])
    _log2_axis(left, {float(cell.budget) for cell in report.cells}, "budget: trajectories drawn per problem")
    _log2_axis(right, _powers([cell.total_tokens for cell in report.cells]), "tokens computed per problem, both models")
    _heading(figure, f"Accuracy on {report.title}", f"{report.models}; band and whiskers: 95 % intervals")
    return figure


def levels_figure(report: Report) -> Figure | None:
    """One small panel for each level, accuracy against budget; None where there are no levels to tell apart."""
    from matplotlib.figure import Figure

    levels = sorted({cell.level for cell in report.levels if cell.level is not None})
    if len(levels) < 2:
        return None
    figure = Figure(figsize=(2.2 * len(levels) + 2, 3.8))
    panels: Sequence[Axes] = figure.subplots(1, len(levels), sharey=True)
    width = figure.get_figwidth()
    figure.subplots_adjust(left=0.6 / width, right=1 - 1.75 / width, top=0.72, bottom=0.17, wspace=0.1)
    for level, panel in zip(levels, panels, strict=True):
        cells = [cell for cell in report.levels if cell.level == level]
        _limits(panel, report.levels)
        _curves(panel, cells, [float(cell.budget) for cell in cells], labels=level == levels[-1], whiskers=False)
        _log2_axis(panel, {float(cell.budget) for cell in report.cells}, "")
        panel.set_title(f"level {level}", loc="left", fontsize=10, color="#555555")
    figure.supxlabel("budget: trajectories drawn per problem", fontsize=10, x=(0.6 + width - 1.75) / 2 / width, y=0.02)
    each = max(cell.problems for cell in report.levels)
    _heading(figure, f"Accuracy by level on {report.title}", f"{each} problems a level; band: 95 % interval")
    return figure


def _heading(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle, at the left edge of the first panel, set in inches from the top."""
    left, height = figure.axes[0].get_position().x0, figure.get_figheight()
    figure.text(left, 1 - 0.2 / height, title, fontsize=14, fontweight="bold", va="top")
    figure.text(left, 1 - 0.5 / height, subtitle, fontsize=10, color="#666666", va="top")


def _limits(axes: Axes, cells: Sequence[Cell]) -> None:
    low = min(cell.accuracy.low for cell in cells)
    high = max(max(cell.accuracy.high, cell.oracle.value) for cell in cells)
    axes.set_ylim(math.floor(low * 10) / 10, min(1.0, math.ceil(high * 10) / 10) + 0.005)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")


def _styles(cells: Sequence[Cell]) -> dict[str, tuple[str, str, str]]:
    """Name, colour and marker for each method spec; a method with settings gets a colour of its own."""
    styles: dict[str, tuple[str, str, str]] = {}
    spare = iter(SPARE * len(cells))
    for method in dict.fromkeys(cell.method for cell in cells):
        name, _, settings = method.partition(":")
        label = NAMES.get(name, name)
        colour, marker = STYLES.get(name, (FAINT, "o"))
        if settings or name not in STYLES:
            label, colour = "\n".join([label, *settings.split(":")]).strip(), next(spare)
        styles[method] = label, colour, marker
    return styles


def _curves(
    axes: Axes, cells: Sequence[Cell], positions: Sequence[float], *, labels: bool = True, whiskers: bool = True
) -> None:
    """A line for each method, the chief one with a band and the others with whiskers set side by side; a level line
    for one that has a single budget; a dashed line for what any of the samples reached."""
    styles = _styles(cells)
    chief = next((method for method in styles if method.startswith("pf")), next(iter(styles)))
    ends: list[tuple[float, float, str, str]] = []  # x and y of a line's end, label, colour
    right = max(positions)
    apart = 0.012 * (math.log2(right) - math.log2(min(positions)))
    for place, (method, (label, colour, marker)) in enumerate(styles.items()):
        points = sorted((x, cell.accuracy) for x, cell in zip(positions, cells, strict=True) if cell.method == method)
        x = [point[0] for point in points]
        y, low, high = ([getattr(point[1], end) for point in points] for end in ("value", "low", "high"))
        if method == chief and len(points) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        elif whiskers:
            beside = [value * 2 ** (apart * (place - (len(styles) - 1) / 2)) for value in x]
            axes.vlines(beside, low, high, color=colour, linewidth=1.1, alpha=0.45, zorder=3, clip_on=False)
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
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.5, "shrinkA": 1, "shrinkB": 5},
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


def _powers(values: Sequence[float]) -> set[float]:
    """The powers of two among the values, at most seven or so."""
    low, high = (math.log2(max(1.0, value)) for value in (min(values), max(values)))
    step = max(1, math.ceil((high - low) / 7))
    return {2.0**power for power in range(math.ceil(low - 0.3), math.floor(high + 0.3) + 1, step)}


def _log2_axis(axes: Axes, ticks: set[float], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ticks), labels=[_short(tick) for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _short(number: float) -> str:
    for size, unit in ((2**20, "M"), (2**10, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
