"""`motes compare`: compare evaluations in tables, files, a figure and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motes.cli import terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.errors import MissingExtraError
from motes.lab.show.comparing import PAGE, compare
from motes.lab.show.writing import write_comparison


def command(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="A B…", help="Directories of evaluations, to compare with A.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the files; created if missing.")] = Path("comparison"),
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Method of the first evaluation that all others are compared with. Default: its first `pf`, or else "
            "its first method.",
        ),
    ] = None,
    plots: Annotated[bool, typer.Option(help="Draw the figure, too.")] = True,
) -> None:
    """Compare evaluations of one task: differences on common problems, scaling rates, a figure and a page."""
    comparison = compare(*directories, reference=reference)
    console = terminal.results()
    console.print(Text(comparison.title, style="bold"))
    for name, report in comparison.reports.items():
        console.print(Text(f"{name}: {report.models}"), soft_wrap=True)
    show_sections(console, comparison.warnings(), comparison.sections())
    try:
        paths = write_comparison(out, comparison, plots=plots)
    except MissingExtraError as error:
        paths = [out / name for name in (*comparison.tables(), PAGE)]
        terminal.note(str(error))
    terminal.say("written: " + " ".join(map(str, paths)))
