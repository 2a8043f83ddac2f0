"""`motes demo`: solve one problem live, then run a small evaluation with its table and plot."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.rule import Rule

from motes import api
from motes.cli import evaluate, options, terminal
from motes.cli.terminal import Text
from motes.cli.views import Watch, compact_table, show_result
from motes.lab.measure.comparison import points
from motes.lab.measure.statistics import Interval
from motes.lab.run.evaluation import Evaluation
from motes.lab.show.report import Report
from motes.lab.show.writing import write_report
from motes.methods import ParticleFilter
from motes.tasks import Arithmetic
from motes.text import counted

SPLIT = "long"
"""Problems of 11 to 16 steps. Their answers are long and seldom right at the first try, so particles win."""
PROBLEM = 4
"""Index of the problem that is solved live. The filter solves four of ten, and this one; the model alone does not."""
METHODS = ("greedy", "wbon", "pf")
BUDGETS = (4, 16)


def command(
    out: Annotated[Path | None, typer.Option("--out", help="Directory of the evaluation. Default: a new one.")] = None,
    limit: Annotated[int, typer.Option(help="Number of problems of the small evaluation.")] = 20,
    model: options.Model = "tiny",
    reward: options.Reward = "tiny",
) -> None:
    """Show motes at work: one problem live, a small evaluation, its plot."""
    console = terminal.results()
    evaluation = Evaluation(split=SPLIT, methods=METHODS, budgets=BUDGETS, limit=limit, lm=model, reward=reward)
    directory = out or _new_directory()
    evaluation.check(directory)
    lm, prm = options.open_models(model, reward)

    console.print(Rule("one problem, 16 particles", style="dim"))
    problem = Arithmetic().problems(SPLIT)[PROBLEM]
    console.print(Text(problem.question + "\n", style="bold"), soft_wrap=not console.is_terminal)
    started = time.perf_counter()
    with Watch(terminal.progress()) as watch:
        result = api.solve(problem, lm=lm, reward=prm, method=ParticleFilter(16), seed=0, observe=watch.observe)
    show_result(console, result, time.perf_counter() - started)
    console.print(f"the right answer is {problem.answer}\n")

    console.print(Rule(f"{counted(limit, 'long problem')}, three methods", style="dim"))
    evaluate.run(terminal.progress(), evaluation, directory, lm=lm, reward=prm)
    report = Report.load(directory)
    console.show(compact_table(report))
    console.print("95 % intervals beside; tokens per problem at the largest budget, both models", style="dim")
    for difference in report.differences:
        if difference.method == "wbon":
            lead = Interval(-difference.value.value, -difference.value.high, -difference.value.low)
            between = f" ({points(lead.low)} to {points(lead.high)})" if lead.is_known else ""
            console.print(
                f"particle filter less weighted best of N, N = {difference.budget}, problem by problem: "
                f"{points(lead.value)} points{between}",
                soft_wrap=True,
            )
    console.print()
    paths = options.write_files(lambda plots: write_report(directory, report, plots=plots))
    plots = " ".join(str(path) for path in paths if path.suffix == ".png")
    console.print(f"plots: {plots}\nmore:  motes report {directory}", soft_wrap=True)


def _new_directory() -> Path:
    """The first of runs/demo, runs/demo-2, … that does not exist yet."""
    names = (Path("runs") / ("demo" if number == 1 else f"demo-{number}") for number in count(1))
    return next(path for path in names if not path.exists())
