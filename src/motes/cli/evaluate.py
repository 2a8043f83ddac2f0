"""`motes eval`: methods against budgets on a task's problems, into a directory that can be resumed."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from typer.core import TyperCommand

from motes.cli import options, terminal
from motes.cli.terminal import Console, Text
from motes.cli.views import accuracy_grid, section_table
from motes.errors import ConfigurationError
from motes.lab.measure.formats import duration
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
from motes.text import counted

RAY = "auto"


class Command(TyperCommand):
    """`--ray` alone means a cluster that is found or started: typer knows no options whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for i in reversed([i for i, arg in enumerate(args) if arg == "--ray"]):
            if i + 1 == len(args) or args[i + 1].startswith("-"):
                args[i] = f"--ray={RAY}"
        return super().parse_args(ctx, args)


def command(
    out: Annotated[Path, typer.Option("--out", help="Directory of the evaluation; an unfinished one is resumed.")],
    task: options.Task = "arithmetic",
    methods: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete(*METHODS),
            help="Methods separated by commas, e.g. pf,pf:paper,beam:beam_width=2,@FILE,MODULE:CLASS.",
        ),
    ] = "pf,bon,wbon,majority,greedy",
    budgets: Annotated[str, typer.Option(help="Numbers of trajectories, separated by commas.")] = "1,4,16",
    limit: Annotated[int | None, typer.Option(help="The first so many problems; by default all.")] = None,
    split: Annotated[str, typer.Option(help="Part of the task.")] = "test",
    seeds: Annotated[str, typer.Option(help="The evaluation is repeated with each, separated by commas.")] = "0",
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
    outcome_reward: options.OutcomeReward = None,
    concurrency: Annotated[int, typer.Option(help="Problems in flight.")] = 64,
    alone: Annotated[
        bool,
        typer.Option("--alone", help="One run at a time: seconds are those of a run that has the models to itself."),
    ] = False,
    temperature: options.Temperature = options.DEFAULTS.temperature,
    top_p: options.TopP = options.DEFAULTS.top_p,
    top_k: options.TopK = options.DEFAULTS.top_k,
    min_p: options.MinP = options.DEFAULTS.min_p,
    max_step_tokens: options.MaxStepTokens = None,
    max_tokens: options.MaxTokens = options.DEFAULTS.max_tokens,
    max_steps: options.MaxSteps = options.DEFAULTS.max_steps,
    prompt: options.Prompt = None,
    delimiter: options.Delimiter = None,
    pattern: options.Pattern = None,
    step_tokens: options.StepTokens = None,
    stop: options.StopText = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only part I of N, from 1, in a directory of its own; see `motes merge`."),
    ] = None,
    traces: Annotated[bool, typer.Option(help="Keep what happened inside each run as well.")] = True,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Solve on a Ray cluster, such as HOST:6379; without an address on the one that RAY_ADDRESS names or "
            "this machine runs, else on one started here. --concurrency is then each worker's.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --ray: processes; by default one a GPU, without GPUs one a node.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="With --ray: by default 1, if there are any and a model runs in the worker.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and about its cost.")] = False,
    answer_tokens: Annotated[
        int, typer.Option(help="With --dry-run: of one answer, as long as no run is recorded.")
    ] = ANSWER_TOKENS,
    prices: options.Prices = None,
) -> None:
    """Evaluate methods over budgets; resumes where it stopped."""
    asked = options.prompt(prompt)
    evaluation = Evaluation(
        task=task,
        split=split,
        limit=limit,
        methods=tuple(map(expanded, options.names(methods, "--methods"))),
        budgets=options.numbers(budgets, "--budgets"),
        seeds=options.numbers(seeds, "--seeds"),
        lm=model,
        reward=None if reward == "none" else reward,
        outcome_reward=None if outcome_reward == "none" else outcome_reward,
        sampling=options.sampling(
            asked,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            max_step_tokens=max_step_tokens,
            max_tokens=max_tokens,
            max_steps=max_steps,
            delimiter=delimiter,
            pattern=pattern,
            step_tokens=step_tokens,
            stop=stop,
        ),
        prompt=asked,
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
        raise ConfigurationError("--prices goes with --dry-run; what was done is priced by `motes report --prices`")
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

            terminal.pass_time(f"opening {model} on Ray")
            settings["on"] = Ray(None if ray == RAY else ray, workers, gpus_per_worker)
        progress = run(terminal.progress(), evaluation, out, **settings)
    terminal.note_all(progress.damages.lines())
    terminal.results().show(section_table(Report.load(out).accuracy()))
    terminal.say(f"{progress.done} runs in {out}; plots: motes report {shlex.quote(str(out))}")
    if ungraded := progress.outcomes.get("grader_timeout"):
        again = shlex.join(["motes", "grade", str(out)])
        terminal.note(f"{ungraded} answers could not be graded; this tries again: {again}")
    if progress.failed:
        terminal.note(f"{progress.failed} runs failed; the same command does them again")
        raise typer.Exit(1)


def run(console: Console, evaluation: Evaluation, out: Path, **settings: Any) -> Progress:
    """Carry an evaluation out, with the settings of `motes.lab.evaluate`, showing how far it is."""
    with View(console) as view:
        return asyncio.run(evaluate(evaluation, out, **settings, observe=view.observe))


def show_plan(
    evaluation: Evaluation,
    out: Path,
    shard: Shard | None,
    concurrency: int,
    answer_tokens: int,
    prices: Prices | None,
) -> None:
    """What an evaluation would do, and about its cost."""
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


class View:
    """An evaluation's progress: a bar with the accuracies so far on a terminal, about twenty plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.perf_counter()
        words = TextColumn("{task.description}", markup=False)
        self._bar = Bar(BarColumn(bar_width=36), MofNCompleteColumn(), words, console=console)
        self._task = self._bar.add_task("", total=None)
        self._live = Live(console=console, refresh_per_second=5, transient=True)
        self._printed = -1

    def __enter__(self) -> View:
        if self.console.is_interactive:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_interactive:
            self._live.stop()

    def observe(self, progress: Progress) -> None:
        if self.console.is_interactive:
            self._bar.update(self._task, completed=progress.done, total=progress.total, description=_words(progress))
            pace = Text(self._pace(progress), style="dim")
            self._live.update(Group(self._bar, accuracy_grid(progress.cells), pace))
        elif (part := 20 * progress.done // max(1, progress.total)) != self._printed:
            self._printed = part
            words = [f"{progress.done}/{progress.total} runs", _words(progress), self._pace(progress)]
            self.console.print("   ".join(filter(None, words)), soft_wrap=True)

    def _pace(self, progress: Progress) -> str:
        """How fast this call is, what it has computed, and how long the rest takes at this pace."""
        new, elapsed = progress.done - progress.resumed, time.perf_counter() - self.started
        if not new:
            return ""
        tokens = progress.usage.computed_tokens
        words = [f"{60 * new / elapsed:,.0f} runs/min", f"{tokens:,} tokens computed, {tokens / elapsed:,.0f}/s"]
        if progress.done < progress.total:
            words.append(f"{duration(elapsed * (progress.total - progress.done) / new)} left")
        return ", ".join(words)


def _words(progress: Progress) -> str:
    words = [] if progress.accuracy != progress.accuracy else [f"accuracy {100 * progress.accuracy:.1f} %"]
    if progress.failed:
        words.append(f"{progress.failed} failed")
    return ", ".join(words)
