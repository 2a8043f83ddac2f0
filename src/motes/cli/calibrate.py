"""`motes calibrate`: make a reward model's scores probabilities, from labelled answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from motes.cli import options, terminal
from motes.errors import ConfigurationError
from motes.lab.measure.calibration import HeldOut, calibrate, read_labelled, score_labelled
from motes.rewards.calibration import place_for


def command(
    labelled: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: question, steps or text, label (1 or 0); or score, label.", show_default=False
        ),
    ],
    out: Annotated[str, typer.Option("--out", help="A name to use it by, or a file, NAME.json.", show_default=False)],
    reward: Annotated[
        str | None,
        typer.Option(
            "--reward",
            autocompletion=options.complete(*options.REWARDS),
            help="Reward model; needed unless all answers have scores.",
        ),
    ] = None,
    slope: Annotated[
        float, typer.Option(min=0, max=1, help="0: isotonic regression, with its plateaus; more keeps the ranking.")
    ] = 0.01,
    folds: Annotated[int, typer.Option(min=2, help="Parts, each held out once, to measure what it is worth.")] = 5,
) -> None:
    """Fit a map from scores to probabilities."""
    place_for(out)  # refused before anything is paid for
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
    told = calibration.provenance
    terminal.say(f"{told['labels']} labels, {told['right']} of them right, {told['questions']} questions")
    terminal.results().show(table(held_out))
    if held_out.brier[1] >= held_out.brier[0]:
        terminal.note("held out, the scores as they are do better: use them without, or find more labels")
    spec = reward or "SPEC"
    terminal.say(f"written: {path}; use it as --reward '{spec}{'&' if '?' in spec else '?'}calibration={out}'")


def table(held_out: HeldOut) -> Table:
    """How far scores are from probabilities, before and after."""
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in (f"held out, {held_out.folds} folds", "before", "after"):
        found.add_column(column, justify="left" if "folds" in column else "right")
    for name, values in (("expected calibration error", held_out.ece), ("Brier score", held_out.brier)):
        found.add_row(name, *(f"{value:.4f}" for value in values))
    return found
