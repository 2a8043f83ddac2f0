"""From records to numbers: one cell per method and budget, with how sure it is and what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motes.errors import RunDirectoryError
from motes.lab.evaluation import RECORDS, read_configuration
from motes.lab.records import OUTCOMES, Outcome, RunRecord, read_records
from motes.lab.statistics import Interval, proportion_interval
from motes.types import Usage

NOTE = (
    "Accuracy: right answers over all runs, failed ones included, with Wilson's 95 % interval at the effective sample "
    "size of the problems (runs of one problem with several seeds are not independent). Oracle: runs in which any "
    "trajectory is right (pass@N). Tokens: computed per problem, mean, without what caches spared; a prompt that runs "
    "share is computed once, for the first of them. Seconds: mean from a run's start to its answer while others shared "
    "the models."
)


@dataclass(frozen=True)
class Cell:
    """What the runs of one method at one budget (and, where given, one level) came to.

    Attributes:
        problems: with at least one run; `runs`: recorded; `missing`: asked for and not recorded.
        outcomes: number of runs by outcome.
        accuracy: right answers over all recorded runs, failed ones included.
        oracle: runs in which any trajectory is right, over all recorded ones.
        tokens: (generated, prefill, reward) computed per run, mean. `cached`: (prefill, reward) spared, mean.
        seconds: per run, mean.
    """

    method: str
    budget: int
    level: int | None
    problems: int
    runs: int
    missing: int
    outcomes: dict[Outcome, int]
    accuracy: Interval
    oracle: Interval
    tokens: tuple[float, float, float]
    cached: tuple[float, float]
    seconds: float

    @property
    def total_tokens(self) -> float:
        return sum(self.tokens)

    @classmethod
    def of(cls, method: str, budget: int, level: int | None, records: Sequence[RunRecord], expected: int) -> Cell:
        right: dict[str, list[bool]] = {}
        reachable: dict[str, list[bool]] = {}
        for record in records:
            right.setdefault(record.problem_id, []).append(record.outcome == "correct")
            reachable.setdefault(record.problem_id, []).append(record.oracle)
        usage = sum((record.usage for record in records), Usage())
        n = max(1, len(records))
        return cls(
            method=method,
            budget=budget,
            level=level,
            problems=len(right),
            runs=len(records),
            missing=max(0, expected - len(records)),
            outcomes={outcome: sum(record.outcome == outcome for record in records) for outcome in OUTCOMES},
            accuracy=proportion_interval(right),
            oracle=proportion_interval(reachable),
            tokens=(usage.generated_tokens / n, usage.prefill_tokens / n, usage.reward_tokens / n),
            cached=(usage.prefill_tokens_cached / n, usage.reward_tokens_cached / n),
            seconds=sum(record.seconds for record in records) / n,
        )

    def row(self) -> dict[str, Any]:
        """As a flat row of the CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            "level": "all" if self.level is None else self.level,
            "problems": self.problems,
            "runs": self.runs,
            "missing": self.missing,
            **{str(outcome): count for outcome, count in self.outcomes.items()},
            "accuracy": round(self.accuracy.value, 6),
            "accuracy_low": round(self.accuracy.low, 6),
            "accuracy_high": round(self.accuracy.high, 6),
            "oracle": round(self.oracle.value, 6),
            "oracle_low": round(self.oracle.low, 6),
            "oracle_high": round(self.oracle.high, 6),
            "generated_tokens": round(self.tokens[0], 2),
            "prefill_tokens": round(self.tokens[1], 2),
            "reward_tokens": round(self.tokens[2], 2),
            "total_tokens": round(self.total_tokens, 2),
            "prefill_tokens_cached": round(self.cached[0], 2),
            "reward_tokens_cached": round(self.cached[1], 2),
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation's numbers.

    Attributes:
        configuration: of the evaluation.
        cells: over all levels, by method in the order asked for, then budget; `levels`: the same for each level.
        missing: runs that the evaluation asks for and has no record of.
    """

    configuration: dict[str, Any]
    cells: tuple[Cell, ...]
    levels: tuple[Cell, ...]
    missing: int = 0

    @classmethod
    def load(cls, directory: Path) -> Report:
        """The report of what a directory holds so far.

        Raises:
            RunDirectoryError: it holds no evaluation, or no record yet, or is damaged.
        """
        configuration = read_configuration(directory)
        records = read_records(directory / RECORDS)
        if not records:
            raise RunDirectoryError(f"{directory} holds no finished run yet: run the evaluation first")
        return cls.of(records, configuration)

    @classmethod
    def of(cls, records: Sequence[RunRecord], configuration: dict[str, Any]) -> Report:
        methods = list(configuration.get("methods", ()))
        order = {method: i for i, method in enumerate(methods)}
        runs: dict[tuple[str, int], list[RunRecord]] = {}
        for record in records:
            runs.setdefault((record.method, record.budget), []).append(record)
        names = sorted(runs, key=lambda name: (order.get(name[0], len(order)), name[0], name[1]))
        expected = configuration.get("num_problems", 0) * len(configuration.get("seeds", ()))
        levels = sorted({record.level for record in records if record.level is not None})
        return cls(
            configuration,
            tuple(Cell.of(*name, None, runs[name], expected) for name in names),
            tuple(
                Cell.of(*name, level, chosen, len(chosen))
                for level in levels
                for name in names
                if (chosen := [record for record in runs[name] if record.level == level])
            ),
            max(0, configuration.get("num_runs", 0) - len(records)),
        )

    @property
    def problems(self) -> int:
        return max((cell.problems for cell in self.cells), default=0)

    @property
    def title(self) -> str:
        return f"{self.configuration.get('task', '?')}, {self.problems} problems"

    @property
    def models(self) -> str:
        reward = self.configuration.get("reward")
        return f"language model {self.configuration.get('lm')}" + (f", reward model {reward}" if reward else "")

    def warnings(self) -> list[str]:
        """What a reader must know before trusting the numbers."""
        failed = sum(cell.outcomes["failed"] for cell in self.cells)
        warnings = []
        if failed:
            warnings.append(f"{failed} failed runs stand in the denominator: the same `motes eval` does them again")
        if self.missing:
            warnings.append(f"unfinished, {self.missing} runs are missing: the same `motes eval` does them")
        return warnings

    def markdown(self) -> str:
        """The report as a Markdown page."""
        lines = [f"# {self.title}", "", f"{self.models}.", ""]
        lines += [f"**{warning}.**" for warning in self.warnings()]
        lines += _markdown_table(self.cells)
        if self.levels:
            lines += ["", "## Accuracy by level", "", *self._levels_table()]
        return "\n".join([*lines, "", NOTE, ""])

    def _levels_table(self) -> list[str]:
        levels = sorted({cell.level for cell in self.levels if cell.level is not None})
        value = {(cell.method, cell.budget, cell.level): cell.accuracy.value for cell in self.levels}
        rows = []
        for cell in self.cells:
            shares = [value.get((cell.method, cell.budget, level), float("nan")) for level in levels]
            rows.append([cell.method, str(cell.budget), *map(percent, shares)])
        return _rows(["method", "budget", *(f"level {level}" for level in levels)], rows)

    def csv(self) -> str:
        """Every cell, first over all levels, then by level."""
        text = io.StringIO()
        rows = [cell.row() for cell in (*self.cells, *self.levels)]
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


COLUMNS = ("method", "budget", "accuracy", "95 % interval", "oracle", "generated", "prefill", "reward", "seconds")


def table_row(cell: Cell) -> list[str]:
    """The cell under `COLUMNS`."""
    return [
        cell.method,
        str(cell.budget),
        percent(cell.accuracy.value),
        f"{percent(cell.accuracy.low)} – {percent(cell.accuracy.high)}",
        percent(cell.oracle.value),
        *(f"{count:,.0f}" for count in cell.tokens),
        f"{cell.seconds:.2f}",
    ]


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def _markdown_table(cells: Iterable[Cell]) -> list[str]:
    return _rows(COLUMNS, [table_row(cell) for cell in cells])


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(header)), line(" | ".join(["---"] + ["---:"] * (len(header) - 1)))] + [
        line(" | ".join(row)) for row in rows
    ]


def write_report(directory: Path, report: Report, *, plots: bool = True) -> list[Path]:
    """Write `report.md`, `report.csv` and, if asked for, the plots, beside the records.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: plots were asked for, and matplotlib is not installed. The tables are written.
    """
    paths = [directory / "report.md", directory / "report.csv"]
    try:
        for path, text in zip(paths, (report.markdown(), report.csv()), strict=True):
            path.write_text(text, encoding="utf-8")
        if plots:
            from motes.lab.plot import draw

            paths += draw(report, directory)
    except OSError as error:
        raise RunDirectoryError(f"the report cannot be written to {directory}: {error.strerror}") from error
    return paths
