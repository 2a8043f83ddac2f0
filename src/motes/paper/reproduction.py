"""Measure the paper's table 1 or figure 2 again: plan the evaluations, and put their numbers beside the paper's.

Each row, task, method and budget is an evaluation in a directory of its own. So an interrupted call can be resumed,
table 1 and figure 2 share evaluations, and rows can be measured one at a time, or by several processes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from motes.errors import ConfigurationError, RunDirectoryError, UnknownNameError
from motes.lab.measure.cells import Cell
from motes.lab.measure.comparison import ends, points
from motes.lab.measure.formats import Section, code, csv_text, markdown, markdown_page
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import CONFIGURATION, RECORDS, Evaluation
from motes.lab.run.method_spec import method_from_spec
from motes.lab.run.provenance import Provenance, together
from motes.lab.run.records import RunRecord, read_records
from motes.lab.show.tables import provenance_table
from motes.methods.method import MethodTraits
from motes.paper.row import COLUMNS, SIZES, TASKS, Experiment, Point, Row, published, read_rows, require_known

EVERY = "all"
"""Stands for every row in `Reproduction.models`."""

TITLES: Mapping[Experiment, str] = {"table1": "Table 1", "figure2": "Figure 2"}
NOTE = (
    "Accuracy in percent. Ours: right answers over all runs, failed and ungraded ones included, with Wilson's 95 % "
    "interval. Difference: ours minus the paper's, in percentage points; the interval of the paper's number, which "
    "comes from the same problems, is unknown. Lines without a number of the paper's are additional measurements."
)
MEASURED = (
    "accuracy", "accuracy_low", "accuracy_high", "difference", "problems", "runs", "failed", "measured_with", "task",
)  # fmt: skip
"""Columns of the CSV file that are empty where nothing was measured."""
BY_EYE = "The paper's numbers are read off its figure by eye, to about a point."


@dataclass(frozen=True)
class Entry:
    """A number to be measured: a row's model with one method at one budget on one task. `point` is its place in the
    table or figure; the evaluation, in its directory, is of this method at this budget alone."""

    point: Point
    task: str
    evaluation: Evaluation
    directory: Path

    @property
    def budget(self) -> int:
        return self.evaluation.budgets[0]

    @cached_property
    def num_runs(self) -> int:
        return len(self.evaluation.problems()) * len(self.evaluation.seeds)

    @property
    def num_done(self) -> int:
        """Number of recorded runs that did not fail."""
        return sum(record.outcome != "failed" for record in self.records())

    def records(self, damages: Damages | None = None) -> list[RunRecord]:
        """The records of the entry's runs; `damages` counts records that cannot be read."""
        return read_records(self.directory / RECORDS, (damages or Damages()).of("records"))

    @property
    def name(self) -> str:
        return f"{self.point.row}, {COLUMNS[self.task]}, {self.point.label} at {self.budget}"

    def cell(self) -> Cell | None:
        """The results of the entry's runs, under the paper's name of the method; None while there are none."""
        records = self.records()
        return Cell.of(self.point.label, self.budget, None, records, self.num_runs) if records else None


