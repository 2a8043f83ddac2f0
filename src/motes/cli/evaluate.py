"""`motes eval`: evaluate methods at several budgets on a task, in a directory that can be resumed."""

from __future__ import annotations

import asyncio
import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import ProgressView, accuracy_grid, section_table
from motes.core import SamplingOptions
from motes.errors import ConfigurationError
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import Evaluation, Shard
from motes.lab.run.execution import Progress, evaluate
from motes.lab.run.flops import Sizes
from motes.lab.run.planning import ANSWER_TOKENS, estimate
from motes.lab.run.presets import expanded
from motes.lab.run.prices import Prices
from motes.lab.show.report import Report
from motes.lab.show.tables import plan_table
from motes.methods import METHODS
from motes.tasks import with_rule
from motes.text import counted

RAY = "auto"


class Command(TyperCommand):
    """Replaces `--ray` without a value by `--ray=auto`: typer has no options whose value is optional."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i in reversed([i for i, arg in enumerate(args) if arg == "--ray"]):
            if i + 1 == len(args) or args[i + 1].startswith("-"):
                args[i] = f"--ray={RAY}"
        return super().parse_args(ctx, args)


@options.takes_sampling
def command(
    out: Annotated[Path, typer.Option("--out", help="Directory of the evaluation; an unfinished one is resumed.")],
    task: options.Task = "arithmetic",
    rule: options.Rule = None,
    methods: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help="Methods, separated by commas, e.g. pf,pf:paper,beam:beam_width=2,@FILE,MODULE:CLASS.",
        ),
    ] = "pf,bon,wbon,majority,greedy",
    budgets: Annotated[str, typer.Option(help="Numbers of trajectories, separated by commas.")] = "1,4,16",
    limit: Annotated[int | None, typer.Option(help="Number of problems, from the first on. Default: all.")] = None,
    split: Annotated[str, typer.Option(help="Part of the task.")] = "test",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; the evaluation is repeated with each.")] = "0",
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    outcome_reward: options.OutcomeReward = None,
    concurrency: Annotated[int, typer.Option(help="Number of problems in flight.")] = 64,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="Do one run at a time, so that its seconds are those of a run without others."),
    ] = False,
    prompt: options.Prompt = None,
    sampling: SamplingOptions = options.NO_OPTIONS,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Do only part I of N, from 1, in a directory of its own; see `motes merge`."),
    ] = None,
    traces: Annotated[bool, typer.Option(help="Keep a trace of each run, too.")] = True,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on a Ray cluster, such as HOST:6379. Without an address: on the one that RAY_ADDRESS names or "
            "this machine runs, else on a new one. --concurrency then applies to each worker.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --ray: number of processes. Default: one per GPU, else one per node.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="With --ray: GPUs of a worker. Default: 1 if there are GPUs and a model runs in the worker."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its estimated cost.")] = False,
    answer_tokens: Annotated[
        int, typer.Option(help="With --dry-run: assumed tokens of an answer, while no run is recorded.")
    ] = ANSWER_TOKENS,
    prices: options.Prices = None,
) -> None:
    """Evaluate methods at several budgets. An unfinished evaluation is resumed."""
    opened_prompt, configured_sampling = options.open_prompt(prompt, sampling)
    evaluation = Evaluation(
        task=with_rule(task, rule),
        split=split,
        limit=limit,
        methods=tuple(map(expanded, options.names(methods, "--methods"))),
        budgets=options.numbers(budgets, "--budgets"),
        seeds=options.numbers(seeds, "--seeds"),
        lm=model,
        reward=None if reward == "none" else reward,
        outcome_reward=None if outcome_reward == "none" else outcome_reward,
        sampling=configured_sampling,
        prompt=opened_prompt,
    )
    if concurrency < 1:
        raise ConfigurationError(f"--concurrency must be at least 1, not {concurrency}")
    if alone and ray is not None:
        raise ConfigurationError("--alone times runs in this process: leave out --ray")
    concurrency = 1 if alone else concurrency
    part = None if shard is None else Shard.parse(shard)
    evaluation.check(out)
    if dry_run:
        show_plan(evaluation, out, part, concurrency, answer_tokens, options.parse_prices(prices))
        return
    if prices is not None:
        raise ConfigurationError("--prices goes with --dry-run: `motes report --prices` prices an evaluation")
    if ray is None and (workers, gpus_per_worker) != (None, None):
        raise ConfigurationError("--workers and --gpus-per-worker go with --ray")
    with options.resumable(out):
        settings: dict[str, Any] = {"concurrency": concurrency, "shard": part, "traces": traces}
        settings["command"] = options.command_line()
        if ray is None:
            settings["lm"], settings["reward"] = options.open_models(model, reward)
            settings["outcome_reward"] = options.open_reward_model(outcome_reward)
        else:
            from motes.lab.run.on_ray import Ray

            terminal.say_busy(f"opening {model} on Ray")
            settings["on"] = Ray(None if ray == RAY else ray, workers, gpus_per_worker)
        progress = run(terminal.progress(), evaluation, out, **settings)
    terminal.note_all(progress.damages.lines())
    terminal.results().show(section_table(Report.load(out).accuracy()))
    terminal.say(f"{progress.done} runs in {out}; plots: motes report {shlex.quote(str(out))}")
    if ungraded := progress.outcomes.get("grader_timeout"):
        command_line = shlex.join(["motes", "grade", str(out)])
        terminal.note(f"{ungraded} answers could not be graded; this tries again: {command_line}")
    if progress.failed:
        terminal.note(f"{progress.failed} runs failed; the same command does them again")
        raise typer.Exit(1)


def run(console: Console, evaluation: Evaluation, out: Path, **settings: Any) -> Progress:
    """Run an evaluation with the settings of `motes.lab.evaluate`, and show its progress."""
    with View(console, "runs") as view:
        return asyncio.run(evaluate(evaluation, out, **settings, observe=view.observe))


def show_plan(
    evaluation: Evaluation,
    out: Path,
    shard: Shard | None,
    concurrency: int,
    answer_tokens: int,
    prices: Prices | None,
) -> None:
    """Print an evaluation's plan and its estimated cost."""
    damages = Damages()
    estimates = estimate(evaluation, out, shard=shard, answer_tokens=answer_tokens, damages=damages)
    sizes = Sizes.read(out, damages.of("models' sizes"))
    terminal.note_all(damages.lines())
    plan = plan_table(estimates, sizes=sizes, prices=prices, concurrency=concurrency, answer_tokens=answer_tokens)
    problems = len(evaluation.problems() if shard is None else shard.of(evaluation.problems()))
    seeds = f", {len(evaluation.seeds)} seeds" if len(evaluation.seeds) > 1 else ""
    part = "" if shard is None else f" (part {shard})"
    terminal.say(f"{evaluation.task}: {counted(problems, 'problem')}{part}{seeds}, to {out}")
    terminal.results().show(section_table(plan))
    terminal.say(plan.note)


class View(ProgressView):
    """Shows an evaluation's progress, on a terminal with the accuracies so far."""

    def observe(self, progress: Progress) -> None:
        tokens = progress.usage.computed_tokens
        pace = ", ".join(self.pace(progress.done, progress.total, progress.resumed, tokens))
        grid = accuracy_grid(progress.cells)
        words = [] if math.isnan(progress.accuracy) else [f"accuracy {100 * progress.accuracy:.1f} %"]
        if progress.failed:
            words.append(f"{progress.failed} failed")
        self.show(progress.done, progress.total, ", ".join(words), pace, grid, Text(pace, style="dim"))
