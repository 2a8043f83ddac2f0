"""Views for people: a running population, a result, an evaluation's progress and its tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import rich.console
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from motes.cli.terminal import Console, Text
from motes.core import Record, Result, Stop, Usage
from motes.lab.measure.formats import Section, duration
from motes.lab.run.method_spec import NAMES
from motes.lab.show.report import Report
from motes.methods import Run
from motes.smc import Weights
from motes.thoughts import split

MAX_ROWS = 6
"""Maximum number of partial answers, and of answers, that are shown."""

STOPPED: Mapping[Stop, str] = {
    "deadline": "at the deadline: the answer is the best so far",
    "token_budget": "when the tokens were spent: the answer is the best so far",
}


@dataclass(frozen=True)
class Round:
    """One round in numbers."""

    number: int
    ess: float
    particles: int
    resampled: bool
    survivors: int  # particles of the previous population that have a descendant
    finished: int
    log_evidence: float | None
    dropped: int = 0  # particles that could not be extended or scored
    moved: int | None = None  # whole answers that others have replaced

    @classmethod
    def of(cls, number: int, record: Record) -> Round:
        return cls(
            number=number,
            ess=round(record.ess, 3),
            particles=len(record.trajectories),
            resampled=record.resampled,
            survivors=len(set(record.ancestors.tolist())),
            finished=sum(trajectory.finished is not None for trajectory in record.trajectories),
            log_evidence=float(record.log_evidence) if np.isfinite(record.log_evidence) else None,
            dropped=len(record.failures),
            moved=None if record.moves is None else int(record.moves.accepted.sum()),
        )

    def __str__(self) -> str:
        return (
            f"round {self.number:>2}   ESS {self.ess:5.1f} of {self.particles}   survivors {self.survivors:>3}   "
            f"finished {self.finished:>3}{'' if self.moved is None else f'   moved {self.moved:>3}'}"
            f"{'   resampled' if self.resampled else ''}"
            f"{f'   dropped {self.dropped}' if self.dropped else ''}"
        )


class View:
    """A context manager that shows something that changes, if the console is a terminal."""

    def __init__(self, console: Console, live: Live) -> None:
        self.console, self._live = console, live

    def __enter__(self) -> Self:
        if self.console.is_interactive:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_interactive:
            self._live.stop()


class Watch(View):
    """Shows a run round by round: a table in place on a terminal, one plain line per round elsewhere. `observe` is the
    run's observer."""

    def __init__(self, console: Console) -> None:
        first = Text("sampling the first step …", style="dim")
        super().__init__(console, Live(first, console=console, refresh_per_second=8))
        self.rounds: list[Round] = []

    def __exit__(self, *exception: object) -> None:
        if not self.rounds:
            self._live.update(Text(""))
        super().__exit__()

    def observe(self, run: Run, record: Record) -> None:
        self.rounds.append(Round.of(len(self.rounds) + 1, record))
        if self.console.is_interactive:
            self._live.update(self._draw(run, record))
        else:
            self.console.print(str(self.rounds[-1]), soft_wrap=True)

    def _draw(self, run: Run, record: Record) -> RenderableType:
        table = _table("round", "effective sample size", "", "survivors", "finished", shrinkable=(1,))
        for item in self.rounds[-10:]:
            table.add_row(
                str(item.number),
                Bar(item.ess / item.particles, 24, "green" if item.ess > item.particles / 2 else "yellow"),
                f"{item.ess:.1f} of {item.particles}",
                f"{item.survivors}{' resampled' if item.resampled else ''}",
                f"{item.finished}{'' if item.moved is None else f', {item.moved} moved'}",
            )
        return Group(table, Text(""), partial_answers(record), Text(_cost(run.usage), style="dim"))


