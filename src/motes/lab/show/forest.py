"""Draw forest plots: values with their intervals, a row for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from motes.lab.measure.statistics import Interval
from motes.lab.show.style import INK, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SURE, UNSURE, EXPECTED = "#D55E00", "#777777", "#d6e4f0"


def whole_points(share: float) -> str:
    """A difference of shares in percentage points, as short as possible."""
    return f"{round(100 * share, 2):+g}".replace("-", "−") if abs(share) > 1e-9 else "0"


class Forest(NamedTuple):
    """Named values with their intervals, compared with a reference. With `log2` they are factors on a logarithmic axis;
    0 and infinity stand for values beyond all measured ones. `words` formats a tick; `expected`: the predicted ranges
    of some of the values, by name."""

    label: str
    values: Mapping[str, Interval]
    reference: float = 0.0
    log2: bool = False
    words: Callable[[float], str] = whole_points
    expected: Mapping[str, tuple[float, float]] = MappingProxyType({})

    def place(self, value: float) -> float:
        if self.log2:
            return math.log2(value) if 0 < value < math.inf else math.copysign(math.inf, value - 1)
        return value

    def ends(self, name: str) -> tuple[float, float, float]:
        """The lower end of a row's interval, its value, and the upper end, as places on the axis."""
        interval = self.values[name]
        return self.place(interval.low), self.place(interval.value), self.place(interval.high)


def forest_figure(
    panels: Sequence[Forest],
    groups: Mapping[str, Sequence[str]],
    title: str,
    subtitle: str,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Figure:
    """Values with their intervals, a row for each, in groups; panels side by side share the rows. A group without a
    name has no heading; `labels` are written in the place of some rows' names.

    A marker is filled if its interval does not contain the reference. An arrowhead marks an end beyond all measured
    ones. A bar shows the expected range.
    """
    from matplotlib.figure import Figure

    places: dict[str, float] = {}
    headings: dict[str, float] = {}
    bottom = 0.0
    for group, names in groups.items():
        if group:
            headings[group] = bottom
            bottom -= 1
        for name in names:
            places[name] = bottom
            bottom -= 1
        bottom -= 0.35
    row_labels = [labels.get(name, name) for name in places]
    left = 0.35 + 0.078 * max(map(len, (*row_labels, *headings)))
    across, gap, above = max(2.6, 6.0 / len(panels)), 0.3, 0.85
    width, height = left + len(panels) * (across + gap), above + 0.26 * (0.35 - bottom) + 0.6
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=1 - gap / width, top=1 - above / height, bottom=0.6 / height, wspace=gap / across
    )
    for axes, panel in zip(grid.flat, panels, strict=True):
        same_scale = [other for other in panels if other[2:5] == panel[2:5]]
        ends = [end for other in same_scale for name in places if name in other.values for end in other.ends(name)]
        ends += [other.place(edge) for other in same_scale for both in other.expected.values() for edge in both]
        finite = [end for end in ends if math.isfinite(end)] + [panel.place(panel.reference)]
        margin = 0.08 * (max(finite) - min(finite)) or 0.5
        axes.set_xlim(min(finite) - margin, max(finite) + margin)
        axes.set_ylim(bottom, 0.8)
        _draw_forest(axes, panel, {name: place for name, place in places.items() if name in panel.values})
    axes = grid.flat[0]
    axes.set_yticks(list(places.values()), labels=row_labels, color=INK)
    for group, place in headings.items():
        axes.annotate(
            group, (0, place), (-left * 72 + 12, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontweight="bold", fontsize=9.5, annotation_clip=False,
        )  # fmt: skip
    heading(figure, title, subtitle, left=0.17 / width)
    return figure


def _draw_forest(axes: Axes, panel: Forest, places: Mapping[str, float]) -> None:
    reference, (low, high) = panel.place(panel.reference), axes.get_xlim()
    axes.axvline(reference, color="#9a9a9a", linewidth=0.9, zorder=1)
    for name, y in places.items():
        if name in panel.expected:
            start, end = (min(max(panel.place(edge), low), high) for edge in panel.expected[name])
            axes.barh([y], [end - start], height=0.72, left=start, color=EXPECTED, zorder=1.5)
        first, value, last = panel.ends(name)
        sure = first > reference or last < reference
        colour = SURE if sure else UNSURE
        axes.plot([max(first, low), min(last, high)], [y, y], color=colour, linewidth=1.4, zorder=2)
        for edge, marker, beyond in ((low, "<", first == -math.inf), (high, ">", last == math.inf)):
            if beyond:
                axes.plot([edge], [y], marker=marker, color=colour, markersize=5, zorder=3, clip_on=False)
        axes.plot([value], [y], marker="o", markersize=6, color=colour, zorder=4,
                  markerfacecolor=colour if sure else "white", markeredgewidth=1.2)  # fmt: skip
    if panel.log2:
        step = max(1, math.ceil((high - low) / 6))
        ticks = [power for power in range(math.ceil(low), math.floor(high) + 1) if power % step == 0]
        axes.set_xticks(ticks, labels=[f"{2 ** max(0, tick)}" if tick >= 0 else f"1/{2**-tick}" for tick in ticks])
    else:
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda x, _: panel.words(x))
    axes.set_xlabel(panel.label)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
