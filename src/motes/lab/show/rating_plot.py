"""Draw a rating: the share of right steps against the score."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from motes.lab.measure.rating import Rating
from motes.lab.show.style import FAINT, heading, save
from motes.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = "#D55E00"


def draw(rating: Rating, directory: Path) -> list[Path]:
    """Write `reliability` as PNG and SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return save(partial(reliability_figure, rating), directory / "reliability")


def reliability_figure(rating: Rating) -> Figure:
    """The share of right steps against the mean score of each of ten bins; the larger the mark, the more steps."""
    from matplotlib.figure import Figure

    bins = rating.bins
    width, height = 5.2, 5.2  # inches
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.8 / width, right=1 - 0.3 / width, top=1 - 1.0 / height, bottom=0.65 / height)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    most = max(one.count for one in bins)
    x, y = [one.mean for one in bins], [one.right.value for one in bins]
    known = [one for one in bins if one.right.is_known]
    axes.vlines(
        [one.mean for one in known], [one.right.low for one in known], [one.right.high for one in known],
        color=COLOUR, linewidth=1.2, alpha=0.6, zorder=3,
    )  # fmt: skip
    sizes = [25 + 175 * one.count / most for one in bins]
    axes.scatter(x, y, s=sizes, color=COLOUR, edgecolor="white", linewidth=0.8, zorder=5, clip_on=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="the reward model's score of a step")
    axes.set_title("share of right steps", loc="left", fontsize=10, color="#555555")
    predictions = rating.predictions
    told = f"{counted(len(predictions), 'step')}, ECE {predictions.expected_calibration_error():.3f}; bars: 95 %"
    heading(figure, rating.title, told)
    return figure
