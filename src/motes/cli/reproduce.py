"""`motes reproduce`: measure the paper's table 1 or figure 2 again, beside its own numbers."""

from __future__ import annotations

import dataclasses
import functools
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
from motes.errors import ConfigurationError
from motes.paper import EVERY, EXPERIMENTS, TASKS, Entry, Experiment, Reproduction, read_rows
from motes.paper.files import write


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
            help=f"Model of each row to measure; may be repeated. ROW {EVERY} stands for all other rows.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of all runs; unfinished ones are resumed.")],
    reward: Annotated[
        str | None,
        typer.Option("--reward", autocompletion=options.complete(*options.REWARDS), help="Reward model."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NAME=FILE.jsonl,…",
            autocompletion=options.complete(*TASKS["table1"]),
            help=f"Tasks among {', '.join(TASKS['table1'])}, or their files. Default: all, from the hub.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Number of problems of each task, from the first on. Default: all.")
    ] = None,
    budget: Annotated[int | None, typer.Option(help="Largest budget, for a trial. Default: the paper's.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; all runs are repeated with each.")] = "0",
    concurrency: Annotated[int, typer.Option(help="Number of problems in flight.")] = 64,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|none",
            autocompletion=options.complete(*prompts.names(), "none"),
            help="Prompt of all rows. Default: each row's own.",
        ),
    ] = None,
    configs: Annotated[
        Path | None, typer.Option(help="Directory of your own rows, one TOML file each. Default: the paper's rows.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, without opening models.")] = False,
    run_code: options.RunCode = False,
) -> None:
    """Measure the paper's table 1 or figure 2 again. An unfinished measurement is resumed."""
    if concurrency < 1:
        raise ConfigurationError(f"--concurrency must be at least 1, not {concurrency}")
    rows = read_rows(configs, run_code=run_code)
    if prompt is not None:
        opened_prompt = None if prompt == "none" else prompts.prompt(prompt)
        rows = {name: dataclasses.replace(row, prompt=opened_prompt) for name, row in rows.items()}
    reproduction = Reproduction(
        experiment=cast(Experiment, experiment),
        out=out,
        models=parse_pairs(models, "--models", "ROW=SPEC"),
        reward=reward,
        tasks={} if tasks is None else parse_pairs([tasks], "--tasks", None),
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
    paths = options.write_files(lambda plots: write(reproduction, plot=plots))
    terminal.say("written: " + " ".join(map(str, paths)))
    if failed:
        terminal.note(f"{failed} runs failed; the same command does them again")
        raise typer.Exit(1)


def parse_pairs(texts: Sequence[str], option: str, form: str | None) -> dict[str, str]:
    """NAME=VALUE pairs separated by commas. `form` is their required form; without one, NAME alone means NAME=NAME."""
    values: dict[str, str] = {}
    for word in (word for text in texts for word in options.names(text, option)):
        name, equals, value = word.partition("=")
        if not name or (equals and not value) or (form and not equals):
            raise ConfigurationError(f"{option}: {word!r} is not {form or 'NAME or NAME=VALUE'}")
        if name in values:
            raise ConfigurationError(f"{option} names {name} twice")
        values[name] = value or name
    return values


def measure(reproduction: Reproduction, concurrency: int) -> int:
    """Do the runs without a record, one model after the other, and print each number. Returns how many runs failed."""
    pending = [entry for entry in reproduction.entries if entry.num_done < entry.num_runs]
    terminal.say_progress(f"{len(reproduction.entries)} numbers, {len(pending)} of them still to be measured")
    groups = itertools.groupby(pending, key=lambda entry: entry.evaluation.lm)
    return sum(_measure(model, list(entries), concurrency) for model, entries in groups)


def _measure(model: str, entries: Sequence[Entry], concurrency: int) -> int:
    """`measure` for one language model, which is released at the end."""
    failed = 0
    lm, _ = options.open_models(model, "none")
    open_once = functools.cache(options.open_reward_model)
    for entry in entries:
        evaluation = entry.evaluation
        prm = open_once(evaluation.reward)
        console = terminal.progress()
        console.quiet = not console.is_interactive
        settings = {"concurrency": concurrency, "command": options.command_line()}
        progress = run(console, evaluation, entry.directory, lm=lm, reward=prm, **settings)
        failures = f", {progress.failed} failed" if progress.failed else ""
        terminal.say_progress(f"{entry.name}: {100 * progress.accuracy:.1f} % of {progress.done} runs{failures}")
        failed += progress.failed
    return failed


def show_plan(reproduction: Reproduction) -> None:
    """Print the numbers of runs and trajectories that remain."""
    runs = trajectories = 0
    for entry in reproduction.entries:
        remaining = entry.num_runs - entry.num_done
        runs, trajectories = runs + remaining, trajectories + remaining * entry.budget
        terminal.say(f"{entry.name}: {remaining:,} of {entry.num_runs:,} runs left, `{entry.evaluation.methods[0]}`")
    terminal.say(f"{runs:,} runs, {trajectories:,} trajectories")


def show(reproduction: Reproduction) -> None:
    """Print the table and the warnings about it."""
    console = terminal.results()
    for warning in [*reproduction.damages().lines(), *reproduction.warnings()]:
        console.print(Text(warning, style="yellow"))
    section = reproduction.section()
    table = section_table(section)
    table.columns[1].justify = "left"  # the method's name
    console.show(table)
    console.print(Text(section.note, style="dim"))
