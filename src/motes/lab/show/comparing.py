"""Compare two or more evaluations on the same problems: of other models, with other prompts, from other days.

A curve is a method of one evaluation, written `NAME: METHOD`; evaluations are named after their directories. The other
evaluations are compared with the first one, whose chief method (`motes.lab.measure.comparison.chief_of`) is the
reference:

    same method      accuracy of a method in another evaluation less that in the first, at the same budget
    reference        accuracy of every other curve less that of the reference, at the same budget
    scaling rate     how many times the reference's budget a curve needs to be as accurate

Each comparison is over the problems that both have, with the runs of all seeds; see `motes.lab.measure.comparison`. In
the figure colour and marker of a curve show the method, its dashes the evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from motes.errors import RunDirectoryError, UnknownNameError
from motes.lab.measure.cells import Cell
from motes.lab.measure.comparison import CellName, Difference, PairedRuns, Rate, chief_of, compare_cells, rates
from motes.lab.measure.formats import Section, code, csv_text, markdown, markdown_page
from motes.lab.run import provenance
from motes.lab.run.method_spec import draws_one
from motes.lab.run.provenance import Provenance
from motes.lab.show import tables
from motes.lab.show.plot import BUDGET, TOKENS, Scale, set_log2_axis
from motes.lab.show.report import Report
from motes.lab.show.style import Style, heading, styles_of
from motes.tasks import DECLARED, TASKS
from motes.text import counted, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "comparison.html"
DASHES = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
"""The dashes of each evaluation's lines."""

ACCURACY_NOTE = (
    "Over the problems of which all evaluations have runs. Accuracy: right answers over all runs, failed and ungraded "
    "ones included, with Wilson's 95 % interval; tokens, FLOPs and seconds: per problem, as in the report of each "
    "evaluation.{seeds}"
)
DIFFERING_NOTE = (
    "Everything that results may depend on and that differs between the two, from `config.json` and "
    "`provenance.jsonl`. Methods, budgets, dates and commands are not listed."
)
ALIKE_NOTE = "Nothing that was recorded of how they were made differs."


class Curve(NamedTuple):
    """A method of an evaluation: the evaluation's name and the method's spec."""

    evaluation: str
    method: str

    def __str__(self) -> str:
        return f"{self.evaluation}: {self.method}"


