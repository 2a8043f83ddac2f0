"""`motes export`: export records for data frames, or rollouts for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.lab.run.damage import Damages
from motes.lab.show.exporting import KINDS, export


def command(
    directory: Annotated[Path, typer.Argument(help="Directory of an evaluation, finished or not.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="File to write: NAME.parquet or NAME.jsonl.", show_default=False)],
    rows: Annotated[
        str,
        typer.Option(
            metavar="|".join(KINDS),
            autocompletion=options.complete(*KINDS),
            help="Records; or in TRL's formats graded answers, pairs of right and wrong answers, or answers by steps.",
        ),
    ] = "runs",
    threshold: Annotated[
        float | None, typer.Option(help="With --rows steps: the lowest score of a good step. Default: 0.5.")
    ] = None,
) -> None:
    """Export an evaluation: its records as a table, or its answers as a data set to train on."""
    damages = Damages()
    count = export(directory, file, rows, threshold=threshold, damages=damages)
    terminal.note_all(damages.lines())
    terminal.say(f"{count} rows in {file}")
