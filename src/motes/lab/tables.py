"""A report in words: the tables of the terminal, of Markdown and of the page, each with what a reader must know."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from motes.lab.comparison import Difference, Rate
from motes.lab.records import OUTCOMES
from motes.lab.statistics import Interval
from motes.text import visible

if TYPE_CHECKING:
    from motes.lab.provenance import Provenance
    from motes.lab.reliability import StepQuality
    from motes.lab.report import Cell, Report

ACCURACY_NOTE = (
    "Accuracy: right answers over all runs, failed and ungraded ones included, with Wilson's 95 % interval at the "
    "effective sample size of the problems (runs of one problem with several seeds are not independent).{seeds} "
    "Tokens: what a run needs computed by itself, mean per problem: a prompt or a text that its particles share counts "
    "once, and what other runs have computed already counts in full. FLOPs: 2 · parameters · tokens, of both models, "
    "per problem, mean; attention's own, which grow with the context, are left out (Kaplan et al. 2020, arXiv "
    "2001.08361). Seconds: from a run's start to its answer, median and 95th percentile, {company}."
)
FAILED_NOTE = "Failed: tokens of attempts that broke off or were cancelled, in no other count, mean per problem."
OLD_COST_NOTE = (
    "Some of these records are from before a run's cost was its own: their tokens are those that were computed while "
    "other runs shared the caches."
)
MONEY_NOTE = "Money: per 1,000 problems, at {prices} for a million tokens."
CHOICE_NOTE = (
    "Of the answers that a run ended with: how often the one that the method selected is right, how often the most "
    "frequent one is, and how often any is (the oracle, pass@N of the method). Of equally frequent answers the share "
    "that is right counts: what drawing one of them comes to in the mean."
)
PASS_NOTE = (
    "Chance that at least one of k independent samples is right, from the {n} samples of {method}: the unbiased "
    "estimator 1 − C(n − c, k)/C(n, k) of Chen et al. (arXiv 2107.03374), c of the n samples being right, with "
    "Wilson's 95 % interval at the effective sample size of the problems. Samples that failed or are missing are not "
    "right."
)
QUALITY_NOTE = (
    "Of the reward model's final scores of all answers, and of the confidence of the answers given. AUROC: chance that "
    "a right answer has the larger value, over all pairs, and over pairs of answers to the same problem, which alone "
    "help to choose; in brackets Wilson's 95 % interval at the effective sample size, whose variance is that between "
    "problems (Obuchowski 1997); none where one problem alone tells. ECE: expected calibration error, ten "
    "bins. Answers that a method selected by score are not independent samples: only those of best-of-N and the like "
    "say how good the reward model is."
)
DECIDING_NOTE = (
    "Steps: mean number T of the answers that a run ended with. Right: the share P of them that is; of independent "
    "samples that is pass@1. AUROC: chance that of two partial answers to the same problem, a right and a wrong one, "
    "the right one has the larger score in its last step, pooled over problems, whatever their lengths, and over those "
    "of as many steps. Beta: how sharply a filter should take the scores of these, the slope of the log-odds of being "
    "right on those of the score. {labels} Of all steps that were ever drawn and scored, not of survivors alone; a "
    "step counts once, however many particles went on from it. In brackets 95 % intervals over problems, Student's of "
    "T and beta, Wilson's of shares. {reference}"
)
CHECKED_NOTE = "A partial answer is right where each of its steps is, by the task's step checker."
UNCHECKED_NOTE = (
    "The task has no step checker for these steps: by the final outcome, a partial answer counts as right where any "
    "answer that goes on from it is, and those that none goes on from are left out, so that of methods that select "
    "this is about survivors."
)
REFERENCE_NOTE = (
    "A method that selects goes on from steps that it chose, which are no independent samples: of what the models can "
    "do by themselves, only {names} says something."
)
NO_REFERENCE_NOTE = (
    "Methods that select go on from steps that they chose: what the models can do by themselves is known from "
    "independent samples alone, such as those of `bon`, which there are none of here."
)
UNTOLD_NOTE = "{count} of these runs have records from before partial answers were kept: they cannot tell."
OUTCOMES_NOTE = (
    "Of each run one. An answer that the grader failed at or said nothing about in time, and a run that failed, are "
    "neither right nor wrong; accuracy is over all of them."
)
DIFFERENCES_NOTE = (
    "Accuracy less that of {chief} at the same budget, in percentage points, over the problems that both have. In "
    "brackets the 95 % interval of Student's t over problems, with two more problems in its spread, on which each side "
    "is better (after Bonett and Price 2012): measured coverage 96 to 100 % with 25 problems.{together}"
)
ONE_DRAW_NOTE = " A method that draws one trajectory whatever the budget is compared at each."
RATES_NOTE = (
    "How many times the budget of {chief} another method needs to be as accurate: the budget at which its curve "
    "reaches the accuracy of {chief} at n, over n. Between measured budgets the running maximum of the curve is "
    "interpolated, linearly in log2(budget); nothing is extrapolated: ≤ and > stand before the smallest and the "
    "largest budget measured, over n. In brackets the 95 % interval of a bootstrap over problems.{together}"
)
TOGETHER_NOTE = (
    " The {count} intervals are simultaneous: in 95 % of such tables all of them hold the truth at once ({how}); "
    "`{file}` has each one's own beside it, which is narrower."
)
SEED_NOTE = (
    " One seed is all there is: each problem was run once by each method and budget. The intervals hold what other "
    "problems and other draws would change, and cannot tell the two apart."
)
SEEDS_NOTE = (
    " {count} seeds: the intervals are over problems and seeds; the runs of a problem count together, and vary between "
    "seeds as well."
)
PROVENANCE_NOTE = (
    "What the runs were made with, by `config.json` and `provenance.jsonl`, which have it in full. Digests are those "
    "of SHA-256, of which the first twelve digits are shown."
)
OLD_NOTE = "The runs are older than the record of what they were made with: only the configuration is known."

Rows = list[list[str]]


@dataclass(frozen=True)
class Section:
    """A table under a title. The first column names what the row is about, the others hold numbers, or `words`."""

    title: str
    header: Sequence[str]
    rows: Rows
    note: str = ""
    words: bool = False

    def markdown(self) -> list[str]:
        """Its lines in Markdown, which title and note are already: names in them are `code`."""
        heading = [f"## {self.title}", ""] if self.title else []
        table = markdown_rows(self.header, self.rows, words=self.words)
        return [*heading, *table, "", *([self.note, ""] if self.note else [])]


def sections(report: Report) -> Iterator[Section]:
    """All that a report has to say, the most important first."""
    yield accuracy(report)
    yield outcomes(report)
    header = ("method", "budget", "selected", "majority", "any")
    yield Section("Selected, majority, any", header, [_choice_row(cell) for cell in report.cells], CHOICE_NOTE)
    if report.differences:
        how = "the level of each from their correlation; Hothorn, Bretz and Westfall 2008"
        together = together_note(report.differences, how, "differences.csv")
        note = DIFFERENCES_NOTE.format(chief=code(report.chief), together=together) + ONE_DRAW_NOTE
        yield Section(f"Differences to {code(report.chief)}", *grid(report.differences, "budget {}"), note)
    if report.rates:
        how = "the level of each from the ranks of the resamples; Mandel and Betensky 2008"
        note = RATES_NOTE.format(chief=code(report.chief), together=together_note(report.rates, how, "rates.csv"))
        yield Section("Scaling rates", *grid(report.rates, "n = {}"), note)
    if report.step_qualities:
        yield _deciding(report.step_qualities)
    if report.passes:
        method, n = report.sampled
        rows = [[f"{k}", percent(value.value), between(value)] for k, value in report.passes.items()]
        yield Section("pass@k", ("k", "pass@k", "95 % interval"), rows, PASS_NOTE.format(n=n, method=code(method)))
    if report.qualities:
        columns = ("method", "budget", "of", "number", "mean", "right", "AUROC", "within a problem", "ECE", "Brier")
        yield Section("Scores and confidence as predictions", columns, _quality_rows(report), QUALITY_NOTE)
    if report.levels:
        yield _levels(report)
    if report.provenance:
        yield provenance(report.provenance)


def provenance(told: Provenance) -> Section:
    """What the runs were made with."""
    rows = [[name, value] for name, value in told.rows()]
    return Section("Provenance", ("what", "which"), rows, PROVENANCE_NOTE if told.calls else OLD_NOTE, words=True)


def accuracy(report: Report) -> Section:
    """What the cells came to, and cost."""
    seeds = len({record.seed for records in report.runs.values() for record in records})
    header = [*COLUMNS]
    note = ACCURACY_NOTE.format(seeds=note_of_seeds(seeds), company=_company(report.cells))
    rows = [table_row(cell) for cell in report.cells]
    if any(cell.failed for cell in report.cells):
        header.append("failed")
        note += " " + FAILED_NOTE
        for row, cell in zip(rows, report.cells, strict=True):
            row.append(f"{cell.failed:,.0f}")
    if not report.has_own_costs:
        note += " " + OLD_COST_NOTE
    if report.prices is not None:
        header.append("money")
        note += " " + MONEY_NOTE.format(prices=report.prices)
        for row, cell in zip(rows, report.cells, strict=True):
            row.append(money(cell.money))
    return Section("", header, rows, note)


COLUMNS = (
    "method", "budget", "accuracy", "95 % interval", "generated", "prefill", "reward", "FLOPs", "seconds", "95th",
)  # fmt: skip


def _company(cells: Sequence[Cell]) -> str:
    """In whose company runs were timed."""
    told = {cell.seconds.concurrency for cell in cells}
    if told == {1}:
        return "of runs that had the models to themselves"
    most = "other runs" if None in told else f"up to {max(n for n in told if n is not None) - 1} others"
    return f"while {most} shared the models (`motes eval --alone` times each by itself)"


def note_of_seeds(count: int) -> str:
    """What to say of the number of seeds, after a blank."""
    return SEED_NOTE if count == 1 else SEEDS_NOTE.format(count=count) if count else ""


def table_row(cell: Cell) -> list[str]:
    """The cell under `COLUMNS`."""
    return [
        cell.method,
        str(cell.budget),
        percent(cell.accuracy.value),
        between(cell.accuracy),
        *(f"{count:,.0f}" for count in cell.tokens),
        flops(cell.total_flops),
        f"{cell.seconds.median:.2f}",
        f"{cell.seconds.high:.2f}",
    ]


def outcomes(report: Report) -> Section:
    """How the runs of the cells ended."""
    header = ("method", "budget", "runs", *(outcome.replace("_", " ") for outcome in OUTCOMES), "missing")
    rows = [
        [cell.method, *map(str, (cell.budget, cell.runs, *cell.outcomes.values(), cell.missing))]
        for cell in report.cells
    ]
    return Section("Outcomes", header, rows, OUTCOMES_NOTE)


def _choice_row(cell: Cell) -> list[str]:
    shares = (cell.accuracy, cell.majority, cell.oracle)
    return [cell.method, str(cell.budget), *(with_interval(share) for share in shares)]


def _quality_rows(report: Report) -> Rows:
    return [
        [
            quality.method, str(quality.budget), quality.kind, f"{quality.predictions:,}", f"{quality.mean:.3f}",
            f"{quality.right:.3f}", three(quality.auroc), three(quality.within), f"{quality.ece:.3f}",
            f"{quality.brier:.3f}",
        ]
        for quality in report.qualities
    ]  # fmt: skip


def _deciding(qualities: Sequence[StepQuality]) -> Section:
    """The numbers that decide whether particles can win: T, P, and the AUROC between partial answers."""
    header = ("method", "budget", "steps", "right", "partial answers", "wrong", "AUROC", "as many steps", "beta")
    rows = [
        [
            quality.method, str(quality.budget), two_digits(quality.steps), with_interval(quality.right),
            f"{quality.prefixes:,}", percent(quality.wrong), three(quality.within), three(quality.abreast),
            two_digits(quality.beta),
        ]
        for quality in qualities
    ]  # fmt: skip
    names = " and ".join(dict.fromkeys(code(quality.method) for quality in qualities if quality.is_independent))
    told = [quality for quality in qualities if quality.prefixes]
    labels = [CHECKED_NOTE] if any(quality.checked for quality in told) else []
    labels += [UNCHECKED_NOTE] if any(not quality.checked for quality in told) else []
    reference = REFERENCE_NOTE.format(names=names) if names else NO_REFERENCE_NOTE
    if untold := sum(quality.untold for quality in qualities):
        reference += " " + UNTOLD_NOTE.format(count=f"{untold:,}")
    note = DECIDING_NOTE.format(labels=" ".join(labels), reference=reference)
    return Section("Steps, pass@1 and the reward model between steps", header, rows, " ".join(note.split()))


def two_digits(value: Interval) -> str:
    """A number to two digits, with its interval."""
    ends = f"{value.low:.2f} – {value.high:.2f}" if value.is_known else "–"
    return "–" if value.value != value.value else f"{value.value:.2f} ({ends})"


def together_note(values: Sequence[Difference] | Sequence[Rate], how: str, file: str) -> str:
    """What to say of the intervals of several comparisons."""
    return TOGETHER_NOTE.format(count=len(values), how=how, file=file) if len(values) > 1 else ""


def _levels(report: Report) -> Section:
    levels = sorted({cell.level for cell in report.levels if cell.level is not None})
    value = {(cell.method, cell.budget, cell.level): cell.accuracy.value for cell in report.levels}
    rows = []
    for cell in report.cells:
        shares = [value.get((cell.method, cell.budget, level), math.nan) for level in levels]
        rows.append([cell.method, str(cell.budget), *map(percent, shares)])
    return Section("Accuracy by level", ("method", "budget", *(f"level {level}" for level in levels)), rows)


def grid(values: Sequence[Difference] | Sequence[Rate], heading: str) -> tuple[list[str], Rows]:
    """A row for each method, a column for each budget of the chief one."""
    written = {(value.method, value.budget): str(value) for value in values}
    methods, budgets = dict.fromkeys(value.method for value in values), sorted({value.budget for value in values})
    rows = [[method, *(written.get((method, budget), "") for budget in budgets)] for method in methods]
    return ["method", *map(heading.format, budgets)], rows


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f} %"


def between(interval: Interval) -> str:
    """The ends of a share's interval."""
    return f"{percent(interval.low)} – {percent(interval.high)}" if interval.is_known else "–"


