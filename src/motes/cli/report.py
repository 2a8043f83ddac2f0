"""`motes report`: report an evaluation in tables, files, plots and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.errors import MissingExtraError
from motes.lab.show.report import PAGE, Report
from motes.lab.show.writing import write_report


def command(
    directory: Annotated[Path, typer.Argument(help="Directory of an evaluation, finished or not.", show_default=False)],
    plots: Annotated[bool, typer.Option(help="Draw the plots, too.")] = True,
    viewer: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of problems with runs on the page. Default: the first 30, or what fits 24 MB."
        ),
    ] = None,
    prices: options.Prices = None,
) -> None:
    """Report an evaluation: tables, Markdown, CSV, plots, and a page for looking into its runs."""
    report = Report.load(directory, options.parse_prices(prices))
    console = terminal.results()
    console.print(Text(f"{report.title}; {report.models}", style="bold"))
    show_sections(console, report.warnings(), report.sections())
    printed = report.damages.lines()
    try:
        paths = write_report(directory, report, plots=plots, viewer=viewer)
    except MissingExtraError as error:
        paths = [directory / name for name in (*report.tables(), PAGE)]
        terminal.note(str(error))
    terminal.note_all(line for line in report.damages.lines() if line not in printed)
    terminal.say("written: " + " ".join(map(str, paths)))
