"""From records to numbers: one cell per method and budget, with how sure it is and what it cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from motes import files
from motes.errors import RunDirectoryError
from motes.lab.comparison import (
    CellName,
    Difference,
    PairedRuns,
    Rate,
    chief_of,
    differences,
    majority_share,
    pass_at,
    rates,
)
from motes.lab.damage import Damages
from motes.lab.evaluation import RECORDS, foreign_to, read_configuration, read_problem_ids
from motes.lab.flops import Sizes
from motes.lab.method_spec import draws_independently
from motes.lab.prices import Prices
from motes.lab.provenance import Provenance, read_calls
from motes.lab.records import OUTCOMES, Outcome, RunRecord, read_records
from motes.lab.reliability import Predictions, Quality, StepQuality
from motes.lab.statistics import Interval, share_interval
from motes.lab.tables import csv_text, markdown, sections
from motes.text import counted
from motes.types import Usage

UNKNOWN = Sizes()
PAGE = "report.html"
CSV_METADATA = "csv-metadata.json"
"""What stands beside CSV files and says what they are, by that name (W3C, "Model for Tabular Data and Metadata")."""


@dataclass(frozen=True)
class Seconds:
    """How long runs took, from the start of each to its answer.

    Attributes:
        mean, median: of all runs; `high`: the 95th percentile.
        concurrency: runs that shared the models at most: 1, if each had them to itself; None where records do not tell.
    """

    mean: float
    median: float
    high: float
    concurrency: int | None

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Seconds:
        """Of one run or more; of none: NaN."""
        seconds = [record.seconds for record in records]
        told = [record.concurrency for record in records if record.concurrency is not None]
        if not seconds:
            return cls(math.nan, math.nan, math.nan, None)
        median, high = np.quantile(seconds, (0.5, 0.95)).tolist()
        return cls(sum(seconds) / len(seconds), median, high, max(told) if len(told) == len(seconds) else None)


@dataclass(frozen=True)
class Cell:
    """What the runs of one method at one budget (and, where given, one level) came to.

    Attributes:
        problems: with at least one run; `runs`: recorded; `missing`: asked for and not recorded.
        outcomes: number of runs by outcome.
        accuracy: right answers over all recorded runs, failed ones included.
        oracle: runs in which any trajectory is right, over all recorded ones. majority: those in which the most
            frequent answer is, of equally frequent ones the share that is right; NaN where records are too old to tell.
        tokens: (generated, prefill, reward) that a run needs by itself, mean. `cached`: (prefill, reward) that it is
            spared by what it has computed before, mean; `computed`: all that was really computed for it, mean;
            `failed`: all of attempts that failed or were cancelled, mean.
        flops: (language model, reward model) per run, mean; None where a model's size is unknown.
        seconds: of its runs.
        money: per run, mean, at the prices given; None without any.
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
    majority: Interval
    tokens: tuple[float, float, float]
    cached: tuple[float, float]
    computed: float
    failed: float
    flops: tuple[float | None, float | None]
    seconds: Seconds
    money: float | None = None

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
        prices: Prices | None = None,
    ) -> Cell:
        shares = [(record.problem_id, majority_share(record)) for record in records]
        majority = [(problem, share) for problem, share in shares if share is not None]
        usage = sum((record.usage for record in records), Usage())
        n = max(1, len(records))
        lm, reward = sizes.flops(usage)
        return cls(
            method=method,
            budget=budget,
            level=level,
            problems=len({record.problem_id for record in records}),
            runs=len(records),
            missing=max(0, expected - len(records)),
            outcomes={outcome: sum(record.outcome == outcome for record in records) for outcome in OUTCOMES},
            accuracy=share_interval((record.problem_id, record.outcome == "correct") for record in records),
            oracle=share_interval((record.problem_id, record.oracle) for record in records),
            majority=share_interval(majority if len(majority) == len(records) else ()),
            tokens=(usage.generated_tokens / n, usage.prefill_tokens / n, usage.reward_tokens / n),
            cached=(usage.prefill_tokens_cached / n, usage.reward_tokens_cached / n),
            computed=usage.computed_tokens / n,
            failed=usage.failed_tokens / n,
            flops=(None if lm is None else lm / n, None if reward is None else reward / n),
            seconds=Seconds.of(records),
            money=None if prices is None else prices.of(usage) / n,
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
            "majority": round(self.majority.value, 6),
            "generated_tokens": round(self.tokens[0], 2),
            "prefill_tokens": round(self.tokens[1], 2),
            "reward_tokens": round(self.tokens[2], 2),
            "total_tokens": round(self.total_tokens, 2),
            "prefill_tokens_cached": round(self.cached[0], 2),
            "reward_tokens_cached": round(self.cached[1], 2),
            "computed_tokens": round(self.computed, 2),
            "failed_tokens": round(self.failed, 2),
            "lm_flops": _scientific(self.flops[0]),
            "reward_flops": _scientific(self.flops[1]),
            "total_flops": _scientific(self.total_flops),
            "seconds": round(self.seconds.mean, 4),
            "seconds_median": round(self.seconds.median, 4),
            "seconds_95": round(self.seconds.high, 4),
            "runs_at_once": self.seconds.concurrency,
            **({} if self.money is None else {"money": _scientific(self.money)}),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation's numbers.

    Attributes:
        configuration: of the evaluation.
        cells: over all levels, by method in the order asked for, then budget; `levels`: the same for each level.
        differences: of each method to the chief one, at each budget; `rates`: scaling rates against it.
        missing: runs that the evaluation asks for and has no record of.
        prices: that cells' money was counted at. sizes: of the models, that FLOPs were counted with.
        runs: the records of each cell.
        provenance: what they were made with.
        damages: what could not be read.
    """

    configuration: dict[str, Any]
    cells: tuple[Cell, ...]
    levels: tuple[Cell, ...]
    differences: tuple[Difference, ...] = ()
    rates: tuple[Rate, ...] = ()
    missing: int = 0
    prices: Prices | None = None
    runs: Mapping[CellName, Sequence[RunRecord]] = field(default_factory=dict, repr=False)
    sizes: Sizes = UNKNOWN
    damages: Damages = field(default_factory=Damages, repr=False)
    provenance: Provenance = field(default_factory=Provenance, repr=False)

    @classmethod
    def load(cls, directory: Path, prices: Prices | None = None) -> Report:
        """The report of what a directory holds so far. What cannot be read of it is told, see `warnings`.

        Raises:
            RunDirectoryError: it holds no evaluation, or no record yet, or its records cannot be read at all.
        """
        damages = Damages()
        configuration = read_configuration(directory, damages.of("configurations"))
        ids = read_problem_ids(directory, damages.of("lists of problems"))
        records = read_records(directory / RECORDS, damages.of("records"), foreign_to(configuration, ids))
        if not records:
            told = "".join(f" ({line})" for line in damages.lines())
            raise RunDirectoryError(f"{directory} holds no finished run yet{told}: run the evaluation first")
        sizes = Sizes.read(directory, damages.of("models' sizes"))
        calls = read_calls(directory, damages.of("provenance lines"))
        report = cls.of(records, configuration, sizes, prices)
        return dataclasses.replace(report, damages=damages, provenance=Provenance(configuration, tuple(calls)))

    @classmethod
    def of(
        cls,
        records: Sequence[RunRecord],
        configuration: dict[str, Any],
        sizes: Sizes = UNKNOWN,
        prices: Prices | None = None,
    ) -> Report:
        methods = list(configuration.get("methods", ()))
        order = {method: i for i, method in enumerate(methods)}
        runs: dict[CellName, list[RunRecord]] = {}
        for record in records:
            runs.setdefault((record.method, record.budget), []).append(record)
        names = sorted(runs, key=lambda name: (order.get(name[0], len(order)), name[0], name[1]))
        expected = configuration.get("num_problems", 0) * len(configuration.get("seeds", ()))
        levels = sorted({record.level for record in records if record.level is not None})
        paired = PairedRuns(records)
        measured = list(dict.fromkeys(method for method, _ in names))
        return cls(
            configuration,
            tuple(Cell.of(*name, None, runs[name], expected, sizes, prices) for name in names),
            tuple(
                Cell.of(*name, level, chosen, len(chosen), sizes, prices)
                for level in levels
                for name in names
                if (chosen := [record for record in runs[name] if record.level == level])
            ),
            tuple(differences(paired, measured)),
            tuple(rates(paired, measured)),
            max(0, configuration.get("num_runs", 0) - len(records)),
            prices,
            {name: runs[name] for name in names},
            sizes=sizes,
        )

    @cached_property
    def qualities(self) -> tuple[Quality, ...]:
        """How well scores and confidences predict what is right: of each cell whose records tell."""
        found = []
        for name, records in self.runs.items():
            for kind, of in (("score", Predictions.of_scores), ("confidence", Predictions.of_confidence)):
                if len(predictions := of(records)):
                    found.append(Quality.of(*name, kind, predictions))
        return tuple(found)

    @cached_property
    def step_qualities(self) -> tuple[StepQuality, ...]:
        """Of each cell with scores: how many steps answers have, how often they are right, and how well the reward
        model tells right partial answers from wrong ones."""
        found = (StepQuality.of(*name, draws_independently(name[0]), records) for name, records in self.runs.items())
        return tuple(quality for quality in found if quality is not None)

    @property
    def sampled(self) -> CellName:
        """The cell with the most independent samples a run; ("", 0) where there is none."""
        cells = [(spec, budget) for spec, budget in self.runs if budget > 1 and draws_independently(spec)]
        return max(cells, key=lambda cell: cell[1], default=("", 0))

    @cached_property
    def passes(self) -> dict[int, Interval]:
        """pass@k of that cell's samples, for k = 1, 2, 4, … and all of them; empty where records do not tell."""
        return pass_at(self.runs.get(self.sampled, ()))

    @property
    def has_own_costs(self) -> bool:
        """Whether every record tells what its run needs by itself."""
        return all(record.is_own_cost for records in self.runs.values() for record in records)

    @property
    def problems(self) -> int:
        return max((cell.problems for cell in self.cells), default=0)

    @property
    def title(self) -> str:
        return f"{self.configuration.get('task', '?')}, {counted(self.problems, 'problem')}"

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
        return [*self.damages.lines(), *self.provenance.warnings(), *self._cautions()]

    def _cautions(self) -> list[str]:
        """Those that are about the runs, in Markdown."""
        failed, ungraded = (sum(cell.outcomes[end] for cell in self.cells) for end in ("failed", "grader_timeout"))
        warnings = []
        if (asked := self.configuration.get("num_problems", self.problems)) < self.problems:
            warnings.append(
                f"records of {counted(self.problems, 'problem')} where the evaluation has {asked}: not all are its "
                "own, and more may be missing than are counted"
            )
        if failed:
            warnings.append(f"{failed} failed runs stand in the denominator: the same `motes eval` does them again")
        if ungraded:
            warnings.append(f"{ungraded} answers could not be graded and count as not right: `motes grade` tries again")
        if self.missing:
            warnings.append(f"unfinished, {self.missing} runs are missing: the same `motes eval` does them")
        return warnings

    def markdown(self) -> str:
        """The report as a Markdown page."""
        lines = [f"# {markdown(self.title)}", "", f"{markdown(self.models)}.", ""]
        texts = [*self.damages.lines(), *self.provenance.warnings()]
        for warning in [*map(markdown, texts), *self._cautions()]:
            lines += [f"**{warning}.**", ""]
        return "\n".join([*lines, *(line for section in sections(self) for line in section.markdown())])

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
        if self.step_qualities:
            tables["steps.csv"] = csv_text([quality.row() for quality in self.step_qualities])
        if self.qualities:
            tables["predictions.csv"] = csv_text([quality.row() for quality in self.qualities])
        if self.provenance:
            tables[CSV_METADATA] = self.provenance.csv_metadata(self.title, [n for n in tables if n.endswith(".csv")])
        return tables


def _scientific(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def write_report(directory: Path, report: Report, *, plots: bool = True, viewer: int | None = None) -> list[Path]:
    """Write the tables (`Report.tables`), the page `report.html` and, if asked for, the plots, beside the records. All
    of them say what the runs were made with.

    Args:
        viewer: the number of problems whose runs the page holds, see `motes.lab.page.html`.

    Returns:
        the files written.

    Raises:
        RunDirectoryError: the directory cannot be written.
        MissingExtraError: plots were asked for, and matplotlib is not installed. The tables and the page are written.
    """
    from motes.lab.page import html

    paths = []
    try:
        for name, text in report.tables().items():
            paths.append(directory / name)
            files.write_text(paths[-1], text)
        paths.append(directory / PAGE)
        files.write_text(paths[-1], html(report, directory, viewer=viewer))
        if plots:
            from motes.lab.plot import draw

            paths += draw(report, directory)
    except OSError as error:
        raise RunDirectoryError(f"the report cannot be written to {directory}: {error.strerror}") from error
    return paths