def with_interval(share: Interval) -> str:
    return "–" if share.value != share.value else f"{percent(share.value)} ({between(share)})"


def three(value: Interval) -> str:
    """A number between 0 and 1 to three digits, with its interval."""
    return "–" if value.value != value.value else f"{value.value:.3f} ({_three_ends(value)})"


def _three_ends(value: Interval) -> str:
    return f"{value.low:.3f} – {value.high:.3f}" if value.is_known else "–"


def flops(number: float | None) -> str:
    """Three digits and a unit: 21.4 G is 21.4e9 operations."""
    if number is None:
        return "–"
    power = min(max(int(math.log10(max(1.0, number)) // 3), 0), 6)
    return f"{number / 1000**power:.3g} {' kMGTPE'[power]}".rstrip()


def money(amount: float | None) -> str:
    """Of one problem; written for a thousand."""
    return "–" if amount is None else f"{1000 * amount:,.4g}"


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV file of at least one row, under the names of the first one's fields.

    What a spreadsheet would take for a formula has a ' before it.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


FORMULA = re.compile(r"^(?=[\t\n])|(?:^|(?<=[;\n]))(?=\s*[-=+@\uff0b\uff0d\uff1d\uff20])")
"""Before what a spreadsheet calculates; in some languages the wide signs count, too. Where it takes a semicolon to part
cells, quotes in the middle of a line do not count: behind each semicolon and line end in a text a cell may begin."""


def _inert(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # before Python 3.13 a lone one is left without quotes
    try:
        float(value)
    except ValueError:
        return FORMULA.sub("'", value)
    return value


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> list[str]:
    """A table of texts in Markdown; but for the first column they stand on the right, unless they are words."""
    line, others = "| {} |".format, "---" if words else "---:"
    return [line(" | ".join(map(markdown, header))), line(" | ".join(["---"] + [others] * (len(header) - 1)))] + [
        line(" | ".join(map(markdown, row))) for row in rows
    ]


MARKS = re.compile(r"[\\`*\[\]<|~$&]|(?<!\w)_|_(?!\w)")
"""What means something to Markdown within a line or a cell."""


def markdown(text: str) -> str:
    """A text as one line of Markdown that shows it as it is."""
    return MARKS.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(name: str) -> str:
    """A name as code in Markdown."""
    shown = visible(" ".join(name.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{shown}{space}{fence}"
