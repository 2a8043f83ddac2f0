"""`motes advise` and `motes tune`: choose a method by a trial on validation problems, before the money is spent."""

from __future__ import annotations

import asyncio
import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from motes.cli import evaluate, options, terminal
from motes.cli.terminal import Text
from motes.cli.views import show_sections
from motes.core import SamplingOptions
from motes.errors import ConfigurationError, UnknownNameError
from motes.lab.measure import advice
from motes.lab.measure.formats import percent
from motes.lab.measure.racing import CANDIDATES, candidates, race
from motes.lab.run.evaluation import Evaluation
from motes.lab.run.execution import Progress
from motes.lab.run.planning import ANSWER_TOKENS
from motes.lab.run.presets import Preset
from motes.lab.show.report import Report
from motes.lab.show.writing import write_advice
from motes.methods import METHODS
from motes.tasks import with_rule
from motes.text import counted


def advise(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Existing evaluation with bon or wbon at a budget of 2 or more, used instead of a new pilot.",
            show_default=False,
        ),
    ] = None,
    task: options.Task = "arithmetic",
    rule: options.Rule = None,
    split: options.ValidationSplit = None,
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
        pilot = _trial(
            reward, prompt, temperature, max_tokens,
            task=with_rule(task, rule), split=split, limit=labels, methods=("wbon", "greedy"), budgets=(samples,),
            lm=model,
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
    console = terminal.progress()

    def show_progress(done: int, total: int) -> None:
        console.print(f"predicting: {done}/{total}", soft_wrap=True)

    show_progress(0, advice.RESAMPLES)
    prediction = asyncio.run(advice.advise(report.records, observe=show_progress))
    results = terminal.results()
    results.print(Text(f"{report.title}: {report.models}", style="bold"), soft_wrap=True)
    show_sections(results, report.warnings(), prediction.sections())
    results.print()
    for line in prediction.words():
        results.print(Text(line, style="bold"), soft_wrap=True)
    paths = write_advice(directory, prediction, report)
    terminal.say("written: " + " ".join(shlex.quote(str(path)) for path in paths))


def tune(
    task: options.Task = "arithmetic",
    rule: options.Rule = None,
    split: options.ValidationSplit = None,
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
    evaluation = _trial(
        reward, prompt, temperature, max_tokens,
        task=with_rule(task, rule), split=split, limit=limit, methods=tuple(racing), budgets=(budget,), lm=model,
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
    path, best = out / "best.toml", result.winner
    Preset(best.spec, result.budget).save(
        path,
        f"Found by `{options.command_line()}`:",
        f"{percent(best.accuracy.value)} of {counted(best.problems, 'problem')} of {evaluation.task}, "
        f"{evaluation.split} split, with {evaluation.lm} and {evaluation.reward}; "
        f"{len(result.standings)} methods raced.",
    )
    terminal.results().print(Text(f"\nthe winner: {best.spec}", style="bold"), soft_wrap=True)
    terminal.say(f"written: {path}; use it: motes solve … --method @{path}")


def _trial(
    reward: str, prompt: str | None, temperature: float | None, max_tokens: int | None, *, task: str, split: str | None,
    **settings: Any,
) -> Evaluation:  # fmt: skip
    """The preliminary evaluation of `motes advise` and `motes tune`, by default on the validation split, or on test if
    the task has no other. `settings` are other fields of the evaluation."""
    if reward == "none":
        raise ConfigurationError("this command measures the reward model: name one")
    opened, sampling = options.open_prompt(prompt, SamplingOptions(temperature=temperature, max_tokens=max_tokens))
    evaluation = partial(Evaluation, task=task, reward=reward, prompt=opened, sampling=sampling, **settings)
    if split is not None:
        return evaluation(split=split)
    try:
        return evaluation(split="validation")
    except UnknownNameError:
        on_test = evaluation(split="test")  # raises the error again if it is about another name
    terminal.note(f"{task} has no validation split: using test. Evaluate the result on other problems")
    return on_test
