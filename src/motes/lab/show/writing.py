"""Write a report, a comparison, a rating or advice to files: tables, a page, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from motes import files
from motes.errors import RunDirectoryError
from motes.lab.measure.advice import Advice
from motes.lab.measure.rating import Rating
from motes.lab.run.evaluation import CONFIGURATION
from motes.lab.show import comparing, page, plot, rating_plot, tables
from motes.lab.show.comparing import Comparison
from motes.lab.show.overlay import overlaid_figure
from motes.lab.show.page.comparison import html as comparison_html
from motes.lab.show.report import PAGE, Report
from motes.lab.show.style import save


def write_report(directory: Path, report: Report, *, plots: bool = True, viewer: int | None = None) -> list[Path]:
    """Write the tables (`Report.tables`), the page `report.html` and, if `plots`, the figures, beside the records. Each
    file says what the runs were made with.

    Args:
        viewer: the number of problems whose runs the page holds, see `motes.lab.show.page.html`.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: matplotlib is not installed. The tables and the page are written.
    """
    written = _write(directory, "the report", report.tables())
    html = page.html(report, directory, viewer=viewer)
    figures = partial(plot.draw, report, directory) if plots else None
    return written + _write(directory, "the report", {PAGE: html}, figures)


def write_comparison(directory: Path, comparison: Comparison, *, plots: bool = True) -> list[Path]:
    """Write the tables (`Comparison.tables`), the page `comparison.html` and, if `plots`, the figure `accuracy`.

    Args:
        directory: made if missing; none of an evaluation, whose report has files of the same names.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory holds an evaluation, or cannot be written.
        MissingExtraError: matplotlib is not installed. The tables and the page are written.
    """
    if (directory / CONFIGURATION).exists():
        raise RunDirectoryError(f"{directory} holds an evaluation: write the comparison to a directory of its own")
    texts = {**comparison.tables(), comparing.PAGE: comparison_html(comparison)}
    figure = partial(save, partial(overlaid_figure, comparison), directory / "accuracy", comparison.provenance)
    return _write(directory, "the comparison", texts, figure if plots else None)


def write_rating(directory: Path, rating: Rating, *, plots: bool = True) -> list[Path]:
    """Write the tables (`Rating.tables`) and, if `plots`, the figure `reliability`.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: matplotlib is not installed. The tables are written.
    """
    figure = partial(rating_plot.draw, rating, directory) if plots and rating.bins else None
    return _write(directory, "the rating", rating.tables(), figure)


def write_advice(directory: Path, advice: Advice, report: Report) -> list[Path]:
    """Write the advice as a page, `advice.md`, and a table, `advice.csv`.

    Args:
        report: of the pilot.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
    """
    title = f"Advice: {report.title}, {report.models}"
    provenance = [tables.provenance_table(report.provenance)] if report.provenance else []
    return _write(directory, "the advice", advice.tables(title, provenance))


def _write(
    directory: Path, what: str, texts: Mapping[str, str], draw: Callable[[], list[Path]] | None = None
) -> list[Path]:
    """Write texts by file name, then draw the figures.

    Raises:
        RunDirectoryError: the directory cannot be written; names `what` was to be.
    """
    paths = [directory / name for name in texts]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            files.write_text(path, text)
        return paths + (draw() if draw is not None else [])
    except OSError as error:
        raise RunDirectoryError(f"{what} cannot be written to {directory}: {error.strerror}") from error
