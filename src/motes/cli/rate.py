"""`motes rate`: measure a reward model by itself, on labelled steps."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import section_table
from motes.errors import ConfigurationError, MissingExtraError
from motes.lab.measure.first_errors import Threshold
from motes.lab.measure.formats import duration
from motes.lab.measure.labelled_steps import FORMS, StepFile
from motes.lab.measure.rating import Rating
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
    with options.resumable(out), View(terminal.progress()) as view:
        rating = asyncio.run(
            rate(
                prm, file, out, name=reward, threshold=parsed_threshold, limit=limit, concurrency=concurrency,
                command=options.command_line(), observe=view.observe,
            )
        )  # fmt: skip
    show(terminal.results(), rating)
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


def show(console: Console, rating: Rating) -> None:
    """Print the tables and the warnings about them."""
    console.print(Text(rating.title, style="bold"))
    for warning in rating.warnings():
        console.print(Text(warning, style="yellow"), soft_wrap=True)
    for section in rating.sections():
        console.print()
        console.print(Text(section.title, style="bold"))
        console.show(section_table(section))
        if section.note:
            console.print(Text(section.note, style="dim"))


class View:
    """Shows a rating's progress: a bar on a terminal, about twenty plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.perf_counter()
        words = TextColumn("{task.description}", markup=False)
        self._bar = Bar(BarColumn(bar_width=36), MofNCompleteColumn(), words, console=console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._printed = -1

    def __enter__(self) -> View:
        if self.console.is_interactive:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_interactive:
            self._bar.stop()

    def observe(self, progress: Progress) -> None:
        if self.console.is_interactive:
            self._bar.update(
                self._task, completed=progress.done, total=progress.total, description=self._words(progress)
            )
        elif (part := 20 * progress.done // max(1, progress.total)) != self._printed:
            self._printed = part
            words = [f"{progress.done}/{progress.total} answers", self._words(progress)]
            self.console.print("   ".join(filter(None, words)), soft_wrap=True)

    def _words(self, progress: Progress) -> str:
        new, elapsed = progress.done - progress.resumed, time.perf_counter() - self.started
        words = [f"{60 * new / elapsed:,.0f} answers/min"] if new else []
        if new and progress.done < progress.total:
            words.append(f"{duration(elapsed * (progress.total - progress.done) / new)} left")
        if progress.failed:
            words.append(f"{progress.failed} failed")
        return ", ".join(words)
