"""`motes export`: records for data frames, rollouts to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.lab.run.damage import Damages
from motes.lab.show.exporting import KINDS, export


def command(
    directory: Annotated[Path, typer.Argument(help="Of an evaluation, finished or not.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="To write: NAME.parquet or NAME.jsonl.", show_default=False)],
    rows: Annotated[
        str,
        typer.Option(
            metavar="|".join(KINDS),
            autocompletion=options.complete(*KINDS),
            help="The records; or, as TRL reads them, graded answers, right beside wrong ones, answers step by step.",
        ),
    ] = "runs",
    threshold: Annotated[
        float | None, typer.Option(help="With --rows steps: the score from which a step is good; by default 0.5.")
    ] = None,
) -> None:
    """Export an evaluation: its records as a table, or its answers as a data set to train on."""
    damages = Damages()
    count = export(directory, file, rows, threshold=threshold, damages=damages)
    terminal.note_all(damages.lines())
    terminal.say(f"{count} rows in {file}")
