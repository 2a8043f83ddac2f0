"""`motes report`: what an evaluation came to, as tables, files, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import show_sections
from motes.errors import MissingExtraError
from motes.lab.show.report import PAGE, Report
from motes.lab.show.writing import write_report


def command(
    directory: Annotated[Path, typer.Argument(help="Of an evaluation, finished or not.", show_default=False)],
    plots: Annotated[bool, typer.Option(help="Draw the plots as well.")] = True,
    viewer: Annotated[
        int | None,
        typer.Option(min=0, help="Problems whose runs the page holds. Default: the first 30, or what 24 MB hold."),
    ] = None,
    prices: options.Prices = None,
) -> None:
    """Report an evaluation: tables, Markdown, CSV, plots, and a page to look into its runs."""
    report = Report.load(directory, options.parse_prices(prices))
    show(terminal.results(), report)
    shown = report.damages.lines()
    try:
        paths = write_report(directory, report, plots=plots, viewer=viewer)
    except MissingExtraError as error:
        paths = [directory / name for name in (*report.tables(), PAGE)]
        terminal.note(str(error))
    terminal.note_all(line for line in report.damages.lines() if line not in shown)
    terminal.say("written: " + " ".join(map(str, paths)))


def show(console: Console, report: Report) -> None:
    """The tables, with what must be known to read them."""
    console.print(Text(f"{report.title}; {report.models}", style="bold"))
    show_sections(console, report.warnings(), report.sections())
