"""Draw several evaluations in one figure: colour and marker of a curve show the method, its dashes the evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from motes.lab.measure.cells import Cell
from motes.lab.show.comparing import Comparison, Curve
from motes.lab.show.plot import BUDGET, TOKENS, Scale, set_log2_axis
from motes.lab.show.style import Style, heading, styles_of
from motes.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
"""The dashes of each evaluation's lines."""


def looks_of(comparison: Comparison) -> dict[Curve, Style]:
    """The style of each curve: it has the colour of its method, darker or lighter by evaluation."""
    styles = styles_of(curve.method for curve in comparison.cells)
    places = list(comparison.reports)
    looks = {}
    for curve in comparison.cells:
        style, place = styles[curve.method], places.index(curve.evaluation)
        label = f"{style.label.replace(chr(10), ' ')}, {visible(curve.evaluation)}"
        looks[curve] = Style(label, _shade(style.colour, place), style.marker, DASHES[place % len(DASHES)])
    return looks


def _shade(colour: str, place: int) -> str:
    """The colour itself at place 0, then darker, lighter, darker still, …"""
    target, share = (0, 255)[place % 2 == 0], 1 - 0.62 ** math.ceil(place / 2) if place else 0.0
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (target - part)):02x}" for part in parts)


def overlaid_figure(comparison: Comparison) -> Figure:
    """All curves of all evaluations, with a legend below: accuracy against the budget, and against tokens."""
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
        _draw_panel(axes, comparison.cells, looks, scale)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.075, 0.0), ncols=columns, frameon=False, fontsize=9,
        handlelength=3.2, columnspacing=1.4, labelspacing=0.35, borderpad=0.2,
    )  # fmt: skip
    names = ", ".join(comparison.reports)
    heading(figure, f"Accuracy on {comparison.title}", f"{names}; whiskers: 95 % intervals")
    return figure


def _draw_panel(
    axes: Axes, curves: Mapping[Curve, tuple[Cell, ...]], looks: Mapping[Curve, Style], scale: Scale
) -> None:
    """Draw all curves over one scale. Their budgets coincide, so over the budget each is moved a little to the side."""
    place: Callable[[Cell], float] = scale.place
    places = [place(cell) for cells in curves.values() for cell in cells if place(cell) > 0]
    span = math.log2(max(places, default=1.0)) - math.log2(min(places, default=1.0))
    distance = 0.006 * max(span, 1.0) if scale is BUDGET else 0.0
    for number, (curve, cells) in enumerate(curves.items()):
        label, colour, marker, dashes = looks[curve]
        shown = [cell for cell in cells if place(cell) > 0]
        factor = 2 ** (distance * (number - (len(curves) - 1) / 2))
        x, y = [place(cell) * factor for cell in shown], [cell.accuracy.value for cell in shown]
        low, high = [cell.accuracy.low for cell in shown], [cell.accuracy.high for cell in shown]
        axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.45, zorder=3)
        axes.plot(
            x, y, color=colour, marker=marker, markersize=5.5, linewidth=1.6, markeredgecolor="white",
            markeredgewidth=0.8, linestyle=(0, dashes) if dashes else "-", label=label, zorder=5, clip_on=False,
        )  # fmt: skip
    set_log2_axis(axes, scale.ticks(places or [1.0]), scale.label)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