@dataclass(frozen=True)
class Comparison:
    """Evaluations side by side: their reports by name, a curve of the first one as the reference, and the ids of the
    problems of which all have runs."""

    reports: Mapping[str, Report]
    reference: Curve
    problems: frozenset[str]

    @property
    def first(self) -> str:
        return next(iter(self.reports))

    @property
    def title(self) -> str:
        task = self.reports[self.first].configuration.get("task", "?")
        return f"{task}, {counted(len(self.problems), 'problem')}"

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """All curves, those of the first evaluation first."""
        return tuple(Curve(name, method) for name, report in self.reports.items() for method in report.methods)

    @cached_property
    def cells(self) -> Mapping[Curve, tuple[Cell, ...]]:
        """The cells of each curve, by budget, over the problems that all evaluations have."""
        curves: dict[Curve, list[Cell]] = {}
        for name, report in self.reports.items():
            expected = len(self.problems) * len(report.configuration.get("seeds", ()))
            for (method, budget), runs in report.runs.items():
                if common := [run for run in runs if run.problem_id in self.problems]:
                    cell = Cell.of(method, budget, None, common, expected, report.sizes)
                    curves.setdefault(Curve(name, method), []).append(cell)
        return {curve: tuple(cells) for curve, cells in curves.items()}

    @cached_property
    def same(self) -> tuple[Difference, ...]:
        """The difference of each method of the other evaluations to the same method in the first one."""
        return self._differences(
            ((str(curve), budget), (str(Curve(self.first, curve.method)), budget))
            for curve in self.curves
            for budget in self._runs.budgets(str(curve))
            if curve.evaluation != self.first
        )

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The difference of each curve to the reference, at each of the reference's budgets."""
        reference = str(self.reference)
        return self._differences(
            ((str(curve), 1 if draws_one(curve.method) else budget), (reference, budget))
            for curve in self.curves
            for budget in self._runs.budgets(reference)
            if curve != self.reference
        )

    @cached_property
    def rates(self) -> tuple[Rate, ...]:
        """The scaling rate of each curve against the reference, at each of the reference's budgets but the smallest."""
        reference = str(self.reference)
        return tuple(rates(self._runs, [*map(str, self.curves)], self._runs.budgets(reference)[1:], reference))

    @cached_property
    def _runs(self) -> PairedRuns:
        """All runs, with the names of curves as methods."""
        return PairedRuns(
            [
                dataclasses.replace(record, method=str(Curve(name, record.method)))
                for name, report in self.reports.items()
                for record in report.records
            ]
        )

    def _differences(self, pairs: Iterable[tuple[CellName, CellName]]) -> tuple[Difference, ...]:
        """The differences of the pairs that have problems in common; the second cell of a pair is the chief's."""
        pairs = [pair for pair in pairs if self._runs.problems(pair)]
        results = compare_cells(self._runs, pairs)
        return tuple(
            Difference(method, chief, budget, *result)
            for ((method, _), (chief, budget)), result in zip(pairs, results, strict=True)
        )

    def differing(self) -> dict[str, list[provenance.Difference]]:
        """How the provenance of each other evaluation differs from that of the first one, by name."""
        first, *others = self.reports.items()
        return {name: provenance.differences(first[1].provenance, report.provenance) for name, report in others}

    @property
    def provenance(self) -> Provenance:
        """The provenance of all evaluations, with the configuration of the first one."""
        return provenance.together([report.provenance for report in self.reports.values()])

    def warnings(self) -> list[str]:
        """Warnings that a reader needs before trusting the numbers."""
        lines = [f"{name}: {warning}" for name, report in self.reports.items() for warning in report.warnings()]
        for name, report in self.reports.items():
            if left := len(report.problem_ids - self.problems):
                lines.append(f"{name}: {counted(left, 'problem')} left out, which not all evaluations have runs of")
            if not report.has_own_costs:
                lines.append(f"{name}: old records, in which the cost of a run depends on what else ran beside it")
        return lines

    def sections(self) -> Iterator[Section]:
        """The tables of the comparison."""
        yield self._accuracy()
        for name, different in self.differing().items():
            rows = [list(difference) for difference in different] or [["recorded provenance", "the same", "the same"]]
            note = DIFFERING_NOTE if different else ALIKE_NOTE
            title = f"How {code(name)} differs from {code(self.first)}"
            yield Section(title, ("what", self.first, name), rows, note, words=True)
        if self.same:
            chief = f"the same method in {code(self.first)}"
            yield tables.differences_table(self.same, f"Differences to {code(self.first)}", chief, "same.csv")
        reference = code(str(self.reference))
        if self.differences:
            title = f"Differences to {reference}"
            yield tables.differences_table(self.differences, title, reference, "differences.csv", tables.ONE_DRAW_NOTE)
        if self.rates:
            yield tables.rates_table(self.rates, reference)
        for name, report in self.reports.items():
            if report.provenance:
                yield tables.provenance_table(report.provenance, f"Provenance of {code(name)}")

    def _accuracy(self) -> Section:
        header = ("evaluation", *tables.COLUMNS)
        rows = [[curve.evaluation, *tables.table_row(cell)] for curve, cells in self.cells.items() for cell in cells]
        seeds = {name: len(report.seeds) for name, report in self.reports.items()}
        notes = "".join(f" {code(name)}:{tables.note_on_seeds(count)}" for name, count in seeds.items())
        if len(set(seeds.values())) == 1:
            notes = tables.note_on_seeds(seeds[self.first])
        return Section("", header, rows, ACCURACY_NOTE.format(seeds=notes))

    def markdown(self) -> str:
        """The comparison as a Markdown page."""
        models = [f"- {code(name)}: {markdown(report.models)}" for name, report in self.reports.items()]
        return markdown_page(self.title, [*models, ""], map(markdown, self.warnings()), self.sections())

    def tables(self) -> dict[str, str]:
        """The texts of the files that a comparison consists of, by file name."""
        rows = [{"evaluation": curve.evaluation, **cell.row()} for curve, cells in self.cells.items() for cell in cells]
        texts = {"comparison.md": self.markdown(), "accuracy.csv": csv_text(rows)}
        for name, values in (("same", self.same), ("differences", self.differences), ("rates", self.rates)):
            if values:
                texts[f"{name}.csv"] = csv_text([self._row(value) for value in values])
        return texts

    def _row(self, value: Difference | Rate) -> dict[str, Any]:
        """A row of a CSV file, with the evaluations in columns of their own."""
        curves = {str(curve): curve for curve in self.curves}
        curve, chief = curves[value.method], curves[value.chief]
        names = {"evaluation": curve.evaluation, "method": curve.method}
        return {**names, "chief_evaluation": chief.evaluation, **value.row(), **names, "chief": chief.method}


