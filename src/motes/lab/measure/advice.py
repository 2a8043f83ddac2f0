"""Advice before money is spent: the expected gain of each method, and which one to use.

The pilot consists of several independent, scored answers to each of some problems. It shows the regime of the task and
the models (`motes.lab.measure.regime`). The methods then run on chains with the same properties, which costs no tokens.
Intervals are over resamples of the pilot's problems, each with chains of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from motes import api
from motes.errors import ConfigurationError
from motes.lab.chains import RIGHT
from motes.lab.measure.comparison import ends
from motes.lab.measure.formats import Section, csv_text, markdown_page, percent, three, two_digits, with_interval
from motes.lab.measure.regime import Regime, resampled, samples_of
from motes.lab.measure.statistics import Interval, share_interval, student_quantile
from motes.lab.run.evaluation import derive_seed
from motes.lab.run.method_spec import NAMES, method_from_spec
from motes.lab.run.records import RunRecord
from motes.methods.particle_filter import ParticleFilter

METHODS = ("majority", "wbon", "rebase", "pf:potential=increment:beta=2", "pf")
BUDGETS = (4, 16, 64)
RESAMPLES = 8
PROBLEMS = 60
"""Number of chains on which the methods run for each resample."""
CLOSE = 0.02
"""Accuracies that differ by at most this count as the same."""
FAR = 0.1
"""The reward model is the limit if coverage exceeds the accuracy of the best method by more than this."""
BETTER = 0.95
"""AUROC of the better reward model with which a limiting one is compared."""

REGIME_NOTE = (
    "From {answers} independent answers to each of {problems} problems; in brackets 95 % intervals over problems. "
    "AUROC: the chance that of two {what} to the same problem, a right and a wrong one, the right one has the larger "
    "score. Beta: how sharply a filter should use the scores of partial answers. Systematic: the share of the variance "
    "of scores at first mistakes that depends on the problem and the step, which more particles do not average out. "
    "Coverage: the chance that any of N answers is right, by the beta distribution that fits the problems' pass@1."
)
PREDICTED_NOTE = (
    "Accuracy of methods on chains with equally many steps, which go wrong and are scored like the pilot's answers; in "
    "brackets 95 % intervals over {resamples} resamples of the pilot's problems, {problems} chains each. Tokens: of "
    "both models, N times those of one answer, less what particles share."
)


@dataclass(frozen=True)
class Prediction:
    """The expected accuracy of a method. `tokens`: of both models for a problem, at most."""

    method: str
    budget: int
    accuracy: Interval
    tokens: float

    def row(self) -> dict[str, object]:
        """A flat row of a CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            **ends(self.accuracy, "accuracy"),
            "tokens": round(self.tokens),
        }


