"""The style of all figures: colours, fonts, headings, and how a figure is saved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    "asc": ("#882255", "s"),
    "deepconf": ("#004488", "d"),
    "refine": ("#DDAA33", ">"),
    "pdr": ("#CC6677", "D"),
}
"""Colour (Okabe and Ito's and Tol's colour-blind-safe palettes) and marker of each method id."""
SPARE = ("#882255", "#332288", "#999933", "#CC79A7", "#44AA99", "#E69F00", "#004488", "#CC6677", "#997700", "#88CCEE")

PIXELS = 1600
"""The largest width of a picture; text is still legible at half of it."""

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


LONGEST_LINE = 17
"""Characters of a label beside a panel."""


class Style(NamedTuple):
    """How a curve is drawn; `dashes`: lengths on and off, in multiples of the line width, () for a solid line."""

    label: str
    colour: str
    marker: str
    dashes: tuple[float, ...] = ()


def styles_of(methods: Iterable[str]) -> dict[str, Style]:
    """The style of each method spec; a spec with settings gets a colour of its own."""
    styles: dict[str, Style] = {}
    methods = list(dict.fromkeys(methods))
    used = {STYLES[method][0] for method in methods if method in STYLES}
    spare = itertools.cycle([colour for colour in SPARE if colour not in used] or SPARE)
    for method in methods:
        name, _, settings = method.partition(":")
        label = NAMES.get(name, name)
        colour, marker = STYLES.get(name, (FAINT, "o"))
        if settings or name not in STYLES:
            lines = [visible(label), *(_broken(visible(setting)) for setting in settings.split(":"))]
            label, colour = "\n".join(lines).strip(), next(spare)
        styles[method] = Style(label, colour, marker)
    return styles


def _broken(setting: str) -> str:
    """A setting, with a break where it is too long for the room beside a panel."""
    return setting if len(setting) <= LONGEST_LINE else setting.replace("=", "=\n", 1)


def save(figure: Callable[[], Figure | None], path: Path, provenance: Provenance | None = None) -> list[Path]:
    """Draw a figure, if there is one, in the style of motes, as PNG and SVG; `path` has no suffix. The same figure
    gives the same files, with the provenance of its numbers as JSON in their metadata.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("the plot", "plot") from error
    description = {"Description": provenance.to_json()} if provenance else {}
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": None, **description},  # neither the name of the drawing program
        ".svg": {"Date": None, **description},  # nor the date
    }
    paths = []
    with matplotlib.rc_context(SETTINGS):
        if (canvas := figure()) is not None:
            for suffix in metadata:
                paths.append(path.with_suffix(suffix))
                with files.replacing(paths[-1]) as file:
                    dpi = min(200.0, PIXELS / canvas.get_figwidth())
                    canvas.savefig(file, format=suffix[1:], dpi=dpi, metadata=metadata[suffix], facecolor="white")
    return paths


def heading(figure: Figure, title: str, subtitle: str, left: float | None = None) -> None:
    """Write title and subtitle above the figure, smaller or cut if they are too long for it. `left`: the edge of the
    text, as a share of the figure's width; by default that of the first panel."""
    left = figure.axes[0].get_position().x0 if left is None else left
    height, room = figure.get_figheight(), (0.97 - left) * figure.get_figwidth()
    for line, inches_down, largest, weight, colour in (
        (title, 0.2, 14.0, "bold", INK),
        (subtitle, 0.5, 10.0, "normal", "#666666"),
    ):
        text, size = _fit_width(visible(line), largest, weight, room)
        figure.text(left, 1 - inches_down / height, text, fontsize=size, fontweight=weight, color=colour, va="top")


MIN_FONT_SIZE = 7.0
"""The size, in points, to which a heading shrinks before it is cut."""


def _fit_width(text: str, size: float, weight: str, inches: float) -> tuple[str, float]:
    """The text, cut if it cannot be made narrow enough, and its size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    def width(text: str) -> float:
        return float(TextPath((0, 0), text, size=1, prop=FontProperties(weight=weight)).get_extents().width) / 72

    if (full := width(text)) * size <= inches:
        return text, size
    if full * MIN_FONT_SIZE <= inches:
        return text, inches / full
    length = int(len(text) * inches / (full * MIN_FONT_SIZE))
    while width(f"{text[:length]}…") * MIN_FONT_SIZE > inches:
        length -= 1
    return f"{text[:length]}…", MIN_FONT_SIZE
