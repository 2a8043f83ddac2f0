"""`motes grade`: grade the answers of an evaluation again, without generating anything."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from motes import api
from motes.cli import options, terminal
from motes.lab.run.damage import Damages
from motes.lab.run.grading import regrade
from motes.lab.run.records import RunRecord
from motes.tasks import DECLARED, TASKS

SHOWN = 20
"""Maximum number of changes that are printed one by one."""


def command(
    directory: Annotated[Path, typer.Argument(help="Directory of an evaluation, finished or not.", show_default=False)],
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
    for before, after in graded.changed[:SHOWN]:
        terminal.say(_line(before, after))
    if (more := len(graded.changed) - SHOWN) > 0:
        terminal.say(f"and {more} more")
    moves = Counter((_words(before), _words(after)) for before, after in graded.changed)
    moved = ", ".join(f"{count} from {old} to {new}" for (old, new), count in sorted(moves.items()) if old != new)
    changed = f"{len(graded.changed)} records changed" + (f": {moved}" if moved else "")
    terminal.say(f"{graded.graded} answers graded, {changed}")
    if graded.failed:
        terminal.say(f"{graded.failed} failed runs have no answer to grade: the same `motes eval` does them again")
    if ungraded := graded.ungraded:
        terminal.note(f"{ungraded} answers could not be graded, and are neither right nor wrong")
    if graded.changed:
        terminal.say(f"new tables and plots: motes report {shlex.quote(str(directory))}")


def _line(before: RunRecord, after: RunRecord) -> str:
    run = f"{after.problem_id}  {after.method} {after.budget} seed {after.seed}"
    move = f"{_words(before)} → {_words(after)}" if before.outcome != after.outcome else _words(after)
    notes = [f"answer {after.answer!r}", f"reference {after.reference!r}"]
    if before.reference != after.reference:
        notes.append(f"which was {before.reference!r}")
    if before.oracle != after.oracle:
        notes.append("another one is right" if after.oracle else "none is right")
    return f"{run}: {move}  ({', '.join(notes)})"


def _words(record: RunRecord) -> str:
    return record.outcome.replace("_", " ")