@dataclass(frozen=True)
class Advice:
    """The advice that follows from a pilot.

    Attributes:
        regime: of the task and the models.
        greedy: accuracy at temperature 0; None if the pilot did not measure it.
        coverage: the chance that any of N answers is right, by N.
        predictions: for every method and budget.
        with_better: accuracy of the best method at the largest budget with a reward model of AUROC `BETTER`; None if
            the pilot's is as good.
    """

    regime: Regime
    greedy: Interval | None
    coverage: Mapping[int, float]
    predictions: tuple[Prediction, ...]
    with_better: float | None

    @property
    def chosen(self) -> Prediction:
        """The recommended method and budget. The method is the last one whose accuracy at the largest budget is within
        `CLOSE` of the best. The budget is the smallest at which it is within `CLOSE` of that accuracy."""
        largest = max(each.budget for each in self.predictions)
        last = {each.method: each for each in self.predictions if each.budget == largest}
        most = max(each.accuracy.value for each in last.values())
        method = next(name for name in reversed(list(last)) if last[name].accuracy.value >= most - CLOSE)
        least = last[method].accuracy.value - CLOSE
        close = [each for each in self.predictions if each.method == method and each.accuracy.value >= least]
        return min(close, key=lambda each: each.budget)

    @property
    def limit(self) -> str:
        """The limit of the gain from more particles: "coverage", "reward" or "neither"."""
        largest = max(self.coverage)
        best = max(each.accuracy.value for each in self.predictions if each.budget == largest)
        gap = self.coverage[largest] - best
        if gap > FAR:
            return "reward"
        return "coverage" if gap <= 2 * CLOSE and 1 - self.coverage[largest] > CLOSE else "neither"

    def words(self) -> list[str]:
        """The recommendation in sentences: the method, the budget, and the limit of the gain."""
        chosen, largest = self.chosen, max(self.coverage)
        if chosen.budget == largest:
            beyond = "It still gains there: more may be worth their price."
        else:
            beyond = f"N = {largest} gains no more than {100 * CLOSE:.0f} points on that."
        lines = [
            f"Take {chosen.method} with N = {chosen.budget}: about {percent(chosen.accuracy.value)} of its answers are "
            f"right, compared with {percent(self.regime.success.value)} of single answers. {beyond}"
        ]
        votes = [each for each in self.predictions if each.method == "majority" and each.budget == chosen.budget]
        if chosen.method != "majority" and votes and votes[0].accuracy.value >= chosen.accuracy.value - CLOSE:
            lines.append("A majority vote does as well there, and needs no reward model.")
        lines += self._beta_advice()
        covered = f"of {largest} answers one is right in {percent(self.coverage[largest])} of cases"
        if self.limit == "reward":
            sentence = f"The reward model is the limit: {covered}. A better one is worth more than particles"
            if self.with_better is not None and self.with_better > chosen.accuracy.value:
                sentence += (
                    f": with an AUROC of {BETTER:g} instead of {self.regime.auroc.value:.2f} the same budget comes to "
                    f"{percent(self.with_better)}"
                )
            lines.append(sentence + ".")
        elif self.limit == "coverage":
            lines.append(
                f"Coverage is the limit: {covered}, and the best method finds it about as often. Only more answers, or "
                "a better language model, go beyond it."
            )
        return lines

    def _beta_advice(self) -> list[str]:
        """Advice on beta for a filter that weighs the last score alone; other filters combine several scores."""
        method, beta = method_from_spec(self.chosen.method, self.chosen.budget), self.regime.beta
        if not isinstance(method, ParticleFilter) or method.potential != "increment":
            return []
        if not beta.is_known or beta.low <= method.beta <= beta.high:
            return []
        too_unsure = beta.low > method.beta
        how = "not sure enough: take them more sharply" if too_unsure else "too sure: take them less sharply"
        return [
            f"The reward model's scores are {how}, with beta = {beta.value:.1f} ({beta.low:.1f} – {beta.high:.1f}) "
            f"instead of {method.beta:g}, or calibrate them."
        ]

    def sections(self) -> Iterator[Section]:
        """The tables of the advice."""
        regime = self.regime
        header = ("steps", "pass@1", "AUROC", "beta", "systematic", *(f"coverage at {n}" for n in self.coverage))
        systematic = "unknown" if math.isnan(regime.systematic) else percent(regime.systematic)
        steps, success = f"{regime.steps.value:.1f}", with_interval(regime.success)
        row = [steps, success, three(regime.auroc), two_digits(regime.beta), systematic]
        what = "partial answers with equally many steps" if regime.checked else "answers"
        yield Section(
            "Regime",
            header,
            [[*row, *map(percent, self.coverage.values())]],
            REGIME_NOTE.format(answers=regime.answers, problems=regime.problems, what=what),
        )
        budgets = sorted({each.budget for each in self.predictions})
        accuracies = {(each.method, each.budget): each.accuracy for each in self.predictions}
        rows = [
            [NAMES.get(method, method), *(with_interval(accuracies[method, budget]) for budget in budgets)]
            for method in dict.fromkeys(each.method for each in self.predictions)
        ]
        tokens = {each.budget: each.tokens for each in self.predictions}
        rows.append(["tokens", *(f"{tokens[budget]:,.0f}" for budget in budgets)])
        if self.greedy is not None:
            rows.insert(0, ["greedy (measured)", with_interval(self.greedy), *[""] * (len(budgets) - 1)])
        yield Section(
            "Predicted accuracy",
            ("method", *(f"N = {budget}" for budget in budgets)),
            rows,
            PREDICTED_NOTE.format(problems=PROBLEMS, resamples=RESAMPLES),
        )

    def tables(self, title: str, more: Iterable[Section] = ()) -> dict[str, str]:
        """The texts of the files that advice consists of, by file name.

        Args:
            title: of the page.
            more: tables that follow those of `sections`.
        """
        page = markdown_page(title, [" ".join(self.words()), ""], [], [*self.sections(), *more])
        return {"advice.md": page, "advice.csv": csv_text([each.row() for each in self.predictions])}


