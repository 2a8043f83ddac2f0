"""`motes calibrate`: fit a map from a reward model's scores to probabilities, on labelled answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from motes.cli import options, terminal
from motes.errors import ConfigurationError
from motes.lab.measure.calibration import calibrate, read_labelled, score_labelled
from motes.rewards.calibration import place_for


def command(
    labelled: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: question, steps or text, label (1 or 0); or score, label.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="Name of the result, or a file NAME.json.", show_default=False)],
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            autocompletion=options.complete(*options.REWARDS),
            help="Reward model. Required unless all answers have scores.",
        ),
    ] = None,
    slope: Annotated[
        float, typer.Option(min=0, max=1, help="Minimum slope. 0: isotonic regression; above 0 the ranking is kept.")
    ] = 0.01,
    folds: Annotated[int, typer.Option(min=2, help="Number of parts, each held out once for measuring.")] = 5,
) -> None:
    """Fit a map from scores to probabilities."""
    place_for(out)  # raises before scoring costs anything
    answers = read_labelled(labelled)
    if any(answer.score is None for answer in answers):
        prm = options.open_reward_model(reward)
        if prm is None:
            raise ConfigurationError(f"{labelled} holds answers without scores: name the reward model by --reward")
        scored, usage = asyncio.run(score_labelled(prm, answers))
        terminal.say(f"{len(scored)} answers scored, {usage.reward_tokens:,} reward tokens")
        if len(scored) < len(answers):
            terminal.note(f"{len(answers) - len(scored)} answers could not be scored: left out")
        answers = scored
    calibration, held_out = calibrate(answers, slope=slope, folds=folds, reward=reward)
    path = calibration.save(out)
    counts = calibration.provenance
    terminal.say(f"{counts['labels']} labels, {counts['right']} of them right, {counts['questions']} questions")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in (f"held out, {held_out.folds} folds", "before", "after"):
        table.add_column(column, justify="left" if "folds" in column else "right")
    for name, values in (("expected calibration error", held_out.ece), ("Brier score", held_out.brier)):
        table.add_row(name, *(f"{value:.4f}" for value in values))
    terminal.results().show(table)
    if held_out.brier[1] >= held_out.brier[0]:
        terminal.note("held out, the uncalibrated scores do better: use them, or add more labels")
    spec = reward or "SPEC"
    terminal.say(f"written: {path}; use it as --reward '{spec}{'&' if '?' in spec else '?'}calibration={out}'")
