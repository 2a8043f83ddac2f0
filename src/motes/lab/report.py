"""From records to numbers: one cell per method and budget, with how sure it is and what it cost."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from motes.errors import RunDirectoryError
from motes.lab.comparison import Difference, PairedRuns, Rate, chief_of, differences, rates
from motes.lab.evaluation import RECORDS, read_configuration
from motes.lab.flops import Sizes
from motes.lab.records import OUTCOMES, Outcome, RunRecord, read_records
from motes.lab.statistics import Interval, proportion_interval
from motes.types import Usage

UNKNOWN = Sizes()
NOTE = (
    "Accuracy: right answers over all runs, failed and ungraded ones included, with Wilson's 95 % interval at the "
    "effective sample size of the problems (runs of one problem with several seeds are not independent). Oracle: runs "
    "in which any trajectory is right (pass@N). Tokens: computed per problem, mean, without what caches spared; a "
    "prompt that runs share is computed once, for the first of them. FLOPs: 2 · parameters · computed tokens, of both "
    "models, per problem, mean; attention's own, which grow with the context, are left out (Kaplan et al. 2020, arXiv "
    "2001.08361). Seconds: mean from a run's start to its answer while others shared the models."
)
OUTCOMES_NOTE = (
    "Of each run one. An answer that the grader failed at or said nothing about in time, and a run that failed, are "
    "neither right nor wrong; accuracy is over all of them."
)
DIFFERENCES_NOTE = (
    "Accuracy less that of `{chief}` at the same budget, in percentage points, over the runs that both have. In "
    "brackets the 95 % interval of a bootstrap over problems. A method that draws one trajectory whatever the budget "
    "is compared at each."
)
RATES_NOTE = (
    "How many times the budget of `{chief}` another method needs to be as accurate: the budget at which its curve "
    "reaches the accuracy of `{chief}` at n, over n. Between measured budgets the running maximum of the curve is "
    "interpolated, linearly in log2(budget); nothing is extrapolated: ≤ and > stand before the smallest and the "
    "largest budget measured, over n. In brackets the 95 % interval of a bootstrap over problems."
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
        flops: (language model, reward model) per run, mean; None where a model's size is unknown.
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
    flops: tuple[float | None, float | None]
    seconds: float

    @property
    def total_tokens(self) -> float:
        return sum(self.tokens)

    @property
    def total_flops(self) -> float | None:
        """Of both models together; None where either is unknown."""
        lm, reward = self.flops
        return None if lm is None or reward is None else lm + reward

    @classmethod
    def of(
        cls,
        method: str,
        budget: int,
        level: int | None,
        records: Sequence[RunRecord],
        expected: int,
        sizes: Sizes = UNKNOWN,
    ) -> Cell:
        right: dict[str, list[bool]] = {}
        reachable: dict[str, list[bool]] = {}
        for record in records:
            right.setdefault(record.problem_id, []).append(record.outcome == "correct")
            reachable.setdefault(record.problem_id, []).append(record.oracle)
        usage = sum((record.usage for record in records), Usage())
        n = max(1, len(records))
        lm, reward = sizes.flops(usage)
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
            flops=(None if lm is None else lm / n, None if reward is None else reward / n),
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
            "lm_flops": _scientific(self.flops[0]),
            "reward_flops": _scientific(self.flops[1]),
            "total_flops": _scientific(self.total_flops),
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation's numbers.

    Attributes:
        configuration: of the evaluation.
        cells: over all levels, by method in the order asked for, then budget; `levels`: the same for each level.
        differences: of each method to the chief one, at each budget; `rates`: scaling rates against it.
        missing: runs that the evaluation asks for and has no record of.
    """

    configuration: dict[str, Any]
    cells: tuple[Cell, ...]
    levels: tuple[Cell, ...]
    differences: tuple[Difference, ...] = ()
    rates: tuple[Rate, ...] = ()
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
        return cls.of(records, configuration, Sizes.read(directory))

    @classmethod
    def of(cls, records: Sequence[RunRecord], configuration: dict[str, Any], sizes: Sizes = UNKNOWN) -> Report:
        methods = list(configuration.get("methods", ()))
        order = {method: i for i, method in enumerate(methods)}
        runs: dict[tuple[str, int], list[RunRecord]] = {}
        for record in records:
            runs.setdefault((record.method, record.budget), []).append(record)
        names = sorted(runs, key=lambda name: (order.get(name[0], len(order)), name[0], name[1]))
        expected = configuration.get("num_problems", 0) * len(configuration.get("seeds", ()))
        levels = sorted({record.level for record in records if record.level is not None})
        paired = PairedRuns(records)
        measured = list(dict.fromkeys(method for method, _ in names))
        return cls(
            configuration,
            tuple(Cell.of(*name, None, runs[name], expected, sizes) for name in names),
            tuple(
                Cell.of(*name, level, chosen, len(chosen), sizes)
                for level in levels
                for name in names
                if (chosen := [record for record in runs[name] if record.level == level])
            ),
            tuple(differences(paired, measured)),
            tuple(rates(paired, measured)),
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
        roles = {"lm": "language model", "reward": "reward model", "outcome_reward": "outcome reward model"}
        return ", ".join(f"{role} {name}" for key, role in roles.items() if (name := self.configuration.get(key)))

    @property
    def chief(self) -> str:
        """The method that the others are compared with."""
        return chief_of([cell.method for cell in self.cells])

    def warnings(self) -> list[str]:
        """What a reader must know before trusting the numbers."""
        failed, ungraded = (sum(cell.outcomes[end] for cell in self.cells) for end in ("failed", "grader_timeout"))
        warnings = []
        if failed:
            warnings.append(f"{failed} failed runs stand in the denominator: the same `motes eval` does them again")
        if ungraded:
            warnings.append(f"{ungraded} answers could not be graded and count as not right: `motes grade` tries again")
        if self.missing:
            warnings.append(f"unfinished, {self.missing} runs are missing: the same `motes eval` does them")
        return warnings

    def markdown(self) -> str:
        """The report as a Markdown page."""
        lines = [f"# {self.title}", "", f"{self.models}.", ""]
        for warning in self.warnings():
            lines += [f"**{warning}.**", ""]
        lines += _markdown_table(self.cells)
        lines += [
            "",
            "## Outcomes",
            "",
            *markdown_rows(OUTCOME_COLUMNS, map(outcomes_row, self.cells)),
            "",
            OUTCOMES_NOTE,
        ]
        if self.differences:
            note = DIFFERENCES_NOTE.format(chief=self.chief)
            lines += ["", f"## Differences to `{self.chief}`", "", *_grid(self.differences, "budget {}"), "", note]
        if self.rates:
            note = RATES_NOTE.format(chief=self.chief)
            lines += ["", "## Scaling rates", "", *_grid(self.rates, "n = {}"), "", note]
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
        return markdown_rows(["method", "budget", *(f"level {level}" for level in levels)], rows)

    def csv(self) -> str:
        """Every cell, first over all levels, then by level."""
        return csv_text([cell.row() for cell in (*self.cells, *self.levels)])

    def tables(self) -> dict[str, str]:
        """What is written for others to read, by file name."""
        tables = {"report.md": self.markdown(), "report.csv": self.csv()}
        if self.differences:
            tables["differences.csv"] = csv_text([difference.row() for difference in self.differences])
        if self.rates:
            tables["rates.csv"] = csv_text([rate.row() for rate in self.rates])
        return tables


COLUMNS = (
    "method", "budget", "accuracy", "95 % interval", "oracle", "generated", "prefill", "reward", "FLOPs", "seconds"
)  # fmt: skip


def table_row(cell: Cell) -> list[str]:
    """The cell under `COLUMNS`."""
    return [
        cell.method,
        str(cell.budget),
        percent(cell.accuracy.value),
        f"{percent(cell.accuracy.low)} – {percent(cell.accuracy.high)}",
        percent(cell.oracle.value),
        *(f"{count:,.0f}" for count in cell.tokens),
        flops(cell.total_flops),
        f"{cell.seconds:.2f}",
    ]


OUTCOME_COLUMNS = ("method", "budget", "runs", *(outcome.replace("_", " ") for outcome in OUTCOMES), "missing")


def outcomes_row(cell: Cell) -> list[str]:
    """The cell under `OUTCOME_COLUMNS`."""
    return [cell.method, *map(str, (cell.budget, cell.runs, *cell.outcomes.values(), cell.missing))]


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def flops(number: float | None) -> str:
    """Three digits and a unit: 21.4 G is 21.4e9 operations."""
    if number is None:
        return "–"
    power = min(max(int(math.log10(max(1.0, number)) // 3), 0), 6)
    return f"{number / 1000**power:.3g} {' kMGTPE'[power]}".rstrip()


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV file of at least one row, under the names of the first one's fields."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _scientific(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def _markdown_table(cells: Iterable[Cell]) -> list[str]:
    return markdown_rows(COLUMNS, [table_row(cell) for cell in cells])


def _grid(values: Sequence[Difference] | Sequence[Rate], heading: str) -> list[str]:
    """A row for each method, a column for each budget of the chief one."""
    written = {(value.method, value.budget): str(value) for value in values}
    methods, budgets = dict.fromkeys(value.method for value in values), sorted({value.budget for value in values})
    rows = [[method, *(written.get((method, budget), "") for budget in budgets)] for method in methods]
    return markdown_rows(["method", *map(heading.format, budgets)], rows)


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(header)), line(" | ".join(["---"] + ["---:"] * (len(header) - 1)))] + [
        line(" | ".join(row)) for row in rows
    ]


def write_report(directory: Path, report: Report, *, plots: bool = True) -> list[Path]:
    """Write `report.md`, `report.csv`, `differences.csv` and `rates.csv` where there are any, and, if asked for, the
    plots, beside the records.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: plots were asked for, and matplotlib is not installed. The tables are written.
    """
    paths = []
    try:
        for name, text in report.tables().items():
            paths.append(directory / name)
            paths[-1].write_text(text, encoding="utf-8")
        if plots:
            from motes.lab.plot import draw

            paths += draw(report, directory)
    except OSError as error:
        raise RunDirectoryError(f"the report cannot be written to {directory}: {error.strerror}") from error
    return paths
