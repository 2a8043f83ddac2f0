"""Commands on recorded evaluations: `motes merge`, `grade`, `report`, `compare` and `export`."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from motes import api
from motes.cli import options, terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.lab.run import merging
from motes.lab.run.damage import Damages
from motes.lab.run.grading import regrade
from motes.lab.run.records import RunRecord
from motes.lab.show import comparing, exporting
from motes.lab.show.exporting import KINDS
from motes.lab.show.report import Report
from motes.lab.show.writing import write_comparison, write_report
from motes.tasks import DECLARED, TASKS

MAX_CHANGES = 20
"""Maximum number of changed grades that are printed one by one."""

Directory = Annotated[Path, typer.Argument(help="Directory of an evaluation, finished or not.", show_default=False)]


def merge(
    out: Annotated[Path, typer.Argument(help="Directory of the whole; created, or added to.", show_default=False)],
    parts: Annotated[list[Path], typer.Argument(help="Directories of the parts.", show_default=False)],
) -> None:
    """Merge the parts of an evaluation that `motes eval --shard` made."""
    damages = Damages()
    merged = merging.merge(out, parts, damages)
    terminal.note_all(damages.lines())
    repeated = f", {merged.repeated} of them found more than once" if merged.repeated else ""
    terminal.say(f"{merged.runs} runs in {out}, {merged.added} of them new{repeated}")
    terminal.say(f"tables and plots: motes report {shlex.quote(str(out))}")
    if merged.missing or merged.failed:
        incomplete = f"{merged.missing} runs are missing and {merged.failed} failed"
        terminal.note(f"{incomplete}: the same `motes eval` with --out {out} does them")


def grade(
    directory: Directory,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.jsonl",
            autocompletion=options.complete(*TASKS, *DECLARED),
            help="Grade with this task and its problems. Default: the evaluation's task.",
        ),
    ] = None,
    run_code: options.RunCode = False,
) -> None:
    """Grade recorded answers again, with the current problems and grader."""
    damages = Damages()
    opened_task = None if task is None else api.task(task)
    graded = asyncio.run(regrade(directory, opened_task, run_code=run_code, damages=damages))
    terminal.note_all(damages.lines())
    for before, after in graded.changed[:MAX_CHANGES]:
        terminal.say(_describe_change(before, after))
    if (more := len(graded.changed) - MAX_CHANGES) > 0:
        terminal.say(f"and {more} more")
    moves = Counter((_outcome(before), _outcome(after)) for before, after in graded.changed)
    details = ", ".join(f"{count} from {old} to {new}" for (old, new), count in sorted(moves.items()) if old != new)
    changes = f"{len(graded.changed)} records changed" + (f": {details}" if details else "")
    terminal.say(f"{graded.graded} answers graded, {changes}")
    if graded.failed:
        terminal.say(f"{graded.failed} failed runs have no answer to grade: the same `motes eval` does them again")
    if ungraded := graded.ungraded:
        terminal.note(f"{ungraded} answers could not be graded, and are neither right nor wrong")
    if graded.changed:
        terminal.say(f"new tables and plots: motes report {shlex.quote(str(directory))}")


def _describe_change(before: RunRecord, after: RunRecord) -> str:
    run = f"{after.problem_id}  {after.method} {after.budget} seed {after.seed}"
    move = f"{_outcome(before)} → {_outcome(after)}" if before.outcome != after.outcome else _outcome(after)
    notes = [f"answer {after.answer!r}", f"reference {after.reference!r}"]
    if before.reference != after.reference:
        notes.append(f"which was {before.reference!r}")
    if before.oracle != after.oracle:
        notes.append("another one is right" if after.oracle else "none is right")
    return f"{run}: {move}  ({', '.join(notes)})"


def _outcome(record: RunRecord) -> str:
    return record.outcome.replace("_", " ")


def report(
    directory: Directory,
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
    loaded = Report.load(directory, options.parse_prices(prices))
    console = terminal.results()
    console.print(Text(f"{loaded.title}; {loaded.models}", style="bold"))
    show_sections(console, loaded.warnings(), loaded.sections())
    printed = loaded.damages.lines()
    paths = options.write_files(lambda plots: write_report(directory, loaded, plots=plots, viewer=viewer), plots)
    terminal.note_all(line for line in loaded.damages.lines() if line not in printed)
    terminal.say("written: " + " ".join(map(str, paths)))


def compare(
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
    comparison = comparing.compare(*directories, reference=reference)
    console = terminal.results()
    console.print(Text(comparison.title, style="bold"))
    for name, loaded in comparison.reports.items():
        console.print(Text(f"{name}: {loaded.models}"), soft_wrap=True)
    show_sections(console, comparison.warnings(), comparison.sections())
    paths = options.write_files(lambda plots: write_comparison(out, comparison, plots=plots), plots)
    terminal.say("written: " + " ".join(map(str, paths)))


def export(
    directory: Directory,
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
    count = exporting.export(directory, file, rows, threshold=threshold, damages=damages)
    terminal.note_all(damages.lines())
    terminal.say(f"{count} rows in {file}")
