"""Advice before money is spent: how much each method is expected to gain, and which one to use.

The pilot is a number of independent, scored answers to each of some problems. It shows in which regime the task and the
models are (`motes.lab.measure.regime`). The methods then run on chains with the same properties, at no cost in tokens.
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
from motes.lab.measure.formats import Section, csv_text, markdown, percent, three, two_digits, with_interval
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
"""Chains that each resample's methods run on."""
CLOSE = 0.02
"""Accuracies that are no further apart count as the same."""
FAR = 0.1
"""So much further than the best method coverage must be for the reward model to be called the limit."""
BETTER = 0.95
"""The AUROC of the reward model that one is compared with that is the limit."""

REGIME_NOTE = (
    "From {answers} independent answers to each of {problems} problems; in brackets 95 % intervals over problems. "
    "AUROC: chance that of two {what} to the same problem, a right and a wrong one, the right one has the larger "
    "score. Beta: how sharply a filter should take the scores of partial answers. Systematic: of what the reward model "
    "makes of first mistakes, the share that is a matter of the problem and the step, which no number of particles "
    "averages out. Coverage: chance that any of N answers is right, by the beta distribution that fits the problems' "
    "pass@1."
)
PREDICTED_NOTE = (
    "Accuracy of methods on chains of as many steps, which go wrong as the pilot's answers did and are scored as they "
    "were; in brackets 95 % intervals over {resamples} resamples of the pilot's problems, {problems} chains each. "
    "Tokens: of both models, N times those of one answer; what particles share comes off that."
)


@dataclass(frozen=True)
class Prediction:
    """What a method is expected to reach. `tokens`: of both models a problem, at most."""

    method: str
    budget: int
    accuracy: Interval
    tokens: float

    def row(self) -> dict[str, object]:
        """As a flat row of a CSV file."""
        return {
            "method": self.method,
            "budget": self.budget,
            **ends(self.accuracy, "accuracy"),
            "tokens": round(self.tokens),
        }


