"""`motes advise`: recommend a method from a small pilot, before the money is spent."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Annotated

import typer

from motes.cli import evaluate, options, terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.errors import ConfigurationError
from motes.lab.measure.advice import RESAMPLES, advise
from motes.lab.run.planning import ANSWER_TOKENS
from motes.lab.show.report import Report
from motes.lab.show.writing import write_advice


def command(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Existing evaluation with bon or wbon at a budget of 2 or more, used instead of a new pilot.",
            show_default=False,
        ),
    ] = None,
    task: options.Task = "arithmetic",
    split: options.ValidationSplit = "validation",
    labels: Annotated[int, typer.Option(min=2, help="Number of problems of the pilot, from the first on.")] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Number of answers to each problem.")] = 8,
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    temperature: options.Temperature = None,
    max_tokens: options.MaxTokens = None,
    prompt: options.Prompt = None,
    concurrency: options.Concurrency = 64,
    out: Annotated[Path, typer.Option(help="Directory of the pilot; an unfinished one is resumed.")] = Path("pilot"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the pilot's plan and its estimated cost.")] = False,
    prices: options.Prices = None,
) -> None:
    """Predict the accuracy of methods from a pilot of 100 problems x 8 answers, and recommend one."""
    if directory is None:
        pilot = options.trial(
            task, split, labels, ("wbon", "greedy"), samples,
            model=model, reward=reward, temperature=temperature, max_tokens=max_tokens, prompt_spec=prompt,
        )  # fmt: skip
        pilot.check(out)
        if dry_run:
            evaluate.show_plan(pilot, out, None, concurrency, ANSWER_TOKENS, options.parse_prices(prices))
            return
        with options.resumable(out):
            lm, prm = options.open_models(model, reward)
            evaluate.run(
                terminal.progress(), pilot, out, lm=lm, reward=prm, concurrency=concurrency,
                command=options.command_line(),
            )  # fmt: skip
        directory = out
    elif dry_run:
        raise ConfigurationError(f"{directory} has its answers already, nothing is generated: leave out --dry-run")
    report = Report.load(directory)
    records = [record for runs in report.runs.values() for record in runs]
    console = terminal.progress()

    def show_progress(done: int, total: int) -> None:
        console.print(f"predicting: {done}/{total}", soft_wrap=True)

    show_progress(0, RESAMPLES)
    advice = asyncio.run(advise(records, observe=show_progress))
    results = terminal.results()
    results.print(Text(f"{report.title}: {report.models}", style="bold"), soft_wrap=True)
    show_sections(results, report.warnings(), advice.sections())
    results.print()
    for line in advice.words():
        results.print(Text(line, style="bold"), soft_wrap=True)
    paths = write_advice(directory, advice, report)
    terminal.say("written: " + " ".join(shlex.quote(str(path)) for path in paths))