def compare(*directories: Path, reference: str | None = None) -> Comparison:
    """Compare evaluations with the first one.

    Args:
        directories: two or more, of evaluations, finished or not; `Comparison.warnings` says what cannot be read.
        reference: the method of the first evaluation with which all others are compared; by default its chief method.

    Raises:
        RunDirectoryError: a directory holds no evaluation, or one of another task, of other problems or with another
            grader; or there is no problem of which all have runs.
        UnknownNameError: the first evaluation has no such method.
    """
    if len({directory.resolve() for directory in directories}) < max(2, len(directories)):
        raise RunDirectoryError("name two different directories to compare, or more")
    names = _names(directories)
    reports = {name: Report.load(directory) for name, directory in zip(names, directories, strict=True)}
    first, *others = names
    for name in others:
        _require_same_task(first, reports[first], name, reports[name])
    problems = frozenset.intersection(*(report.problem_ids for report in reports.values()))
    if not problems:
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise RunDirectoryError(f"there is no problem that {listed} all have runs of: nothing can be compared")
    methods = reports[first].methods
    if reference is not None and reference not in methods:
        raise UnknownNameError(f"method of {first}", reference, methods)
    return Comparison(reports, Curve(first, reference or chief_of(methods)), problems)


def _names(directories: Sequence[Path]) -> list[str]:
    """The names of the evaluations: the last part of each path, with as many parts before it as make them differ."""
    paths = [directory.resolve().parts for directory in directories]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _require_same_task(first: str, one: Report, name: str, other: Report) -> None:
    """Raise a RunDirectoryError if two evaluations do not have the same problems and the same grader."""
    specs = [report.configuration.get("task", "?") for report in (one, other)]
    (grader, problems), (other_grader, other_problems) = map(_task_of, specs)
    tasks = f"{first} is of the task {specs[0]!r}, {name} of {specs[1]!r}"
    if grader != other_grader:
        raise RunDirectoryError(f"{tasks}: the first is graded by {grader}, the other by {other_grader}; compare alike")
    digests = [set(report.provenance.facts.get("task.digest", ())) for report in (one, other)]
    if problems != other_problems and not digests[0] & digests[1]:
        raise RunDirectoryError(f"{tasks}: only evaluations of the same problems can be compared")
    # Records of failed runs may lack the reference answer.
    references = {record.problem_id: record.reference for record in one.records if record.reference is not None}
    for record in other.records:
        reference = references.get(record.problem_id)
        if None not in (reference, record.reference) and reference != record.reference:
            raise RunDirectoryError(
                f"the problem {record.problem_id!r} has the answer {reference!r} in {first} and {record.reference!r} "
                f"in {name}: only evaluations of the same problems can be compared"
            )


