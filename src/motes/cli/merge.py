"""`motes merge`: merge the parts of an evaluation that several machines made."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from motes.cli import terminal
from motes.lab.run.damage import Damages
from motes.lab.run.merging import merge


def command(
    out: Annotated[Path, typer.Argument(help="Directory of the whole; created, or added to.", show_default=False)],
    parts: Annotated[list[Path], typer.Argument(help="Directories of the parts.", show_default=False)],
) -> None:
    """Merge the parts of an evaluation that `motes eval --shard` made."""
    damages = Damages()
    merged = merge(out, parts, damages)
    terminal.note_all(damages.lines())
    repeated = f", {merged.repeated} of them found more than once" if merged.repeated else ""
    terminal.say(f"{merged.runs} runs in {out}, {merged.added} of them new{repeated}")
    terminal.say(f"tables and plots: motes report {shlex.quote(str(out))}")
    if merged.missing or merged.failed:
        incomplete = f"{merged.missing} runs are missing and {merged.failed} failed"
        terminal.note(f"{incomplete}: the same `motes eval` with --out {out} does them")
