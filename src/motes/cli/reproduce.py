"""`motes reproduce`: the paper's table 1 or figure 2, measured again beside its own numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from motes import prompts
from motes.cli import options, terminal
from motes.cli.evaluate import run
from motes.cli.terminal import Text
from motes.cli.views import section_table
from motes.errors import ConfigurationError, MissingExtraError
from motes.paper import EVERY, EXPERIMENTS, TASKS, Entry, Experiment, Reproduction, read_rows
from motes.paper.files import write
from motes.protocols import RewardModel


def command(
    experiment: Annotated[
        str,
        typer.Argument(
            autocompletion=options.complete(*EXPERIMENTS), help=f"{' or '.join(EXPERIMENTS)} of arXiv 2502.01618."
        ),
    ],
    models: Annotated[
        list[str],
        typer.Option(
            metavar="ROW=SPEC,…",
            help=f"Of each row that is to be measured, where its model is; may be repeated. {EVERY}: every other row.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of everything; what is unfinished is resumed.")],
    reward: Annotated[
        str | None,
        typer.Option("--reward", autocompletion=options.complete(*options.REWARDS), help="Where the reward model is."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NAME=FILE.jsonl,…",
            autocompletion=options.complete(*TASKS["table1"]),
            help=f"Which of {', '.join(TASKS['table1'])}, and from where; by default all, from the hub.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many problems of each; by default all.")] = None,
    budget: Annotated[int | None, typer.Option(help="The largest, for a trial; by default the paper's.")] = None,
    seeds: Annotated[str, typer.Option(help="Everything is repeated with each, separated by commas.")] = "0",
    concurrency: Annotated[int, typer.Option(help="Problems in flight.")] = 64,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|none",
            autocompletion=options.complete(*prompts.names(), "none"),
            help="How all are asked; by default as the rows say.",
        ),
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="Directory of your own rows, a TOML file each; by default the paper's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; nothing is opened.")] = False,
    run_code: options.RunCode = False,
) -> None:
    """Measure the paper's table 1 or figure 2 again; resumes where it stopped."""
    if concurrency < 1:
        raise ConfigurationError(f"--concurrency must be at least 1, not {concurrency}")
    rows = read_rows(configs, run_code=run_code)
    if prompt is not None:
        asked = None if prompt == "none" else prompts.prompt(prompt)
        rows = {name: dataclasses.replace(row, prompt=asked) for name, row in rows.items()}
    reproduction = Reproduction(
        experiment=cast(Experiment, experiment),
        out=out,
        models=pairs(models, "--models", "ROW=SPEC"),
        reward=reward,
        tasks={} if tasks is None else pairs([tasks], "--tasks", None),
        limit=limit,
        seeds=options.numbers(seeds, "--seeds"),
        budget=budget,
        rows=rows,
    )
    for refusal in reproduction.refused:
        terminal.note(f"left out: {refusal}")
    if dry_run:
        show_plan(reproduction)
        return
    with options.resumable(out):
        failed = measure(reproduction, concurrency)
    show(reproduction)
    try:
        paths = write(reproduction)
    except MissingExtraError as error:
        paths = write(reproduction, plot=False)
        terminal.note(str(error))
    terminal.say("written: " + " ".join(map(str, paths)))
    if failed:
        terminal.note(f"{failed} runs failed; the same command does them again")
        raise typer.Exit(1)


def pairs(texts: Sequence[str], option: str, wanted: str | None) -> dict[str, str]:
    """NAME=VALUE pairs separated by commas; a NAME alone stands for itself, unless something else is wanted.

    Raises:
        ConfigurationError: a pair is incomplete, or a name stands there twice.
    """
    found: dict[str, str] = {}
    for word in (word for text in texts for word in options.names(text, option)):
        name, equals, value = word.partition("=")
        if not name or (equals and not value) or (wanted and not equals):
            raise ConfigurationError(f"{option}: {word!r} is not {wanted or 'NAME or NAME=VALUE'}")
        if name in found:
            raise ConfigurationError(f"{option} names {name} twice")
        found[name] = value or name
    return found


def measure(reproduction: Reproduction, concurrency: int) -> int:
    """Do every run that has no record yet, one model after the other; a line for each number. Runs that failed."""
    pending = [entry for entry in reproduction.entries if entry.num_done < entry.num_runs]
    terminal.tell(f"{len(reproduction.entries)} numbers, {len(pending)} of them still to be measured")
    groups = itertools.groupby(pending, key=lambda entry: entry.evaluation.lm)
    return sum(_measure(model, list(entries), concurrency) for model, entries in groups)


def _measure(model: str, entries: Sequence[Entry], concurrency: int) -> int:
    """Those of one language model, which is let go at the end."""
    failed = 0
    lm, _ = options.open_models(model, "none")
    rewards: dict[str | None, RewardModel | None] = {}
    for entry in entries:
        evaluation = entry.evaluation
        if evaluation.reward not in rewards:
            rewards[evaluation.reward] = options.open_reward_model(evaluation.reward)
        prm = rewards[evaluation.reward]
        console = terminal.progress()
        console.quiet = not console.is_interactive
        settings = {"concurrency": concurrency, "command": options.command_line()}
        progress = run(console, evaluation, entry.directory, lm=lm, reward=prm, **settings)
        told = f", {progress.failed} failed" if progress.failed else ""
        terminal.tell(f"{entry.name}: {100 * progress.accuracy:.1f} % of {progress.done} runs{told}")
        failed += progress.failed
    return failed


def show_plan(reproduction: Reproduction) -> None:
    """What is left to do, in runs and trajectories."""
    runs = trajectories = 0
    for entry in reproduction.entries:
        left = entry.num_runs - entry.num_done
        runs, trajectories = runs + left, trajectories + left * entry.budget
        terminal.say(f"{entry.name}: {left:,} of {entry.num_runs:,} runs left, `{entry.evaluation.methods[0]}`")
    terminal.say(f"{runs:,} runs, {trajectories:,} trajectories")


def show(reproduction: Reproduction) -> None:
    """The table, with what must be known to read it."""
    console = terminal.results()
    for warning in [*reproduction.damages().lines(), *reproduction.warnings()]:
        console.print(Text(warning, style="yellow"))
    section = reproduction.section()
    table = section_table(section)
    table.columns[1].justify = "left"  # the method's name
    console.show(table)
    console.print(Text(section.note, style="dim"))