class ProgressView(View):
    """Shows the progress of work: a bar on a terminal, about twenty plain lines elsewhere. `unit` is the plural of the
    unit of work, such as "runs"."""

    def __init__(self, console: Console, unit: str) -> None:
        super().__init__(console, Live(console=console, refresh_per_second=5, transient=True))
        self._unit, self._started = unit, time.perf_counter()
        description = TextColumn("{task.description}", markup=False)
        self._bar = Progress(BarColumn(bar_width=36), MofNCompleteColumn(), description, console=console)
        self._task = self._bar.add_task("", total=None)
        self._printed = -1

    def show(self, done: int, total: int, description: str, pace: str = "", *details: RenderableType) -> None:
        """Update the bar, with `details` below it, or print a line."""
        if self.console.is_interactive:
            self._bar.update(self._task, completed=done, total=total, description=description)
            self._live.update(Group(self._bar, *details))
        elif (part := 20 * done // max(1, total)) != self._printed:
            self._printed = part
            self.console.print(
                "   ".join(filter(None, (f"{done}/{total} {self._unit}", description, pace))), soft_wrap=True
            )

    def pace(self, done: int, total: int, resumed: int, tokens: int | None = None) -> list[str]:
        """Units per minute, tokens computed, and the time left at this pace."""
        new, elapsed = done - resumed, time.perf_counter() - self._started
        if not new:
            return []
        words = [f"{60 * new / elapsed:,.0f} {self._unit}/min"]
        if tokens is not None:
            words.append(f"{tokens:,} tokens computed, {tokens / elapsed:,.0f}/s")
        return [*words, f"{duration(elapsed * (total - done) / new)} left"] if done < total else words


def partial_answers(record: Record) -> RenderableType:
    """The heaviest partial answers, each with its number of particles, weight, score and latest step."""
    weights = Weights(record.log_weights)
    shares = weights.normalized if not weights.degenerate else np.zeros(len(weights))
    groups: dict[str, list[int]] = {}
    for i, trajectory in enumerate(record.trajectories):
        groups.setdefault(trajectory.text, []).append(i)
    heaviest = sorted(groups.values(), key=lambda group: -float(shares[group].sum()))[:MAX_ROWS]
    table = _table("particles", "weight", "", "score", "latest step", shrinkable=(2, 4))
    for group in heaviest:
        trajectory, share, score = record.trajectories[group[0]], float(shares[group].sum()), record.scores[group[0]]
        step = " ".join(trajectory.step.text.split()) if trajectory.step is not None else ""
        table.add_row(
            str(len(group)),
            f"{share:.2f}",
            Bar(share, 12, "cyan"),
            "" if np.isnan(score) else f"{score:.2f}",
            Text(step + (" ■" if trajectory.finished else ""), overflow="ellipsis", no_wrap=True),
        )
    return table


def show_result(console: Console, result: Result, seconds: float, note: str | None = None) -> None:
    """Print the answer with its posterior and its cost."""
    thoughts, content = split(result.text)
    if thoughts:
        console.print(Text("\n" + thoughts.strip()), style="dim italic", soft_wrap=True)
    if content:
        console.print(Text("\n" + content.strip()), style="dim", soft_wrap=True)
    if result.text:
        console.print()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    if missing := no_answer(result):
        table.add_row("answer", Text(missing, style="yellow"))
    else:
        table.add_row("answer", Text(result.answer or "", style="bold green"))
    if note:
        table.add_row("note", Text(note, style="yellow"))
    if result.stopped:
        table.add_row("stopped", Text(STOPPED[result.stopped], style="yellow"))
    if result.dropped:
        reason = f"{len(result.dropped)} that could not be extended or scored; {result.dropped[0].error}"
        table.add_row("dropped", Text(" ".join(reason.split()), style="yellow"))
    if result.answer is not None and (share := confidence(result)) is not None:
        table.add_row("confidence", f"{100 * share:.0f} %")
        table.add_row("posterior", posterior(result.posterior))
    table.add_row("cost", Text(f"{_cost(result.usage)}, {seconds:.1f} s"))
    console.show(table)


def no_answer(result: Result) -> str | None:
    """The message for a result without an answer, with a remedy."""
    if result.answer is not None:
        return None
    if not result.text:
        return "no answer was found: the model wrote nothing"
    n = len(result.trajectories)
    texts = "the text states none" if n == 1 else f"none of {n} texts states one, and this is the likeliest"
    remedy = "" if result.problem.plain is not result.problem else "ask for one that can be read, --prompt boxed, or "
    other = "read answers by another rule, such as --rule last-number (`motes doctor MODEL --task FILE` tries them)"
    return f"no answer was found: {texts}; {remedy}{other}"


def confidence(result: Result) -> float | None:
    """The posterior mass of the answer; None for a single trajectory, whose mass would say nothing."""
    return None if len(result.trajectories) == 1 else result.confidence


def posterior(masses: Mapping[str, float]) -> RenderableType:
    """A small table of the posterior over answers, with bars."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for answer, mass in list(masses.items())[:MAX_ROWS]:
        table.add_row(Text(answer), Bar(mass, 24, "green"), f"{mass:.2f}")
    if len(masses) > MAX_ROWS:
        table.add_row(f"{len(masses) - MAX_ROWS} more", "", f"{sum(list(masses.values())[MAX_ROWS:]):.2f}")
    if (unanswered := 1 - sum(masses.values())) > 5e-3:
        table.add_row("no answer", Bar(unanswered, 24, "red"), f"{unanswered:.2f}")
    return table


def section_table(section: Section) -> Table:
    """The table of a report's section."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, column in enumerate(section.header):
        # "fold" never cuts a number
        table.add_column(column, justify="right" if i and not section.words else "left", overflow="fold")
    previous = None
    for first, *rest in section.rows:
        table.add_row(Text(first if first != previous else "", style="bold"), *rest)
        previous = first
    return table


def show_sections(console: Console, warnings: Iterable[str], sections: Iterable[Section]) -> None:
    """Print the warnings, then the tables."""
    for warning in warnings:
        console.print(Text(warning, style="yellow"), soft_wrap=True)
    for section in sections:
        if section.title:
            console.print()
            console.print(Text(section.title.replace("`", ""), style="bold"))
        console.show(section_table(section))
        if section.note:
            console.print(Text(section.note, style="dim"))


def compact_table(report: Report) -> Table:
    """Accuracy with its interval, one row per method, one column per budget, and the tokens at the largest budget."""
    budgets = sorted({cell.budget for cell in report.cells})
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("accuracy in %", no_wrap=True)
    for budget in budgets:
        table.add_column(f"N = {budget}", justify="right", no_wrap=True)
    table.add_column("tokens computed", justify="right")
    for method in dict.fromkeys(cell.method for cell in report.cells):
        cells = {cell.budget: cell for cell in report.cells if cell.method == method}
        row: list[RenderableType] = [Text(NAMES.get(method, method), style="bold")]
        for budget in budgets:
            if budget not in cells:
                row.append(Text(""))
                continue
            accuracy = cells[budget].accuracy
            interval = f" {100 * accuracy.low:3.0f}–{100 * accuracy.high:<3.0f}" if accuracy.is_known else " –"
            row.append(Text.assemble((f"{100 * accuracy.value:.0f}", "bold"), (interval, "dim")))
        table.add_row(*row, f"{cells[max(cells)].total_tokens:,.0f}")
    return table


def accuracy_grid(cells: Mapping[tuple[str, int], tuple[int, int]]) -> Table:
    """Accuracy so far, one row per method and one column per budget."""
    budgets = sorted({budget for _, budget in cells})
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("accuracy at budget")
    for budget in budgets:
        table.add_column(str(budget), justify="right", min_width=7)
    for method in dict.fromkeys(method for method, _ in sorted(cells)):
        row = []
        for budget in budgets:
            runs, right = cells.get((method, budget), (0, 0))
            row.append(f"{100 * right / runs:.1f} %" if runs else "")
        table.add_row(method, *row)
    return table


def _table(*columns: str, shrinkable: Sequence[int]) -> Table:
    """A table, of which only the columns with the numbers `shrinkable` shrink on a narrow terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(Text(column, no_wrap=True), no_wrap=number not in shrinkable)
    return table


@dataclass(frozen=True)
class Bar:
    """A share drawn as a bar, at most `width` columns wide."""

    share: float
    width: int
    colour: str

    def __rich_measure__(self, console: rich.console.Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, self.width)

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width, options.max_width)
        filled = round(max(0.0, min(1.0, self.share)) * width)
        yield Text.assemble(("━" * filled, self.colour), ("─" * (width - filled), "bright_black"))


def _cost(usage: Usage) -> str:
    """The tokens that a run needs by itself, and the tokens of failed attempts."""
    shared = usage.prefill_tokens_cached + usage.reward_tokens_cached
    needed = (usage.generated_tokens, usage.prefill_tokens, usage.reward_tokens)
    parts = ["{:,} generated + {:,} prefill + {:,} reward tokens".format(*needed)]
    if usage.thought_tokens:
        parts.append(f"{usage.thought_tokens:,} of the generated ones thought")
    if shared:
        parts.append(f"{shared:,} more shared by its particles")
    if usage.failed_tokens:
        parts.append(f"{usage.failed_tokens:,} lost in failed attempts")
    return ", ".join(parts)
