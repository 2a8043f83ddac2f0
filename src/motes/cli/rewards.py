"""`motes rate` and `motes calibrate`: measure and calibrate a reward model by itself, on labelled data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from motes.cli import options, terminal
from motes.cli.terminal import Text
from motes.cli.views import ProgressView, show_sections
from motes.errors import ConfigurationError
from motes.lab.measure import calibration, mixing, rating_run
from motes.lab.measure.first_errors import Threshold
from motes.lab.measure.formats import three
from motes.lab.measure.labelled_steps import FORMS, StepFile
from motes.lab.show.writing import write_rating
from motes.rewards.calibration import place_for
from motes.text import counted


def rate(
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
            rating_run.rate(
                prm, file, out, name=reward, threshold=parsed_threshold, limit=limit, concurrency=concurrency,
                command=options.command_line(), observe=view.observe,
            )
        )  # fmt: skip
    console = terminal.results()
    console.print(Text(rating.title, style="bold"))
    show_sections(console, rating.warnings(), rating.sections())
    if out is not None:
        paths = options.write_files(lambda plots: write_rating(out, rating, plots=plots), plots)
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

    def observe(self, progress: rating_run.Progress) -> None:
        failed = [f"{progress.failed} failed"] if progress.failed else []
        pace = self.pace(progress.done, progress.total, progress.resumed)
        self.show(progress.done, progress.total, ", ".join([*pace, *failed]))


def calibrate(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="A file of labelled answers, JSON Lines: question, steps or text, label (1 or 0); or score, label. Or "
            "the directory of an evaluation with bon or wbon. Several directories: the reward models are mixed.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Name of the result, or a file NAME.json.", show_default=False)],
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            autocompletion=options.complete(*options.REWARDS),
            help="Reward model. Required for a file unless all answers have scores.",
        ),
    ] = None,
    slope: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum slope. 0: isotonic regression; above 0 the ranking is kept.")
    ] = 0.01,
    folds: Annotated[int, typer.Option(min=2, help="Number of parts, each held out once for measuring.")] = 5,
) -> None:
    """Fit a map from scores to probabilities, or the weights of several reward models."""
    place_for(out)  # raises before scoring costs anything
    if len(data) > 1:
        _mix(data, out, folds)
        return
    if data[0].is_dir():
        scored = mixing.Scored.read(data)
        _note_dropped(scored)
        answers, reward = scored.labelled(), scored.rewards[0]
    else:
        answers = _score_file(data[0], reward)
    fitted, held_out = calibration.calibrate(answers, slope=slope, folds=folds, reward=reward)
    path = fitted.save(out)
    counts = fitted.provenance
    terminal.say(f"{counts['labels']} labels, {counts['right']} of them right, {counts['questions']} questions")
    rows = [
        (name, *(f"{value:.4f}" for value in values))
        for name, values in (("expected calibration error", held_out.ece), ("Brier score", held_out.brier))
    ]
    _show_table((f"held out, {held_out.folds} folds", "before", "after"), rows)
    if held_out.brier[1] >= held_out.brier[0]:
        terminal.note("held out, the uncalibrated scores do better: use them, or add more labels")
    spec = reward or "SPEC"
    terminal.say(f"written: {path}; use it as --reward '{spec}{'&' if '?' in spec else '?'}calibration={out}'")


def _score_file(path: Path, reward: str | None) -> list[calibration.Labelled]:
    """The labelled answers of a file, each with its own score or that of the reward model."""
    answers = calibration.read_labelled(path)
    if all(answer.score is not None for answer in answers):
        return answers
    prm = options.open_reward_model(reward)
    if prm is None:
        raise ConfigurationError(f"{path} holds answers without scores: name the reward model by --reward")
    scored, usage = asyncio.run(calibration.score_labelled(prm, answers))
    terminal.say(f"{len(scored)} answers scored, {usage.reward_tokens:,} reward tokens")
    if len(scored) < len(answers):
        terminal.note(f"{len(answers) - len(scored)} answers could not be scored: left out")
    return scored


def _mix(directories: list[Path], out: str, folds: int) -> None:
    """Fit the weights of the reward models of several evaluations."""
    scored = mixing.Scored.read(directories)
    _note_dropped(scored)
    mixture, held_out = mixing.fit_mixture(scored, folds)
    path = mixture.save(out)
    counts = mixture.provenance
    terminal.say(f"{counts['labels']} partial answers, {counts['right']} right, to {counts['questions']} questions")
    rows = [
        (spec, f"{weight:.3f}", three(auroc))
        for spec, weight, auroc in zip(mixture.rewards, mixture.weights, held_out.members, strict=True)
    ]
    rows.append((f"mixture, held out in {held_out.folds} folds", "", three(held_out.mixture)))
    _show_table(("reward model", "weight", "AUROC within a problem"), rows)
    if held_out.mixture.value <= max(auroc.value for auroc in held_out.members):
        terminal.note("held out, the mixture is no better than the best of its reward models: use that one alone")
    terminal.say(f"written: {path}; use it as --reward 'mix:{out}'")


def _note_dropped(scored: mixing.Scored) -> None:
    if scored.dropped:
        terminal.note(f"{counted(scored.dropped, 'run')} left out: without labels, or not the same in all evaluations")


def _show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    terminal.results().show(table)