async def advise(
    records: Sequence[RunRecord],
    methods: Sequence[str] = METHODS,
    budgets: Sequence[int] = BUDGETS,
    *,
    observe: Callable[[int, int], None] | None = None,
) -> Advice:
    """Predict the accuracy of methods from a pilot's records, or any evaluation's with independent, scored answers.

    It calls no model. If answers are long, it computes for a few minutes.

    Args:
        methods: method specs.
        budgets: numbers of trajectories.
        observe: called with the number of resamples that are finished, and the number of all resamples.

    Raises:
        ConfigurationError: the records say too little; see `Regime.of`.
    """
    samples = samples_of(records)
    regime = Regime.of(samples)
    rng = np.random.default_rng(0)
    cells = [(method, budget) for method in methods for budget in budgets]
    accuracies: list[list[float]] = []  # of each resample, in each cell
    for number in range(RESAMPLES):
        try:
            sampled_regime = Regime.of(resampled(samples, rng))
        except ConfigurationError:  # all answers of this resample are right, or none is
            sampled_regime = regime
        accuracies.append([await _accuracy(sampled_regime, method, budget, number) for method, budget in cells])
        if observe is not None:
            observe(number + 1, RESAMPLES)
    predictions = tuple(
        Prediction(method, budget, _interval([row[i] for row in accuracies]), budget * sum(regime.tokens))
        for i, (method, budget) in enumerate(cells)
    )
    greedy = [(record.problem_id, record.outcome == "correct") for record in records if record.method == "greedy"]
    largest = max(budgets)
    best = max((each for each in predictions if each.budget == largest), key=lambda each: each.accuracy.value)
    with_better = None
    if regime.auroc.value < BETTER:
        with_better = float(np.mean([await _accuracy(regime, best.method, largest, i, BETTER) for i in range(4)]))
    return Advice(
        regime,
        share_interval(greedy) if greedy else None,
        {budget: coverage(regime, budget) for budget in budgets},
        predictions,
        with_better,
    )


async def _accuracy(regime: Regime, spec: str, budget: int, seed: int, auroc: float | None = None) -> float:
    world = regime.world(PROBLEMS, seed, auroc)
    method = method_from_spec(spec, budget)
    right = 0
    for problem in world.problems():
        run_seed = derive_seed(seed, str(problem.id), spec, budget)
        result = await api.asolve(problem, lm=world.lm, reward=world.reward, method=method, task=world, seed=run_seed)
        right += result.answer == RIGHT
    return right / PROBLEMS


def _interval(values: Sequence[float]) -> Interval:
    """The mean with its interval. Resamples differ in their problems, which is the uncertainty that counts, and because
    each ran on only `PROBLEMS` chains."""
    mean, n = float(np.mean(values)), len(values)
    variance = float(np.var(values, ddof=1))
    of_problems = max(0.0, variance - mean * (1 - mean) / PROBLEMS)
    half = student_quantile(0.975, n - 1) * math.sqrt(of_problems + variance / n)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def coverage(regime: Regime, budget: int) -> float:
    """The chance that any of N answers is right: 1 − E[(1 − p)^N], with p from the beta distribution."""
    a, b = regime.spread * regime.success.value, regime.spread * (1 - regime.success.value)
    none = math.lgamma(b + budget) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + budget)
    return 1 - math.exp(none)
