"""`motes tune`: find the best method and settings by a race on a validation split."""

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
    limit: Annotated[int, typer.Option(min=16, help="Number of problems of the last round, from the first on.")] = 200,
    methods: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help=f"Methods with their settings, separated by commas. Default: {len(CANDIDATES)} methods.",
        ),
    ] = None,
    budget: Annotated[int, typer.Option("-n", "--budget", min=1, help="Number of trajectories of each method.")] = 16,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Computed tokens of both models after which the race ends.")
    ] = None,
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    temperature: options.Temperature = None,
    max_tokens: options.MaxTokens = None,
    prompt: options.Prompt = None,
    concurrency: options.Concurrency = 64,
    out: Annotated[Path, typer.Option(help="Directory of the race; an unfinished one is resumed.")] = Path("tuned"),
) -> None:
    """Let methods and settings race. The best becomes a preset for --method @FILE and motes.toml."""
    specs = CANDIDATES if methods is None else options.names(methods, "--methods")
    racing, refusals = candidates(specs, budget)
    for reason in refusals:
        terminal.note(f"left out: {reason}")
    evaluation = options.trial(
        task, split, limit, racing, budget,
        model=model, reward=reward, temperature=temperature, max_tokens=max_tokens, prompt_spec=prompt,
    )  # fmt: skip
    console = terminal.progress()
    printed: set[tuple[int, str]] = set()

    def print_finished(number: int, spec: str, progress: Progress) -> None:
        if progress.done == progress.total and (number, spec) not in printed:
            printed.add((number, spec))
            console.print(f"round {number}  {spec}", markup=False, soft_wrap=True)

    with options.resumable(out):
        lm, prm = options.open_models(model, reward)
        result = asyncio.run(
            race(
                evaluation, out, tokens=tokens, observe=print_finished, lm=lm, reward=prm, concurrency=concurrency,
                command=options.command_line(),
            )
        )  # fmt: skip
    show_sections(terminal.results(), (), result.sections())
    path = out / BEST
    save(result, path, evaluation)
    terminal.results().print(Text(f"\nthe winner: {result.winner.spec}", style="bold"), soft_wrap=True)
    terminal.say(f"written: {path}; use it: motes solve … --method @{path}")


def save(result: Race, path: Path, evaluation: Evaluation) -> None:
    """Write the winner as a preset, with comments on the race."""
    best = result.winner
    Preset(best.spec, result.budget).save(
        path,
        f"Found by `{options.command_line()}`:",
        f"{percent(best.accuracy.value)} of {counted(best.problems, 'problem')} of {evaluation.task}, "
        f"{evaluation.split} split, with {evaluation.lm} and {evaluation.reward}; "
        f"{len(result.standings)} methods raced.",
    )
