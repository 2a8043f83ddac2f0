"""A report: the numbers of an evaluation, with a cell for each method and budget, and its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from motes.errors import RunDirectoryError
from motes.lab.measure.cells import UNKNOWN, Cell
from motes.lab.measure.comparison import CellName, Difference, PairedRuns, Rate, chief_of, differences, pass_at, rates
from motes.lab.measure.formats import Section, code, csv_text, markdown, markdown_page
from motes.lab.measure.reliability import Predictions, Quality, StepQuality
from motes.lab.measure.statistics import Interval
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import RECORDS, foreign_to, read_configuration, read_problem_ids
from motes.lab.run.flops import Sizes
from motes.lab.run.method_spec import draws_independently
from motes.lab.run.prices import Prices
from motes.lab.run.provenance import CSV_METADATA, ROLES, Provenance, read_calls
from motes.lab.run.records import RunRecord, read_records
from motes.lab.show import tables
from motes.text import counted

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """The numbers of an evaluation, computed from its configuration and records.

    Attributes:
        runs: the records of each cell, in the order of the configuration's methods, then by budget.
        damages: lines and files that could not be read.
    """

    configuration: dict[str, Any]
    runs: Mapping[CellName, Sequence[RunRecord]] = field(repr=False)
    sizes: Sizes = UNKNOWN
    prices: Prices | None = None
    damages: Damages = field(default_factory=Damages, repr=False)
    provenance: Provenance = field(default_factory=Provenance, repr=False)

    @classmethod
    def load(cls, directory: Path, prices: Prices | None = None) -> Report:
        """The report of the runs that a directory holds so far. `warnings` says which parts cannot be read.

        Raises:
            RunDirectoryError: it holds no evaluation, or no record yet, or its records cannot be read at all.
        """
        damages = Damages()
        configuration = read_configuration(directory, damages.of("configurations"))
        ids = read_problem_ids(directory, damages.of("lists of problems"))
        records = read_records(directory / RECORDS, damages.of("records"), foreign_to(configuration, ids))
        if not records:
            reasons = "".join(f" ({line})" for line in damages.lines())
            raise RunDirectoryError(f"{directory} holds no finished run yet{reasons}: run the evaluation first")
        report = cls.of(records, configuration, Sizes.read(directory, damages.of("models' sizes")), prices)
        calls = read_calls(directory, damages.of("provenance lines"))
        return dataclasses.replace(report, damages=damages, provenance=Provenance(configuration, tuple(calls)))

    @classmethod
    def of(
        cls,
        records: Sequence[RunRecord],
        configuration: dict[str, Any],
        sizes: Sizes = UNKNOWN,
        prices: Prices | None = None,
    ) -> Report:
        order = {method: i for i, method in enumerate(configuration.get("methods", ()))}
        runs: dict[CellName, list[RunRecord]] = {}
        for record in records:
            runs.setdefault((record.method, record.budget), []).append(record)
        names = sorted(runs, key=lambda name: (order.get(name[0], len(order)), name[0], name[1]))
        return cls(configuration, {name: runs[name] for name in names}, sizes, prices)

    @cached_property
    def records(self) -> tuple[RunRecord, ...]:
        """All records, cell by cell."""
        return tuple(record for records in self.runs.values() for record in records)

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.runs))

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({record.seed for record in self.records})

    @cached_property
    def problem_ids(self) -> frozenset[str]:
        return frozenset(record.problem_id for record in self.records)

    @property
    def missing(self) -> int:
        """Number of runs that the evaluation has no record of yet."""
        planned: int = self.configuration.get("num_runs", 0)
        return max(0, planned - len(self.records))

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The results of each cell, over all levels."""
        expected = self.configuration.get("num_problems", 0) * len(self.configuration.get("seeds", ()))
        return tuple(Cell.of(*name, None, runs, expected, self.sizes, self.prices) for name, runs in self.runs.items())

    @cached_property
    def levels(self) -> tuple[Cell, ...]:
        """The results of each cell at each level, level by level."""
        levels = sorted({record.level for record in self.records if record.level is not None})
        return tuple(
            Cell.of(*name, level, chosen, len(chosen), self.sizes, self.prices)
            for level in levels
            for name, runs in self.runs.items()
            if (chosen := [record for record in runs if record.level == level])
        )

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The difference of each method to the chief one, at each budget."""
        return tuple(differences(PairedRuns(self.records), self.methods))

    @cached_property
    def rates(self) -> tuple[Rate, ...]:
        """The scaling rate of each method against the chief one."""
        return tuple(rates(PairedRuns(self.records), self.methods))

    @cached_property
    def qualities(self) -> tuple[Quality, ...]:
        """How well scores and confidences predict which answers are right, for each cell with graded predictions."""
        qualities = []
        for name, records in self.runs.items():
            for kind, of in (("score", Predictions.of_scores), ("confidence", Predictions.of_confidence)):
                if len(predictions := of(records)):
                    qualities.append(Quality(*name, kind, predictions))
        return tuple(qualities)

    @cached_property
    def step_qualities(self) -> tuple[StepQuality, ...]:
        """For each cell with scores: how many steps answers have, how often they are right, and how well the reward
        model separates right partial answers from wrong ones."""
        cells = (StepQuality.of(*name, draws_independently(name[0]), records) for name, records in self.runs.items())
        return tuple(quality for quality in cells if quality is not None)

    @property
    def sampled(self) -> CellName:
        """The cell with the most independent samples in a run; ("", 0) if there is none."""
        cells = [(spec, budget) for spec, budget in self.runs if budget > 1 and draws_independently(spec)]
        return max(cells, key=lambda cell: cell[1], default=("", 0))

    @cached_property
    def passes(self) -> dict[int, Interval]:
        """pass@k of the cell `sampled`, for k = 1, 2, 4, … and all samples; empty if records are too old to tell."""
        return pass_at(self.runs.get(self.sampled, ()))

    @property
    def has_own_costs(self) -> bool:
        """Whether every record has the cost of its run by itself."""
        return all(record.is_own_cost for record in self.records)

    @property
    def problems(self) -> int:
        return max((cell.problems for cell in self.cells), default=0)

    @property
    def title(self) -> str:
        return f"{self.configuration.get('task', '?')}, {counted(self.problems, 'problem')}"

    @property
    def models(self) -> str:
        return ", ".join(f"{role} {name}" for key, role in ROLES.items() if (name := self.configuration.get(key)))

    @property
    def chief(self) -> str:
        """The method with which the others are compared."""
        return chief_of(self.methods)

    def warnings(self) -> list[str]:
        """Warnings that a reader needs before trusting the numbers."""
        return [*self.damages.lines(), *self.provenance.warnings(), *self._cautions()]

    def _cautions(self) -> list[str]:
        """The warnings about the runs, in Markdown."""
        failed, ungraded = (sum(cell.outcomes[end] for cell in self.cells) for end in ("failed", "grader_timeout"))
        warnings = []
        if (configured := self.configuration.get("num_problems", self.problems)) < self.problems:
            warnings.append(
                f"records of {counted(self.problems, 'problem')} where the evaluation has {configured}: not all are "
                "its own, and more may be missing than are counted"
            )
        if failed:
            warnings.append(f"{failed} failed runs stand in the denominator: the same `motes eval` does them again")
        if ungraded:
            warnings.append(f"{ungraded} answers could not be graded and count as not right: `motes grade` tries again")
        if self.missing:
            warnings.append(f"unfinished, {self.missing} runs are missing: the same `motes eval` does them")
        return warnings

    def accuracy(self) -> Section:
        """Accuracy and cost of each cell, as a table."""
        return tables.accuracy_table(self.cells, len(self.seeds), prices=self.prices, has_own_costs=self.has_own_costs)

    def sections(self) -> Iterator[Section]:
        """All tables, the most important first."""
        yield self.accuracy()
        yield tables.outcomes_table(self.cells)
        yield tables.choices_table(self.cells)
        chief = code(self.chief)
        if self.differences:
            title = f"Differences to {chief}"
            yield tables.differences_table(self.differences, title, chief, "differences.csv", tables.ONE_DRAW_NOTE)
        if self.rates:
            yield tables.rates_table(self.rates, chief)
        if self.step_qualities:
            yield tables.steps_table(self.step_qualities)
        if self.passes:
            yield tables.passes_table(self.passes, self.sampled)
        if self.qualities:
            yield tables.predictions_table(self.qualities)
        if self.levels:
            yield tables.levels_table(self.cells, self.levels)
        if self.provenance:
            yield tables.provenance_table(self.provenance)

    def markdown(self) -> str:
        """The report as a Markdown page."""
        texts = [*self.damages.lines(), *self.provenance.warnings()]
        warnings = [*map(markdown, texts), *self._cautions()]
        return markdown_page(self.title, [f"{markdown(self.models)}.", ""], warnings, self.sections())

    def csv(self) -> str:
        """Every cell, first over all levels, then by level."""
        return csv_text([cell.row() for cell in (*self.cells, *self.levels)])

    def tables(self) -> dict[str, str]:
        """The texts of the files that a report consists of, by file name."""
        texts = {"report.md": self.markdown(), "report.csv": self.csv()}
        values: Mapping[str, Sequence[Difference | Rate | StepQuality | Quality]] = {
            "differences.csv": self.differences,
            "rates.csv": self.rates,
            "steps.csv": self.step_qualities,
            "predictions.csv": self.qualities,
        }
        texts |= {name: csv_text([each.row() for each in rows]) for name, rows in values.items() if rows}
        if self.provenance:
            texts[CSV_METADATA] = self.provenance.csv_metadata(self.title, [n for n in texts if n.endswith(".csv")])
        return texts