@dataclass(frozen=True)
class Line:
    """A line of the table. For each task: `paper`, the paper's accuracy in percent, None if the paper gives none; and
    `ours`, our results, None if not measured."""

    point: Point
    paper: tuple[float | None, ...]
    ours: tuple[Cell | None, ...]


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One of the paper's experiments, measured again.

    Args:
        experiment: "table1" or "figure2".
        out: directory of all evaluations; recorded runs are not done again.
        models: the model for each row that is to be measured; `EVERY` stands for all rows that are not named.
        reward: the reward model; the rows say how it reads.
        tasks: for each benchmark to be measured, by our name for it, the spec of the task, see `motes.tasks.task`; by
            default the experiment's benchmarks, from the hub.
        limit: only the first so many problems of each task; None: all.
        seeds: everything is repeated with each.
        budget: the largest budget. Larger budgets are reduced to it in table 1, and left out in figure 2. Methods that
            refuse a reduced budget are left out, see `refused`. None: the rows' own budgets.
        rows: how each row is measured; by default as in the paper.

    Raises:
        ConfigurationError: a setting cannot work. Nothing was computed.
        RunDirectoryError: a directory below `out` is a link to another one.
    """

    experiment: Experiment
    out: Path
    models: Mapping[str, str]
    reward: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    seeds: tuple[int, ...] = (0,)
    budget: int | None = None
    rows: Mapping[str, Row] = field(default_factory=read_rows)

    def __post_init__(self) -> None:
        require_known((self.experiment,), TASKS, "experiment")
        if not self.tasks:
            object.__setattr__(self, "tasks", {name: name for name in TASKS[self.experiment]})
        require_known(self.tasks, TASKS[self.experiment], f"benchmark of {self.experiment}")
        require_known(self.models, (*self.rows, EVERY), "row")
        if self.budget is not None and self.budget < 1:
            raise ConfigurationError(f"the largest budget must be at least 1, not {self.budget}")
        if not self.measured:
            shown = ", ".join(row.name for row in self.rows.values() if self.experiment in row.wanted)
            raise ConfigurationError(f"no model for {self.experiment}: name one for a row, ROW=SPEC; rows are {shown}")
        if self.reward is None and (lacking := [row for row in self.measured if row.needs_reward(self.experiment)]):
            raise ConfigurationError(
                f"the reward model is missing: {', '.join(row.name for row in lacking)} need {lacking[0].reward}; name "
                f"its server, --reward http://HOST:PORT#{lacking[0].reward}"
            )
        for entry in self.entries:
            entry.evaluation.check(entry.directory)

    @property
    def columns(self) -> tuple[str, ...]:
        """The benchmarks, in the paper's order."""
        return tuple(name for name in TASKS[self.experiment] if name in self.tasks)

    @property
    def measured(self) -> list[Row]:
        """The rows that have a model, in the paper's order."""
        names = dict.fromkeys([*(point.row for point in published(self.experiment)), *self.rows])
        rows = [self.rows[name] for name in names if name in self.rows]
        return [row for row in rows if self.experiment in row.wanted and self._model(row)]

    def _model(self, row: Row) -> str:
        """The model for a row; "" if there is none."""
        return self.models.get(row.name, self.models.get(EVERY, ""))

    @cached_property
    def refused(self) -> list[str]:
        """The methods that are left out because the largest budget is too small for them, each with the reason."""
        return [
            f"{row.name}, {label}: {refusal}"
            for row in self.measured
            for label, method, budgets in row.wanted[self.experiment]
            for budget in self._budgets(budgets)
            if (refusal := _refusal(method, budget)) is not None
        ]

    @cached_property
    def entries(self) -> list[Entry]:
        """All numbers to be measured, row by row."""
        entries = [
            self._entry(row, task, label, method, budget)
            for row in self.measured
            for task in self.columns
            for label, method, budgets in row.wanted[self.experiment]
            for budget in self._budgets(budgets)
            if _refusal(method, budget) is None
        ]
        return list({(entry.point, entry.task): entry for entry in entries}.values())

    def _budgets(self, budgets: Iterable[int]) -> list[int]:
        """The budgets to measure, see the argument `budget`."""
        if self.budget is None:
            return list(budgets)
        if self.experiment == "table1":
            return sorted({min(self.budget, budget) for budget in budgets})
        return [budget for budget in budgets if budget <= self.budget]

    def _entry(self, row: Row, task: str, label: str, method: str, budget: int) -> Entry:
        configured = method_from_spec(method, budget)
        needs_reward = MethodTraits(configured).needs_reward
        evaluation = Evaluation(
            task=self.tasks[task],
            limit=self.limit,
            methods=(method,),
            budgets=(configured.budget,),
            seeds=self.seeds,
            lm=self._model(row),
            reward=row.reading(self.reward) if self.reward is not None and needs_reward else None,
            sampling=row.sampling,
            prompt=row.prompt,
        )
        point = Point(row.name, label, None if self.experiment == "table1" else configured.budget)
        folder = re.sub(r"[^\w.=-]+", "_", f"{method}-{configured.budget}")
        return Entry(point, task, evaluation, self._directory(row.name, task, folder))

    def _directory(self, *folders: str) -> Path:
        """A directory below `out`. As `out` may come from others, links, which could lead out of it, are refused."""
        path = self.out
        for folder in folders:
            path /= folder
            if path.is_symlink():
                raise RunDirectoryError(f"{path} is a link to another directory: put a copy in its place")
        return path

    def lines(self) -> list[Line]:
        """The paper's table in its order, with our numbers beside it. Includes rows that are not measured."""
        theirs = published(self.experiment)
        ours = {(entry.point, entry.task): entry.cell() for entry in self.entries}
        all_points = dict.fromkeys((*theirs, *(entry.point for entry in self.entries)))
        lines = []
        for name in dict.fromkeys(point.row for point in all_points):
            wanted = self.rows[name].wanted.get(self.experiment, ()) if name in self.rows else ()
            order = {label: i for i, (label, *_) in enumerate(wanted)}
            in_row = [point for point in all_points if point.row == name]
            for point in sorted(in_row, key=lambda point: (order.get(point.label, len(order)), point.budget or 0)):
                numbers = dict(zip(TASKS[self.experiment], theirs.get(point, ()), strict=False))
                paper = tuple(numbers.get(task) for task in self.columns)
                lines.append(Line(point, paper, tuple(ours.get((point, task)) for task in self.columns)))
        return lines

    def section(self) -> Section:
        """All lines as a table."""
        header = ["model", "method"] + ["budget"] * (self.experiment == "figure2")
        for task in self.columns:
            header += [f"{COLUMNS[task]}: paper", "ours (95 % interval)", "difference"]
        rows = []
        for line in self.lines():
            name = [line.point.row, line.point.label]
            if line.point.budget is not None:
                name.append(str(line.point.budget))
            numbers = [_format_numbers(paper, cell) for paper, cell in zip(line.paper, line.ours, strict=True)]
            rows.append([*name, *(text for three in numbers for text in three)])
        note = f"{NOTE} {BY_EYE}" if self.experiment == "figure2" else NOTE
        return Section("", header, rows, note)

    def warnings(self) -> list[str]:
        """Differences from the paper's experiment, and missing runs: a reader needs to know them before the numbers."""
        warnings = []
        replaced: dict[str, list[str]] = {}
        for row in self.measured:
            if not _names_model(model := self._model(row), row.model):
                replaced.setdefault(model, []).append(row.name)
        warnings += [f"{code(model)} in the place of {', '.join(names)}" for model, names in replaced.items()]
        rewards = {row.reward: None for row in self.measured if row.reward and row.needs_reward(self.experiment)}
        reward = self.reward or ""
        warnings += [f"{code(reward)} in the place of {name}" for name in rewards if not _names_model(reward, name)]
        for task in self.columns:
            problems = next(len(entry.evaluation.problems()) for entry in self.entries if entry.task == task)
            name, spec = COLUMNS[task], self.tasks[task]
            source = spec.partition("?")[0]
            if source != task and not source.endswith(".jsonl"):
                warnings.append(f"{problems} problems of {code(spec)} in the place of {name}")
            elif problems != SIZES[task]:
                warnings.append(f"{problems} problems of {name}, which has {SIZES[task]}")
        largest = max(max(wanted.budgets) for row in self.measured for wanted in row.wanted[self.experiment])
        if self.budget is not None and self.budget < largest:
            warnings.append(f"Budgets up to {self.budget}, where the paper's go up to {largest}")
        warnings += [f"Left out: {refusal}" for refusal in self.refused]
        missing = sum(entry.num_runs - entry.num_done for entry in self.entries)
        if missing:
            warnings.append(f"Unfinished: {missing} runs are missing or failed; the same command does them")
        return warnings

    def damages(self) -> Damages:
        """Records that cannot be read; their runs are done again."""
        damages = Damages()
        for entry in self.entries:
            entry.records(damages)
        return damages

    def markdown(self) -> str:
        """The table as a page, with the warnings and the models."""
        title = f"{TITLES[self.experiment]} of arXiv 2502.01618, measured again"
        warnings = [*map(markdown, self.damages().lines()), *self.warnings()]
        lines = [
            markdown_page(title, [], warnings, [self.section()]),
            f"Measured with (seed {', '.join(map(str, self.seeds))}):",
            "",
        ]
        for row in self.measured:
            prompt = f", prompt {markdown(row.prompt.name)}" if row.prompt else ""
            lines.append(f"- {markdown(row.name)}: {code(self._model(row))}{prompt}")
        if any(row.needs_reward(self.experiment) for row in self.measured):
            lines.append(f"- reward model: {code(self.reward or '')}")
        if provenance := self.provenance():
            lines += ["", *provenance_table(provenance).markdown()[:-1]]
        return "\n".join(lines) + "\n"

    def provenance(self) -> Provenance:
        """The provenance of all numbers, as far as it can be read."""
        directories = (entry.directory for entry in self.entries if (entry.directory / CONFIGURATION).exists())
        return together([Provenance.read(directory, lambda damage: None) for directory in directories])

    def csv(self) -> str:
        """A row for each line and task. Numbers are shares; the paper's are in percent, as in the paper."""
        models = {row.name: self._model(row) for row in self.measured}
        rows: list[dict[str, Any]] = []
        for line in self.lines():
            for task, paper, cell in zip(self.columns, line.paper, line.ours, strict=True):
                row: dict[str, Any] = {"model": line.point.row, "method": line.point.label}
                row |= {
                    "budget": line.point.budget,
                    "benchmark": task,
                    "paper_percent": paper,
                    **dict.fromkeys(MEASURED),
                }
                if cell is not None:
                    difference = None if paper is None else round(cell.accuracy.value - paper / 100, 6)
                    row |= {"budget": cell.budget, **ends(cell.accuracy, "accuracy"), "difference": difference}
                    row |= {"problems": cell.problems, "runs": cell.runs, "failed": cell.outcomes["failed"]}
                    row |= {"measured_with": models[line.point.row], "task": self.tasks[task]}
                rows.append(row)
        return csv_text(rows)


def _refusal(method: str, budget: int) -> str | None:
    """The reason why a method refuses a budget; None if it does not."""
    try:
        method_from_spec(method, budget)
    except UnknownNameError:
        raise
    except ConfigurationError as refusal:
        return str(refusal)
    return None


def _names_model(spec: str, model: str) -> bool:
    """Whether a spec contains the model's name, whoever published the copy."""
    return model.rpartition("/")[2].casefold() in spec.casefold()


def _format_numbers(paper: float | None, cell: Cell | None) -> tuple[str, str, str]:
    """The paper's number, ours, and the difference, as texts for the table."""
    theirs = "" if paper is None else f"{paper:.1f}"
    if cell is None:
        return theirs, "", ""
    share = cell.accuracy
    ends = f"{100 * share.low:.1f} – {100 * share.high:.1f}" if share.is_known else "–"
    ours = f"{100 * share.value:.1f} ({ends})"
    return theirs, ours, "" if paper is None else points(share.value - paper / 100)
