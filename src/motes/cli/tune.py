"""`motes tune`: which method and which settings, by a race on a validation split."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from motes.cli import options, terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.lab.measure.formats import percent
from motes.lab.measure.racing import CANDIDATES, Race, candidates, race
from motes.lab.run.evaluation import Evaluation
from motes.lab.run.execution import Progress
from motes.lab.run.presets import Preset
from motes.methods import METHODS
from motes.text import counted

BEST = "best.toml"


def command(
    task: options.Task = "arithmetic",
    split: options.ValidationSplit = "validation",
    limit: Annotated[int, typer.Option(min=16, help="Problems of the last round, the first so many.")] = 200,
    methods: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help=f"Methods with their settings, separated by commas; by default {len(CANDIDATES)} of them.",
        ),
    ] = None,
    budget: Annotated[int, typer.Option("-n", "--budget", min=1, help="Trajectories of each.")] = 16,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Computed ones, of both models, after which the race is ended.")
    ] = None,
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    temperature: options.Temperature = options.DEFAULTS.temperature,
    max_tokens: options.MaxTokens = options.DEFAULTS.max_tokens,
    prompt: options.Prompt = None,
    concurrency: options.Concurrency = 64,
    out: Annotated[Path, typer.Option(help="Directory of the race; an unfinished one is resumed.")] = Path("tuned"),
) -> None:
    """Let methods and settings race; what wins is written as a preset for --method @FILE and motes.toml."""
    specs = CANDIDATES if methods is None else options.names(methods, "--methods")
    racing, refused = candidates(specs, budget)
    for reason in refused:
        terminal.note(f"left out: {reason}")
    evaluation = options.trial(
        task, split, limit, racing, budget,
        model=model, reward=reward, temperature=temperature, max_tokens=max_tokens, asked=prompt,
    )  # fmt: skip
    console = terminal.progress()
    told: set[tuple[int, str]] = set()

    def tell(number: int, spec: str, progress: Progress) -> None:
        if progress.done == progress.total and (number, spec) not in told:
            told.add((number, spec))
            console.print(f"round {number}  {spec}", markup=False, soft_wrap=True)

    with options.resumable(out):
        lm, prm = options.open_models(model, reward)
        found = asyncio.run(
            race(
                evaluation, out, tokens=tokens, observe=tell, lm=lm, reward=prm, concurrency=concurrency,
                command=options.command_line(),
            )
        )  # fmt: skip
    show_sections(terminal.results(), (), found.sections())
    path = out / BEST
    save(found, path, evaluation)
    terminal.results().print(Text(f"\nthe winner: {found.winner.spec}", style="bold"), soft_wrap=True)
    terminal.say(f"written: {path}; use it: motes solve … --method @{path}")


def save(found: Race, path: Path, evaluation: Evaluation) -> None:
    """Write the winner, and what it won against."""
    won = found.winner
    Preset(won.spec, found.budget).save(
        path,
        f"Found by `{options.command_line()}`:",
        f"{percent(won.accuracy.value)} of {counted(won.problems, 'problem')} of {evaluation.task}, {evaluation.split} "
        f"split, with {evaluation.lm} and {evaluation.reward}; {len(found.standings)} methods raced.",
    )