def _task_of(spec: str) -> tuple[str, str]:
    """The grader and the problems of a task, as far as its spec says. A file is identified by its name alone, because
    its directory differs between machines."""
    source = spec.partition("?")[0]
    name, _, file = source.partition(":")
    if source.endswith(".jsonl") and name not in (*TASKS, *DECLARED):
        name, file = "math", source
    if name not in DECLARED:
        return source, source
    declared = DECLARED[name]
    return getattr(declared.rule, "__name__", name), name if declared.hub is not None else Path(file).name


def looks_of(comparison: Comparison) -> dict[Curve, Style]:
    """The style of each curve: it has the colour of its method, darker or lighter by evaluation."""
    styles = styles_of(curve.method for curve in comparison.cells)
    places = list(comparison.reports)
    looks = {}
    for curve in comparison.cells:
        style, place = styles[curve.method], places.index(curve.evaluation)
        label = f"{style.label.replace(chr(10), ' ')}, {visible(curve.evaluation)}"
        looks[curve] = Style(label, _shade(style.colour, place), style.marker, DASHES[place % len(DASHES)])
    return looks


def _shade(colour: str, place: int) -> str:
    """The colour itself at place 0, then darker, lighter, darker still, …"""
    target, share = 0 if place % 2 else 255, 1 - 0.62 ** math.ceil(place / 2)
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (target - part)):02x}" for part in parts)


def overlaid_figure(comparison: Comparison) -> Figure:
    """All curves of all evaluations, with a legend below: accuracy against the budget, and against tokens."""
    from matplotlib.figure import Figure

    looks = looks_of(comparison)
    columns = 2 if max(len(look.label) for look in looks.values()) > 30 else 3
    rows = math.ceil(len(looks) / columns)
    width, panels, above = 8.0, 3.3, 0.85  # in inches: 1,600 pixels wide
    below = 0.6 + 0.21 * rows + 0.1
    height = above + panels + below
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - above / height, bottom=below / height, wspace=0.08)
    for axes, scale in zip(grid, (BUDGET, TOKENS), strict=True):
        _draw_panel(axes, comparison.cells, looks, scale)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0.075, 0.0), ncols=columns, frameon=False, fontsize=9,
        handlelength=3.2, columnspacing=1.4, labelspacing=0.35, borderpad=0.2,
    )  # fmt: skip
    names = ", ".join(comparison.reports)
    heading(figure, f"Accuracy on {comparison.title}", f"{names}; whiskers: 95 % intervals")
    return figure


def _draw_panel(
    axes: Axes, curves: Mapping[Curve, tuple[Cell, ...]], looks: Mapping[Curve, Style], scale: Scale
) -> None:
    """Draw all curves over one scale. Their budgets coincide, so over the budget each is moved a little to the side."""
    place: Callable[[Cell], float] = scale.place
    places = [place(cell) for cells in curves.values() for cell in cells if place(cell) > 0]
    span = math.log2(max(places, default=1.0)) - math.log2(min(places, default=1.0))
    distance = 0.006 * max(span, 1.0) if scale is BUDGET else 0.0
    for number, (curve, cells) in enumerate(curves.items()):
        label, colour, marker, dashes = looks[curve]
        shown = [cell for cell in cells if place(cell) > 0]
        factor = 2 ** (distance * (number - (len(curves) - 1) / 2))
        x, y = [place(cell) * factor for cell in shown], [cell.accuracy.value for cell in shown]
        low, high = [cell.accuracy.low for cell in shown], [cell.accuracy.high for cell in shown]
        axes.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.45, zorder=3)
        axes.plot(
            x, y, color=colour, marker=marker, markersize=5.5, linewidth=1.6, markeredgecolor="white",
            markeredgewidth=0.8, linestyle=(0, dashes) if dashes else "-", label=label, zorder=5, clip_on=False,
        )  # fmt: skip
    set_log2_axis(axes, scale.ticks(places or [1.0]), scale.label)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
