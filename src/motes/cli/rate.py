"""`motes rate`: measure a reward model by itself, on labelled steps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.cli.terminal import Text
from motes.cli.views import ProgressView, show_sections
from motes.errors import ConfigurationError, MissingExtraError
from motes.lab.measure.first_errors import Threshold
from motes.lab.measure.labelled_steps import FORMS, StepFile
from motes.lab.measure.rating_run import Progress, rate
from motes.lab.show.writing import write_rating


def command(
    reward: Annotated[
        str,
        typer.Argument(
            help="Reward model: tiny, hf:PATH_OR_NAME, http://HOST:PORT#MODEL, judge:LM or MODULE:ATTRIBUTE.",
            autocompletion=options.complete(*(name for name in options.REWARDS if name != "none")),
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="File of labelled steps: JSON Lines, or one JSON array.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            autocompletion=options.complete(*FORMS),
            help=f"Format of the data: {', '.join(FORMS)}. Default: recognized by the first row's fields.",
        ),
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="SCORE|best",
            help="Steps with lower scores count as wrong; best: chosen on half of the questions, measured on the rest.",
        ),
    ] = "0.5",
    limit: Annotated[int | None, typer.Option(min=1, help="Number of rows, from the first on. Default: all.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Number of answers in flight.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory for the scores, tables and a plot; an unfinished one is resumed."),
    ] = None,
    plots: Annotated[bool, typer.Option(help="With --out: draw the plot, too.")] = True,
) -> None:
    """Measure a reward model on labelled steps: first errors, AUROC, calibration, cost."""
    parsed_threshold = _parse_threshold(threshold)
    file = StepFile.open(data, form)
    prm = options.open_reward_model(reward)
    if prm is None:
        raise ConfigurationError("there is nothing to rate: name a reward model")
    with options.resumable(out), View(terminal.progress(), "answers") as view:
        rating = asyncio.run(
            rate(
                prm, file, out, name=reward, threshold=parsed_threshold, limit=limit, concurrency=concurrency,
                command=options.command_line(), observe=view.observe,
            )
        )  # fmt: skip
    console = terminal.results()
    console.print(Text(rating.title, style="bold"))
    show_sections(console, rating.warnings(), rating.sections())
    if out is not None:
        try:
            paths = write_rating(out, rating, plots=plots)
        except MissingExtraError as error:
            paths = [out / name for name in rating.tables()]
            terminal.note(str(error))
        terminal.say("written: " + " ".join(map(str, paths)))


def _parse_threshold(text: str) -> Threshold:
    if text == "best":
        return "best"
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(f"--threshold must be a score in [0, 1] or best, not {text!r}") from None


class View(ProgressView):
    """Shows a rating's progress."""

    def observe(self, progress: Progress) -> None:
        failed = [f"{progress.failed} failed"] if progress.failed else []
        pace = self.pace(progress.done, progress.total, progress.resumed)
        self.show(progress.done, progress.total, ", ".join([*pace, *failed]))