@dataclass(frozen=True)
class Advice:
    """What a pilot says.

    Attributes:
        regime: in which the task and the models are.
        greedy: accuracy at temperature 0, where the pilot measured it.
        coverage: by N, the chance that any of N answers is right.
        predictions: of every method and budget.
        with_better: of the best method at the largest budget, with a reward model of AUROC `BETTER`; None where this
            one is as good.
    """

    regime: Regime
    greedy: Interval | None
    coverage: Mapping[int, float]
    predictions: tuple[Prediction, ...]
    with_better: float | None

    @property
    def chosen(self) -> Prediction:
        """Of the methods that are about the best at the largest budget the last one, with the smallest budget at which
        it is about as accurate as there."""
        largest = max(each.budget for each in self.predictions)
        last = {each.method: each for each in self.predictions if each.budget == largest}
        most = max(each.accuracy.value for each in last.values())
        method = next(name for name in reversed(list(last)) if last[name].accuracy.value >= most - CLOSE)
        return min(
            (
                each
                for each in self.predictions
                if each.method == method and each.accuracy.value >= last[method].accuracy.value - CLOSE
            ),
            key=lambda each: each.budget,
        )

    @property
    def limit(self) -> str:
        """What more particles run into: "coverage", "reward" or "neither"."""
        largest = max(self.coverage)
        best = max(each.accuracy.value for each in self.predictions if each.budget == largest)
        if self.coverage[largest] - best > FAR:
            return "reward"
        rest = 1 - self.coverage[largest]
        return "coverage" if rest > CLOSE and self.coverage[largest] - best <= 2 * CLOSE else "neither"

    def words(self) -> list[str]:
        """The recommendation: what to take, and when to stop."""
        chosen, largest = self.chosen, max(self.coverage)
        one = self.regime.success.value
        if chosen.budget == largest:
            beyond = "It still gains there: more may be worth their price."
        else:
            beyond = f"N = {largest} gains no more than {100 * CLOSE:.0f} points on that."
        lines = [
            f"Take {chosen.method} with N = {chosen.budget}: about {percent(chosen.accuracy.value)} are right, where "
            f"one answer is in {percent(one)}. {beyond}"
        ]
        plain = next(
            (each for each in self.predictions if each.method == "majority" and each.budget == chosen.budget), None
        )
        if chosen.method != "majority" and plain is not None and plain.accuracy.value >= chosen.accuracy.value - CLOSE:
            lines.append("A majority vote does as well there, and needs no reward model.")
        lines += self._how_sharply()
        if self.limit == "reward":
            words = (
                f"The reward model is the limit: of {largest} answers one is right in "
                f"{percent(self.coverage[largest])}. A better one is worth more than particles"
            )
            if self.with_better is not None and self.with_better > chosen.accuracy.value:
                words += (
                    f": with an AUROC of {BETTER:g} instead of {self.regime.auroc.value:.2f} the same budget comes to "
                    f"{percent(self.with_better)}"
                )
            lines.append(words + ".")
        elif self.limit == "coverage":
            lines.append(
                f"Coverage is the limit: of {largest} answers one is right in {percent(self.coverage[largest])}, and "
                "that is what is found. Only more answers, or a better language model, go beyond it."
            )
        return lines

    def _how_sharply(self) -> list[str]:
        """For a filter that weighs the last score alone: other filters take several scores together."""
        made, beta = method_from_spec(self.chosen.method, self.chosen.budget), self.regime.beta
        if not isinstance(made, ParticleFilter) or made.potential != "increment":
            return []
        if not beta.is_known or beta.low <= made.beta <= beta.high:
            return []
        how = "less sure than that: take them more sharply" if beta.low > made.beta else "too sure: take them softer"
        return [
            f"The reward model's scores are {how}, by beta = {beta.value:.1f} ({beta.low:.1f} – {beta.high:.1f}) "
            f"instead of {made.beta:g}, or calibrate them."
        ]

    def sections(self) -> Iterator[Section]:
        """Its tables."""
        regime = self.regime
        header = ("steps", "pass@1", "AUROC", "beta", "systematic", *(f"coverage at {n}" for n in self.coverage))
        systematic = "unknown" if math.isnan(regime.systematic) else percent(regime.systematic)
        steps, success = f"{regime.steps.value:.1f}", with_interval(regime.success)
        row = [steps, success, three(regime.auroc), two_digits(regime.beta), systematic]
        what = "partial answers of as many steps" if regime.checked else "answers"
        yield Section(
            "Regime",
            header,
            [[*row, *map(percent, self.coverage.values())]],
            REGIME_NOTE.format(answers=regime.answers, problems=regime.problems, what=what),
        )
        budgets = sorted({each.budget for each in self.predictions})
        found = {(each.method, each.budget): each for each in self.predictions}
        rows = [
            [NAMES.get(method, method), *(with_interval(found[method, budget].accuracy) for budget in budgets)]
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
            title: of the page. more: tables that follow those of `sections`.
        """
        page = [
            f"# {markdown(title)}",
            "",
            " ".join(self.words()),
            "",
            *(line for section in (*self.sections(), *more) for line in section.markdown()),
        ]
        return {"advice.md": "\n".join(page), "advice.csv": csv_text([each.row() for each in self.predictions])}


async def advise(
    records: Sequence[RunRecord],
    methods: Sequence[str] = METHODS,
    budgets: Sequence[int] = BUDGETS,
    *,
    observe: Callable[[int, int], None] | None = None,
) -> Advice:
    """What the records of a pilot, or of any evaluation with independent scored answers, say of methods.

    Nothing is asked of any model. It computes for a few minutes where answers are long.

    Args:
        methods: method specs. budgets: numbers of trajectories.
        observe: called with the number of resamples that are done, and with that of all.

    Raises:
        ConfigurationError: too little is known; see `Regime.of`.
    """
    samples = samples_of(records)
    regime = Regime.of(samples)
    rng = np.random.default_rng(0)
    cells = [(method, budget) for method in methods for budget in budgets]
    drawn: list[list[float]] = []
    for number in range(RESAMPLES):
        try:
            like = Regime.of(resampled(samples, rng))
        except ConfigurationError:  # drawn so that all, or none, were right
            like = regime
        drawn.append([await _accuracy(like, method, budget, number) for method, budget in cells])
        if observe is not None:
            observe(number + 1, RESAMPLES)
    each = sum(regime.tokens)
    predictions = tuple(
        Prediction(method, budget, _interval([row[i] for row in drawn]), budget * each)
        for i, (method, budget) in enumerate(cells)
    )
    greedy = [(record.problem_id, record.outcome == "correct") for record in records if record.method == "greedy"]
    largest = max(budgets)
    best = max((one for one in predictions if one.budget == largest), key=lambda one: one.accuracy.value)
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


async def _accuracy(regime: Regime, method: str, budget: int, seed: int, auroc: float | None = None) -> float:
    world = regime.world(PROBLEMS, seed, auroc)
    made = method_from_spec(method, budget)
    right = 0
    for problem in world.problems():
        own = derive_seed(seed, str(problem.id), method, budget)
        result = await api.asolve(problem, lm=world.lm, reward=world.reward, method=made, task=world, seed=own)
        right += result.answer == RIGHT
    return right / PROBLEMS


def _interval(values: Sequence[float]) -> Interval:
    """The mean, and how well it is known: resamples differ by their problems, which is what counts, and because each
    has run on so many chains only."""
    mean, n = float(np.mean(values)), len(values)
    variance = float(np.var(values, ddof=1))
    of_problems = max(0.0, variance - mean * (1 - mean) / PROBLEMS)
    half = student_quantile(0.975, n - 1) * math.sqrt(of_problems + variance / n)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def coverage(regime: Regime, budget: int) -> float:
    """The chance that any of so many answers is right: 1 − E[(1 − p)^N], p from the beta distribution."""
    a, b = regime.spread * regime.success.value, regime.spread * (1 - regime.success.value)
    none = math.lgamma(b + budget) + math.lgamma(a + b) - math.lgamma(b) - math.lgamma(a + b + budget)
    return 1 - math.exp(none)
