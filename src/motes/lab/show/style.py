"""The style of all figures: colours, fonts, headings, and how a figure is saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from motes import files
from motes.errors import MissingExtraError
from motes.lab.run.method_spec import NAMES
from motes.lab.run.provenance import Provenance
from motes.text import visible

if TYPE_CHECKING:
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
SPARE = ("#882255", "#332288", "#999933", "#CC79A7", "#44AA99", "#E69F00", "#004488", "#CC6677", "#997700", "#88CCEE")

PIXELS = 1600
"""A picture's width at most; at half of it letters are still read."""

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
    "text.parse_math": False,  # names and titles are text, whatever stands in them
    "text.usetex": False,
}


class HasMethod(Protocol):
    """What a point of a curve is of."""

    @property
    def method(self) -> str: ...


class Style(NamedTuple):
    label: str
    colour: str
    marker: str


def styles_of(measured: Iterable[HasMethod]) -> dict[str, Style]:
    """For each method spec among what was measured, or predicted; one with settings gets a colour of its own."""
    styles: dict[str, Style] = {}
    methods = list(dict.fromkeys(each.method for each in measured))
    taken = {STYLES[method][0] for method in methods if method in STYLES}
    spare = itertools.cycle([colour for colour in SPARE if colour not in taken] or SPARE)
    for method in methods:
        name, _, settings = method.partition(":")
        label = NAMES.get(name, name)
        colour, marker = STYLES.get(name, (FAINT, "o"))
        if settings or name not in STYLES:
            label, colour = "\n".join(map(visible, [label, *settings.split(":")])).strip(), next(spare)
        styles[method] = Style(label, colour, marker)
    return styles


def save(figure: Callable[[], Figure | None], path: Path, provenance: Provenance | None = None) -> list[Path]:
    """Draw a figure in the house's style, as PNG and SVG beside each other; the same figure gives the same files.

    Args:
        provenance: what its numbers come from: kept in the files' metadata, as JSON.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("the plot", "plot") from error
    paths = []
    with matplotlib.rc_context(SETTINGS):
        if (drawn := figure()) is not None:
            for suffix, metadata in metadata_of(provenance).items():
                paths.append(path.with_suffix(suffix))
                with files.replacing(paths[-1]) as new:
                    dpi = min(200.0, PIXELS / drawn.get_figwidth())
                    drawn.savefig(new, format=suffix[1:], dpi=dpi, metadata=metadata, facecolor="white")
    return paths


def metadata_of(provenance: Provenance | None) -> dict[str, dict[str, str | None]]:
    """What matplotlib writes into a file of each kind, by its suffix: nothing of the clock and of the drawing program,
    and where the numbers come from, as JSON."""
    told = {} if not provenance else {"Description": provenance.to_json()}
    return {".png": {"Software": None, **told}, ".svg": {"Date": None, **told}}


def heading(figure: Figure, title: str, subtitle: str, left: float | None = None) -> None:
    """Title and subtitle, at the left edge of the first panel or as told, set in inches from the top; smaller, or cut,
    where names are too long for the figure."""
    left = figure.axes[0].get_position().x0 if left is None else left
    height, room = figure.get_figheight(), (0.97 - left) * figure.get_figwidth()
    for words, down, most, weight, colour in (
        (title, 0.2, 14.0, "bold", INK),
        (subtitle, 0.5, 10.0, "normal", "#666666"),
    ):
        words, size = _fitted(visible(words), most, weight, room)
        figure.text(left, 1 - down / height, words, fontsize=size, fontweight=weight, color=colour, va="top")


SMALLEST = 7.0
"""The size, in points, to which a heading shrinks before it is cut."""


def _fitted(words: str, size: float, weight: str, inches: float) -> tuple[str, float]:
    """A line that is no wider than that, and its size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    def width(words: str) -> float:
        return float(TextPath((0, 0), words, size=1, prop=FontProperties(weight=weight)).get_extents().width) / 72

    if (whole := width(words)) * size <= inches:
        return words, size
    if whole * SMALLEST <= inches:
        return words, inches / whole
    kept = int(len(words) * inches / (whole * SMALLEST))
    while width(f"{words[:kept]}…") * SMALLEST > inches:
        kept -= 1
    return f"{words[:kept]}…", SMALLEST
