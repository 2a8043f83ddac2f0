"""`motes report`: what an evaluation came to, as a table, files and plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from motes.cli.views import outcomes_table, print_trimmed, report_table
from motes.errors import MissingExtraError
from motes.lab.report import NOTE, Report, write_report


def command(
    directory: Annotated[Path, typer.Argument(help="Of an evaluation, finished or not.", show_default=False)],
    plots: Annotated[bool, typer.Option(help="Draw the plots as well.")] = True,
) -> None:
    """Report an evaluation: table, Markdown, CSV and plots."""
    report = Report.load(directory)
    show(console(), report)
    try:
        paths = write_report(directory, report, plots=plots)
    except MissingExtraError as error:
        paths = [directory / name for name in report.tables()]
        print(f"motes: {error}", file=sys.stderr)
    print("written: " + " ".join(map(str, paths)))


def console() -> Console:
    """As wide as the table needs where nobody's terminal limits it."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def show(console: Console, report: Report) -> None:
    """The tables, with what must be known to read them."""
    console.print(Text(f"{report.title}; {report.models}", style="bold"))
    print_trimmed(console, report_table(report))
    console.print()
    print_trimmed(console, outcomes_table(report))
    for warning in report.warnings():
        console.print(Text(warning, style="yellow"))
    console.print(Text(NOTE, style="dim"))
