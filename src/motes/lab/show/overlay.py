"""Draw evaluations over each other: a method has its colour and marker in all of them, an evaluation its line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from motes.lab.measure.cells import Cell
from motes.lab.show.comparing import Comparison, Curve
from motes.lab.show.plot import BUDGET, TOKENS, Scale
from motes.lab.show.style import heading, styles_of
from motes.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
"""On and off, in widths of the line, of each evaluation's lines."""


class Look(NamedTuple):
    """How a curve is drawn and called; `dashes` as in `DASHES`."""

    label: str
    colour: str
    marker: str
    dashes: tuple[float, ...]


def looks_of(comparison: Comparison) -> dict[Curve, Look]:
    """Of every curve: the colour of its method, darker or lighter by evaluation."""
    styles = styles_of([cell for cells in comparison.cells.values() for cell in cells])
    place = {name: i for i, name in enumerate(comparison.reports)}
    return {
        curve: Look(
            f"{styles[curve.method].label.replace(chr(10), ' ')}, {visible(curve.evaluation)}",
            _shaded(styles[curve.method].colour, place[curve.evaluation]),
            styles[curve.method].marker,
            DASHES[place[curve.evaluation] % len(DASHES)],
        )
        for curve in comparison.cells
    }


def _shaded(colour: str, place: int) -> str:
    """A colour as it is, then darker, lighter, darker still, …"""
    towards, share = (0, 255)[place % 2 == 0], 1 - 0.62 ** math.ceil(place / 2) if place else 0.0
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (towards - part)):02x}" for part in parts)


def overlaid_figure(comparison: Comparison) -> Figure:
    """Accuracy against the budget, and against the tokens computed: all curves of all evaluations, named below."""
    from matplotlib.figure import Figure

    looks = looks_of(comparison)
    columns = 2 if max(len(look.label) for look in looks.values()) > 30 else 3
    rows = math.ceil(len(looks) / columns)
    width, panels, above = 8.0, 3.3, 0.85  # in inches: 1,600 pixels wide
    below = 0.6 + 0.21 * rows + 0.1
    height = above + panels + below
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - above / height, bottom=below / height, wspace=0.08)
    for axes, scale in zip(grid, (BUDGET, TOKENS), strict=True):
        _panel(axes, comparison.cells, looks, scale)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.075, 0.0), ncols=columns, frameon=False, fontsize=9,
        handlelength=3.2, columnspacing=1.4, labelspacing=0.35, borderpad=0.2,
    )  # fmt: skip
    names = ", ".join(comparison.reports)
    heading(figure, f"Accuracy on {comparison.title}", f"{names}; whiskers: 95 % intervals")
    return figure


def _panel(axes: Axes, cells: Mapping[Curve, tuple[Cell, ...]], looks: Mapping[Curve, Look], scale: Scale) -> None:
    """All curves over one scale. Budgets are the same for all: there each curve stands a little beside the others."""
    place: Callable[[Cell], float] = scale.place
    everywhere = [place(cell) for each in cells.values() for cell in each if place(cell) > 0]
    low, high = (math.log2(end(everywhere, default=1.0)) for end in (min, max))
    apart = 0.006 * max(high - low, 1.0) if scale is BUDGET else 0.0
    for number, (curve, each) in enumerate(cells.items()):
        label, colour, marker, dashes = looks[curve]
        shown = [cell for cell in each if place(cell) > 0]
        aside = 2 ** (apart * (number - (len(cells) - 1) / 2))
        x, y = [place(cell) * aside for cell in shown], [cell.accuracy.value for cell in shown]
        bounds = [cell.accuracy if cell.accuracy.is_known else None for cell in shown]
        for at, bound in zip(x, bounds, strict=True):
            if bound is not None:
                axes.vlines(at, bound.low, bound.high, color=colour, linewidth=1.1, alpha=0.45, zorder=3)
        axes.plot(
            x, y, color=colour, marker=marker, markersize=5.5, linewidth=1.6, markeredgecolor="white",
            markeredgewidth=0.8, linestyle=(0, dashes) if dashes else "-", label=label, zorder=5, clip_on=False,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = scale.ticks(everywhere or [1.0])
    axes.set_xticks(sorted(ticks), labels=[ticks[tick] for tick in sorted(ticks)])
    axes.minorticks_off()
    axes.set_xlabel(scale.label)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
