"""The tables of reports and comparisons, each with a note that explains it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from motes.core import Usage
from motes.lab.measure.cells import Cell
from motes.lab.measure.comparison import CellName, Difference, Rate
from motes.lab.measure.formats import (
    Rows,
    Section,
    between,
    code,
    duration,
    flops,
    money,
    percent,
    three,
    two_digits,
    with_interval,
)
from motes.lab.measure.reliability import Quality, StepQuality
from motes.lab.measure.statistics import Interval
from motes.lab.run.flops import Sizes
from motes.lab.run.planning import ANSWER_TOKENS, Estimate, Source
from motes.lab.run.prices import Prices
from motes.lab.run.provenance import Provenance
from motes.lab.run.records import OUTCOMES

ACCURACY_NOTE = (
    "Accuracy: right answers over all runs, failed and ungraded ones included, with Wilson's 95 % interval at the "
    "effective sample size of the problems (runs of one problem with several seeds are not independent).{seeds} "
    "Tokens: the tokens that a run by itself has to compute, mean per problem. A prompt or a text that its particles "
    "share counts once; a text that other runs have already computed counts in full. FLOPs: 2 · parameters · tokens, "
    "of both models, mean per problem, without those of attention, which grow with the context (Kaplan et al. 2020, "
    "arXiv 2001.08361). Seconds: from a run's start to its answer, median and 95th percentile, {company}."
)
FAILED_NOTE = "Failed: tokens of attempts that broke off or were cancelled, in no other count, mean per problem."
THOUGHT_NOTE = "Thought: of the generated tokens, those that the model spent on thoughts."
OLD_COST_NOTE = (
    "Some of these records are older than the separate cost of each run: their tokens are those that were computed "
    "while other runs shared the caches."
)
MONEY_NOTE = "Money: per 1,000 problems, at {prices} for a million tokens."
CHOICE_NOTE = (
    "Of the answers that a run ended with: how often the one that the method selected is right, how often the most "
    "frequent one is, and how often any is (the oracle, pass@N of the method). If several answers are equally "
    "frequent, the share of them that is right counts: the expectation if one of them is drawn."
)
PASS_NOTE = (
    "Chance that at least one of k independent samples is right, from the {n} samples of {method}: the unbiased "
    "estimator 1 − C(n − c, k)/C(n, k) of Chen et al. (arXiv 2107.03374) for c right samples, with Wilson's 95 % "
    "interval at the effective sample size of the problems. Failed and missing samples count as not right."
)
QUALITY_NOTE = (
    "Of the reward model's final scores of all answers, and of runs' confidence in their answers. AUROC: the chance "
    "that a right answer has a larger value than a wrong one, over all pairs, and over pairs of answers to the same "
    "problem, which alone help to choose. In brackets Wilson's 95 % interval at the effective sample size, whose "
    "variance is that between problems (Obuchowski 1997); there is none if only one problem contributes. ECE: expected "
    "calibration error, ten bins. Answers that a method selected by score are not independent samples: only those of "
    "best-of-N and similar methods show how good the reward model is."
)
DECIDING_NOTE = (
    "Steps: T, the mean number of steps of the answers that runs ended with. Right: P, the share of right answers; for "
    "independent samples this is pass@1. AUROC: the chance that of two partial answers to the same problem, a right "
    "and a wrong one, the right one has the larger score in its last step, pooled over problems; over pairs of any "
    "lengths, and over pairs with equally many steps. Beta: how sharply a filter should use the scores of the latter, "
    "the slope of the log-odds of being right on the log-odds of the score. {labels} All steps that were drawn and "
    "scored count, not only survivors; each counts once, however many particles continued it. In brackets 95 % "
    "intervals over problems: Student's for T and beta, Wilson's for shares. {reference}"
)
CHECKED_NOTE = "A partial answer is right if the task's step checker accepts each of its steps."
UNCHECKED_NOTE = (
    "The task has no step checker for these steps: they are judged by the final outcome. A partial answer counts as "
    "right if any answer that continues it is right. Partial answers that no answer continues are left out, so for "
    "methods that select this is about survivors."
)
REFERENCE_NOTE = (
    "A method that selects continues steps that it chose, which are not independent samples: only {names} says what "
    "the models can do by themselves."
)
NO_REFERENCE_NOTE = (
    "Methods that select continue steps that they chose. Only independent samples, such as those of `bon`, show what "
    "the models can do by themselves; there are none here."
)
UNKNOWN_NOTE = "{count} of these runs have records from before partial answers were kept: these have none."
OUTCOMES_NOTE = (
    "Each run has one outcome. A failed run, and an answer that the grader did not grade (it failed or timed out), are "
    "neither right nor wrong; accuracy is over all runs."
)
DIFFERENCES_NOTE = (
    "Accuracy less that of {chief} at the same budget, in percentage points, over the problems that both have. In "
    "brackets the 95 % interval of Student's t over problems, with two additional problems in its spread, on which "
    "each side is better (after Bonett and Price 2012): measured coverage 96 to 100 % with 25 problems.{simultaneous}"
)
ONE_DRAW_NOTE = " A method that draws one trajectory whatever the budget is compared at each budget."
RATES_NOTE = (
    "How many times the budget of {chief} another method needs to be as accurate: the budget at which its curve "
    "reaches the accuracy of {chief} at n, over n. Between measured budgets the running maximum of the curve is "
    "interpolated, linearly in log2(budget); nothing is extrapolated: ≤ and > stand before the smallest and the "
    "largest budget measured, over n. In brackets the 95 % interval of a bootstrap over problems.{simultaneous}"
)
SIMULTANEOUS_NOTE = (
    " The {count} intervals are simultaneous: in 95 % of such tables all of them contain the truth at once ({how}). "
    "`{file}` also has the separate interval of each comparison, which is narrower."
)
SEED_NOTE = (
    " One seed is all there is: each problem was run once by each method and budget. The intervals include the "
    "variation between problems and between draws, and cannot tell the two apart."
)
SEEDS_NOTE = (
    " {count} seeds: the intervals are over problems and seeds; the runs of one problem are grouped, and vary between "
    "seeds as well."
)
PROVENANCE_NOTE = (
    "The provenance of the runs, from `config.json` and `provenance.jsonl`, which have it in full. Digests are the "
    "first twelve digits of SHA-256."
)
OLD_NOTE = "The runs are older than the record of provenance: only the configuration is known."

COLUMNS = (
    "method", "budget", "accuracy", "95 % interval", "generated", "prefill", "reward", "FLOPs", "seconds", "95th",
)  # fmt: skip


def accuracy_table(
    cells: Sequence[Cell], seeds: int, *, prices: Prices | None = None, has_own_costs: bool = True
) -> Section:
    """Accuracy and cost of each cell, from runs with so many seeds; see `Report.has_own_costs`."""
    notes = [ACCURACY_NOTE.format(seeds=note_on_seeds(seeds), company=_company(cells))]
    more: dict[str, list[str]] = {}  # further columns
    if any(cell.failed for cell in cells):
        notes.append(FAILED_NOTE)
        more["failed"] = [f"{cell.failed:,.0f}" for cell in cells]
    if any(cell.thought for cell in cells):
        notes.append(THOUGHT_NOTE)
        more["thought"] = [f"{cell.thought:,.0f}" for cell in cells]
    if not has_own_costs:
        notes.append(OLD_COST_NOTE)
    if prices is not None:
        notes.append(MONEY_NOTE.format(prices=prices))
        more["money"] = [money(cell.money) for cell in cells]
    rows = [table_row(cell) + [column[i] for column in more.values()] for i, cell in enumerate(cells)]
    return Section("", (*COLUMNS, *more), rows, " ".join(notes))


def _company(cells: Sequence[Cell]) -> str:
    """The end of a sentence: with how many other runs these runs shared the models while they were timed."""
    numbers = {cell.seconds.concurrency for cell in cells}
    if numbers == {1}:
        return "of runs that had the models to themselves"
    others = "other runs" if None in numbers else f"up to {max(n for n in numbers if n is not None) - 1} others"
    return f"while {others} shared the models (`motes eval --alone` times each by itself)"


def note_on_seeds(count: int) -> str:
    """A sentence on the number of seeds, which begins with a blank; empty if there are none."""
    return SEED_NOTE if count == 1 else SEEDS_NOTE.format(count=count) if count else ""


def table_row(cell: Cell) -> list[str]:
    """The values of a cell for `COLUMNS`."""
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


def outcomes_table(cells: Iterable[Cell]) -> Section:
    """How the runs of each cell ended."""
    header = ("method", "budget", "runs", *(outcome.replace("_", " ") for outcome in OUTCOMES), "missing")
    rows = [[cell.method, *map(str, (cell.budget, cell.runs, *cell.outcomes.values(), cell.missing))] for cell in cells]
    return Section("Outcomes", header, rows, OUTCOMES_NOTE)


def choices_table(cells: Iterable[Cell]) -> Section:
    """How often the selected, the most frequent and any answer is right."""
    shares = ((cell, (cell.accuracy, cell.majority, cell.oracle)) for cell in cells)
    rows = [[cell.method, str(cell.budget), *map(with_interval, three_shares)] for cell, three_shares in shares]
    header = ("method", "budget", "selected", "majority", "any")
    return Section("Selected, majority, any", header, rows, CHOICE_NOTE)


def differences_table(differences: Sequence[Difference], title: str, chief: str, file: str, more: str = "") -> Section:
    """Paired differences of accuracy to the chief method, which is named in Markdown; a row for each method, a column
    for each budget. The CSV `file` has the separate intervals; `more` is the end of the note."""
    how = "the level of each from their correlation; Hothorn, Bretz and Westfall 2008"
    note = DIFFERENCES_NOTE.format(chief=chief, simultaneous=_simultaneous_note(len(differences), how, file)) + more
    return Section(title, *_grid(differences, "budget {}"), note)


def rates_table(rates: Sequence[Rate], chief: str) -> Section:
    """Scaling rates, a row for each method and a column for each budget of the chief method, named in Markdown."""
    how = "the level of each from the ranks of the resamples; Mandel and Betensky 2008"
    note = RATES_NOTE.format(chief=chief, simultaneous=_simultaneous_note(len(rates), how, "rates.csv"))
    return Section("Scaling rates", *_grid(rates, "n = {}"), note)


def _simultaneous_note(count: int, how: str, file: str) -> str:
    """Sentences on the intervals of several comparisons; empty for a single one."""
    return SIMULTANEOUS_NOTE.format(count=count, how=how, file=file) if count > 1 else ""


def _grid(values: Sequence[Difference] | Sequence[Rate], heading: str) -> tuple[list[str], Rows]:
    """Header and rows: a row for each method, a column for each budget of the chief method."""
    texts = {(value.method, value.budget): str(value) for value in values}
    methods, budgets = dict.fromkeys(value.method for value in values), sorted({value.budget for value in values})
    rows = [[method, *(texts.get((method, budget), "") for budget in budgets)] for method in methods]
    return ["method", *map(heading.format, budgets)], rows


def steps_table(qualities: Sequence[StepQuality]) -> Section:
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
    labelled = [quality for quality in qualities if quality.prefixes]
    labels = [CHECKED_NOTE] if any(quality.checked for quality in labelled) else []
    labels += [UNCHECKED_NOTE] if any(not quality.checked for quality in labelled) else []
    reference = REFERENCE_NOTE.format(names=names) if names else NO_REFERENCE_NOTE
    if unknown := sum(quality.untold for quality in qualities):
        reference += " " + UNKNOWN_NOTE.format(count=f"{unknown:,}")
    note = DECIDING_NOTE.format(labels=" ".join(labels), reference=reference)
    return Section("Steps, pass@1 and the reward model between steps", header, rows, " ".join(note.split()))


def passes_table(passes: Mapping[int, Interval], cell: CellName) -> Section:
    """pass@k of the independent samples of one cell, by k."""
    rows = [[f"{k}", percent(value.value), between(value)] for k, value in passes.items()]
    note = PASS_NOTE.format(method=code(cell[0]), n=cell[1])
    return Section("pass@k", ("k", "pass@k", "95 % interval"), rows, note)


def predictions_table(qualities: Iterable[Quality]) -> Section:
    """How well scores and confidences predict which answers are right."""
    header = ("method", "budget", "of", "number", "mean", "right", "AUROC", "within a problem", "ECE", "Brier")
    rows = []
    for quality in qualities:
        of = quality.predictions
        rows.append([quality.method, str(quality.budget), quality.kind, f"{len(of):,}", f"{of.values.mean():.3f}"])
        rows[-1] += [f"{of.right.mean():.3f}", *map(three, quality.aurocs)]
        rows[-1] += [f"{of.expected_calibration_error():.3f}", f"{of.brier_score():.3f}"]
    return Section("Scores and confidence as predictions", header, rows, QUALITY_NOTE)


def levels_table(cells: Iterable[Cell], by_level: Sequence[Cell]) -> Section:
    """Accuracy of each cell by level."""
    levels = sorted({cell.level for cell in by_level if cell.level is not None})
    accuracies = {(cell.method, cell.budget, cell.level): cell.accuracy.value for cell in by_level}
    rows = []
    for cell in cells:
        shares = [accuracies.get((cell.method, cell.budget, level), math.nan) for level in levels]
        rows.append([cell.method, str(cell.budget), *map(percent, shares)])
    return Section("Accuracy by level", ("method", "budget", *(f"level {level}" for level in levels)), rows)


def provenance_table(provenance: Provenance, title: str = "Provenance") -> Section:
    """The provenance of the runs."""
    rows = [[name, value] for name, value in provenance.rows()]
    return Section(title, ("what", "which"), rows, PROVENANCE_NOTE if provenance.calls else OLD_NOTE, words=True)


SOURCES: Mapping[Source, str] = {
    "recorded": "the runs recorded so far",
    "scaled": "tokens per trajectory of the runs recorded so far",
    "assumed": "answers of {tokens:,} tokens, which is an assumption",
}


def plan_table(
    estimates: Sequence[Estimate],
    *,
    sizes: Sizes,
    prices: Prices | None = None,
    concurrency: int,
    answer_tokens: int = ANSWER_TOKENS,
) -> Section:
    """The plan as a table: the remaining runs and their cost, for each method at each budget and in total."""
    header = ["method", "budget", "runs", "done", "generated", "prefill", "reward", "FLOPs"]
    header += [] if prices is None else ["money"]

    def row(name: str, budget: str, runs: int, done: int, usage: Usage) -> list[str]:
        lm, reward = sizes.flops(usage)
        tokens = (usage.generated_tokens, usage.prefill_tokens, usage.reward_tokens)
        cost = [] if prices is None else [f"{prices.of(usage):,.4g}"]
        total = None if lm is None or reward is None else lm + reward
        return [name, budget, f"{runs:,}", f"{done:,}", *(f"{count:,}" for count in tokens), flops(total), *cost]

    rows = [row(each.method, str(each.budget), each.runs, each.done, each.usage) for each in estimates]
    total = sum((each.usage for each in estimates), Usage())
    rows.append(row("all", "", sum(each.runs for each in estimates), sum(each.done for each in estimates), total))
    sources = [name for name in SOURCES if any(each.source == name and each.left for each in estimates)]
    note = "Tokens that the remaining runs have to compute."
    if sources:
        note += " Estimated from " + "; ".join(SOURCES[name].format(tokens=answer_tokens) for name in sources) + "."
    seconds = [each.seconds for each in estimates if each.left and each.seconds is not None]
    if (left := sum(each.left for each in estimates)) and len(seconds) == sum(each.left > 0 for each in estimates):
        total_time = duration(sum(seconds) / min(concurrency, left))
        note += f" About {total_time} with up to {concurrency} runs in flight, at the speed of the recorded runs."
    return Section("", header, rows, note)
