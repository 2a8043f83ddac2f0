"""Write a report, a comparison, a rating or advice to files: tables, pages and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from motes import files
from motes.errors import RunDirectoryError
from motes.lab.measure.advice import Advice
from motes.lab.measure.rating import Rating
from motes.lab.run.evaluation import CONFIGURATION
from motes.lab.run.provenance import Provenance
from motes.lab.show import comparing, page, tables
from motes.lab.show.comparing import Comparison, overlaid_figure
from motes.lab.show.plot import FIGURES
from motes.lab.show.report import PAGE, Report
from motes.lab.show.style import FAINT, heading, save
from motes.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(directory: Path, report: Report, *, plots: bool = True, viewer: int | None = None) -> list[Path]:
    """Write the tables (`Report.tables`), the page `report.html` and, if `plots`, the figures, beside the records.
    Each file contains the provenance of the runs, and the page the runs of `viewer` problems (see
    `motes.lab.show.page.html`). Returns their paths.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: matplotlib is not installed. The tables and the page are written.
    """
    written = write_files(directory, "the report", report.tables())
    html = page.html(report, directory, viewer=viewer)
    figures = {name: partial(figure, report) for name, figure in FIGURES.items() if plots}
    return written + write_files(directory, "the report", {PAGE: html}, figures, report.provenance)


def write_comparison(directory: Path, comparison: Comparison, *, plots: bool = True) -> list[Path]:
    """Write the tables (`Comparison.tables`), the page `comparison.html` and, if `plots`, the figure `accuracy`; return
    the paths. The directory, which is made if missing, must not be that of an evaluation, whose report has files of the
    same names.

    Raises:
        RunDirectoryError: the directory holds an evaluation, or cannot be written.
        MissingExtraError: matplotlib is not installed. The tables and the page are written.
    """
    if (directory / CONFIGURATION).exists():
        raise RunDirectoryError(f"{directory} holds an evaluation: write the comparison to a directory of its own")
    texts = {**comparison.tables(), comparing.PAGE: page.comparison_html(comparison)}
    figures = {"accuracy": partial(overlaid_figure, comparison)} if plots else {}
    return write_files(directory, "the comparison", texts, figures, comparison.provenance)


def write_rating(directory: Path, rating: Rating, *, plots: bool = True) -> list[Path]:
    """Write the tables (`Rating.tables`) and, if `plots`, the figure `reliability`; return the paths.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: matplotlib is not installed. The tables are written.
    """
    figures = {"reliability": partial(rating_figure, rating)} if plots and rating.bins else {}
    return write_files(directory, "the rating", rating.tables(), figures)


def rating_figure(rating: Rating) -> Figure:
    """The share of right steps against the mean score, in ten bins; the larger a marker, the more steps."""
    from matplotlib.figure import Figure

    bins = rating.bins
    width, height = 5.2, 5.2  # inches
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.8 / width, right=1 - 0.3 / width, top=1 - 1.0 / height, bottom=0.65 / height)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    most = max(bin.count for bin in bins)
    x, y = [bin.mean for bin in bins], [bin.right.value for bin in bins]
    low, high = [bin.right.low for bin in bins], [bin.right.high for bin in bins]
    axes.vlines(x, low, high, color="#D55E00", linewidth=1.2, alpha=0.6, zorder=3)
    sizes = [25 + 175 * bin.count / most for bin in bins]
    axes.scatter(x, y, s=sizes, color="#D55E00", edgecolor="white", linewidth=0.8, zorder=5, clip_on=False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="the reward model's score of a step")
    axes.set_title("share of right steps", loc="left", fontsize=10, color="#555555")
    error = rating.predictions.expected_calibration_error()
    heading(figure, rating.title, f"{counted(len(rating.predictions), 'step')}, ECE {error:.3f}; bars: 95 %")
    return figure


def write_advice(directory: Path, advice: Advice, report: Report) -> list[Path]:
    """Write the advice from a pilot's report as a page, `advice.md`, and a table, `advice.csv`; return the paths.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    title = f"Advice: {report.title}, {report.models}"
    provenance = [tables.provenance_table(report.provenance)] if report.provenance else []
    return write_files(directory, "the advice", advice.tables(title, provenance))


def write_files(
    directory: Path,
    content: str,
    texts: Mapping[str, str],
    figures: Mapping[str, Callable[[], Figure | None]] = MappingProxyType({}),
    provenance: Provenance | None = None,
) -> list[Path]:
    """Write texts, then draw figures, each by its name (see `motes.lab.show.style.save`). Returns the paths.

    Raises:
        RunDirectoryError: the directory cannot be written; the message names `content`.
        MissingExtraError: matplotlib is not installed. The texts are written.
    """
    paths = [directory / name for name in texts]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            files.write_text(path, text)
        for name, figure in figures.items():
            paths += save(figure, directory / name, provenance)
    except OSError as error:
        raise RunDirectoryError(f"{content} cannot be written to {directory}: {error.strerror}") from error
    return paths
