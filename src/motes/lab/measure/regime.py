"""The regime of a task, a language model and a reward model: the numbers that decide whether particles win.

They are estimated from independent, scored answers, a few for each of some problems, and describe a world of chains
(`motes.lab.chains`) with the same properties. Methods can be expected to gain here as much as they gain there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from motes.errors import ConfigurationError
from motes.lab.chains import MISTAKES, ChainWorld
from motes.lab.measure.readings import ReadAnswer, Readings, answers_read
from motes.lab.measure.reliability import Predictions, StepQuality
from motes.lab.measure.statistics import Interval
from motes.lab.run.method_spec import draws_independently
from motes.lab.run.records import RunRecord

MIN_ANSWERS = 2
"""Answers needed for each problem: a single one does not show how answers to the same problem differ."""
MAX_AUROC = 0.999
"""Larger AUROCs are set to this one: 1 has no finite separation."""
MAX_SHARPNESS = 20.0
"""The sharpness of a reward model is clipped to this number and its reciprocal."""
MIN_SHARE = 1e-4
"""The share of flawless answers, and that of flawed ones, is at least this."""
CONCENTRATIONS = (None, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""The candidates, from difficulty spread evenly over the steps to all of it in one step."""
NUM_CHAINS = 400
"""Number of chains that are compared with the problems to choose a concentration."""


@dataclass(frozen=True)
class Mistakes:
    """How answers go wrong.

    Attributes:
        flawless: the share of answers whose steps are all right.
        spread: of that share over problems, as in `ChainWorld`.
        hardness: for each step, the share of answers with a mistake there among those without a mistake before.
        concentration: how unevenly the difficulty is spread over the steps of one problem, as in `ChainWorld`.
        luck: the share of answers with a mistake that are right in spite of it.
        agreement: the chance that two wrong answers to one problem are the same.
        meeting: the chance that two of them make their first mistake at the same step.
    """

    flawless: float
    spread: float
    hardness: tuple[float, ...]
    concentration: float | None
    luck: float
    agreement: float
    meeting: float = math.nan

    @classmethod
    def of(cls, answers: Sequence[ReadAnswer], agreement: float) -> Mistakes:
        """Estimate them from the answers of a pilot and the `agreement` of its wrong answers."""
        at_steps: dict[int, list[bool]] = {}  # whether each answer that is right so far goes wrong there
        goes_wrong: dict[tuple[str, int], list[bool]] = {}  # the same, at each step of each problem
        mistakes: dict[str, list[int | None]] = {}  # the place of each answer's first one, by problem
        for answer in answers:
            mistakes.setdefault(answer.problem, []).append(answer.mistake)
            for place in range(len(answer.logits) if answer.mistake is None else answer.mistake + 1):
                at_steps.setdefault(place, []).append(place == answer.mistake)
                goes_wrong.setdefault((answer.problem, place), []).append(place == answer.mistake)
        hardness = tuple(sum(marks) / len(marks) for _, marks in sorted(at_steps.items()))
        num_flawless = sum(answer.mistake is None for answer in answers)
        share = num_flawless / len(answers)
        length = round(float(np.mean([len(answer.logits) for answer in answers])))
        spread = _spread([place is None for place in places] for places in mistakes.values())
        first_mistakes = ([place for place in places if place is not None] for places in mistakes.values())
        return cls(
            flawless=share,
            spread=spread,
            hardness=hardness,
            concentration=_concentration(list(goes_wrong.values()), length, share, spread, hardness),
            luck=sum(answer.is_lucky for answer in answers) / max(1, len(answers) - num_flawless),
            agreement=agreement,
            meeting=_share_of_equal_pairs(first_mistakes, default=math.nan),
        )

    @property
    def sameness(self) -> float:
        """The chance that two mistakes at the same step are the same mistake, which leads to the same answer."""
        return min(1.0, self.agreement / self.meeting) if self.meeting > 0 else 1.0

    @property
    def kinds(self) -> tuple[float, ...]:
        """The probability of each possible mistake at a step, such that two mistakes are the same with a chance of
        (about) `sameness`."""
        others = MISTAKES[:-1]  # the usual number of mistakes, each half as likely as the one before
        rest = sum(share**2 for share in others) / sum(others) ** 2
        first = min(1.0, (rest + math.sqrt(max(0.0, self.sameness * (1 + rest) - rest))) / (1 + rest))
        return (first, *((1 - first) * share / sum(others) for share in others)) if first < 1 else (1.0,)

    @classmethod
    def unknown(cls, success: float, spread: float, agreement: float) -> Mistakes:
        """The values if only the share of right answers is known: mistakes are equally likely at all steps, and answers
        with one are wrong."""
        return cls(success, spread, (), None, 0.0, agreement)


@dataclass(frozen=True)
class Regime:
    """The numbers that decide whether particles win.

    Attributes:
        problems: number of problems in the pilot.
        answers: independent samples for each problem.
        steps: T, the mean number of steps of an answer.
        success: P, the share of right answers, pass@1.
        spread: of pass@1 over problems, as in `ChainWorld`.
        auroc: of the reward model within a problem: over partial answers of the same number of steps if steps were
            checked, over final answers if not.
        checked: whether steps were checked.
        beta: how sharply a filter should use the scores: see `motes.lab.measure.reliability.Predictions.sharpness`.
        systematic: the share of the variance of scores' logits at first mistakes that depends on the problem and the
            step, and not on the wording. NaN if no two answers ever go wrong at the same step.
        mistakes: how answers go wrong; if steps were not checked, as their scores suggest.
        readings: the reward model's scores of partial answers; None if it scores only whole answers.
        tokens: that an answer needs by itself, of the language model and of the reward model.
    """

    problems: int
    answers: int
    steps: Interval
    success: Interval
    spread: float
    auroc: Interval
    checked: bool
    beta: Interval
    systematic: float
    mistakes: Mistakes
    readings: Readings | None
    tokens: tuple[float, float]

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Regime:
        """Estimate the regime from the records of an evaluation; see `samples_of` for the runs that are used.

        Raises:
            ConfigurationError: there are no independent answers with scores, or none of them is right, or none is
                wrong; or an earlier version made the records, which did not keep partial answers.
        """
        samples = samples_of(records)
        num_answers = sum(len(record.right) for record in samples)
        quality = StepQuality.of(samples[0].method, samples[0].budget, True, samples)
        assert quality is not None  # they have scores
        success, checked = quality.right, quality.checked
        if not 0 < success.value < 1:
            missing = "right" if success.value == 0 else "wrong"
            raise ConfigurationError(
                f"none of {num_answers:,} answers is {missing}: there is nothing to choose between. Take "
                + ("easier problems, or a better model" if missing == "right" else "harder problems")
            )
        if math.isnan(quality.steps.value):
            raise ConfigurationError(
                "an earlier version made these records: they do not say how many steps answers have. Evaluate again"
            )
        spread = _spread([[each is True for each in record.right] for record in samples])
        agreement = _share_of_equal_pairs(map(_wrong_answers, samples), default=0.0)
        answers = answers_read(samples)
        return cls(
            problems=len({record.problem_id for record in samples}),
            answers=round(num_answers / len(samples)),
            steps=quality.steps,
            success=success,
            spread=spread,
            auroc=quality.abreast if checked else Predictions.of_scores(samples).auroc()[1],
            checked=checked,
            beta=quality.beta,
            systematic=_systematic(answers),
            mistakes=Mistakes.of(answers, agreement) if answers else Mistakes.unknown(success.value, spread, agreement),
            readings=Readings(answers) if answers else None,
            tokens=(
                float(np.mean([record.usage.generated_tokens / len(record.right) for record in samples])),
                float(np.mean([record.usage.reward_tokens / len(record.right) for record in samples])),
            ),
        )

    @property
    def separation(self) -> float:
        """d′ of a reward model with this AUROC."""
        return max(0.0, math.sqrt(2) * NormalDist().inv_cdf(min(self.auroc.value, MAX_AUROC)))

    def world(self, num_problems: int, seed: int = 0, auroc: float | None = None) -> ChainWorld:
        """Chains with the same properties; `auroc` is that of a better reward model, to be used instead of this one."""
        regime = self if auroc is None else replace(self, auroc=Interval.none(auroc))
        reader = self.readings if self.readings is None or auroc is None else self.readings.with_auroc(auroc)
        length, mistakes = max(1, round(self.steps.value)), self.mistakes
        kinds = mistakes.kinds
        same = sum(share**2 for share in kinds)  # the chance that two mistakes at one step are the same
        # Answers also agree because they end in the problem's usual wrong answer: that explains the rest of agreement.
        by_mistake = same * (1 / length if math.isnan(mistakes.meeting) else mistakes.meeting)
        usual = math.sqrt(max(0.0, mistakes.agreement - by_mistake) / max(1e-9, 1 - by_mistake))
        # The reward model errs alike only for prefixes with the same mistake.
        systematic = 1.0 if math.isnan(self.systematic) else min(1.0, self.systematic / same)
        return ChainWorld(
            num_steps=length,
            success=min(max(mistakes.flawless, MIN_SHARE), 1 - MIN_SHARE),
            separation=regime.separation,
            systematic=systematic,
            sharpness=min(max(self.beta.value, 1 / MAX_SHARPNESS), MAX_SHARPNESS) if self.beta.value > 0 else 1.0,
            concentration=mistakes.concentration,
            hardness=_shares(mistakes.hardness, length),
            agreement=usual,
            luck=mistakes.luck,
            mistakes=kinds,
            spread=mistakes.spread,
            law="gamma",
            num_problems=num_problems,
            seed=seed,
            reader=reader,
        )


def samples_of(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs with independent, scored answers: those of the method and budget with the most problems, and the largest
    budget if several have as many.

    Raises:
        ConfigurationError: there are no such runs.
    """
    cells: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        scored = any(score is not None for score in record.scores)
        if scored and len(record.right) >= MIN_ANSWERS and draws_independently(record.method):
            cells.setdefault((record.method, record.budget), []).append(record)
    if not cells:
        raise ConfigurationError(
            "there are no independent answers with scores: evaluate bon or wbon with a budget of 8, say"
        )
    best = max(cells, key=lambda cell: (len({record.problem_id for record in cells[cell]}), cell[1]))
    return cells[best]


def resampled(records: Sequence[RunRecord], rng: np.random.Generator) -> list[RunRecord]:
    """A bootstrap sample of the problems, each with all its runs; a problem that is sampled twice counts as two."""
    by_problem: dict[str, list[RunRecord]] = {}
    for record in records:
        by_problem.setdefault(record.problem_id, []).append(record)
    names = sorted(by_problem)
    return [
        replace(record, problem_id=f"{names[place]}#{number}")
        for number, place in enumerate(rng.integers(len(names), size=len(names)).tolist())
        for record in by_problem[names[place]]
    ]


def _spread(right: Iterable[Sequence[bool]]) -> float:
    """The spread, as in `ChainWorld`, of the chances of problems to be answered right."""
    variance, mean = _chance_moments(right)
    return min(1000.0, max(0.05, mean * (1 - mean) / variance - 1)) if variance > 0 else 1000.0


def _wrong_answers(record: RunRecord) -> list[str]:
    """The wrong answers of a run; equivalent answers have the same name."""
    names = list(record.posterior)
    return [
        answer if group is None else names[group]
        for answer, group, right in zip(
            record.answers, record.groups or (None,) * len(record.answers), record.right, strict=True
        )
        if answer is not None and right is False
    ]


def _share_of_equal_pairs(groups: Iterable[Iterable[Hashable]], *, default: float) -> float:
    """The share of the pairs within groups whose members are equal; `default` if no group has two members."""
    same = pairs = 0
    for counts in map(Counter, groups):
        same += sum(n * (n - 1) for n in counts.values())
        pairs += counts.total() * (counts.total() - 1)
    return same / pairs if pairs else default


def _systematic(answers: Sequence[ReadAnswer]) -> float:
    """1 − V_within/V. V_within: half the mean squared difference of the logits of two first mistakes at one place of
    one problem. V: the variance of the logits of all first mistakes."""
    logits: dict[tuple[str, int], list[float]] = {}  # of first mistakes, by problem and place
    for answer in answers:
        if answer.mistake is not None:
            logits.setdefault((answer.problem, answer.mistake), []).append(answer.logits[answer.mistake])
    several = [group for group in logits.values() if len(group) > 1]
    if not several or not (total := float(np.var(np.concatenate(list(logits.values()))))):
        return math.nan
    within = np.average([np.var(group, ddof=1) for group in several], weights=[len(group) - 1 for group in several])
    return min(1.0, max(0.0, 1 - float(within) / total))


def _concentration(
    marks: Sequence[Sequence[bool]], length: int, flawless: float, spread: float, hardness: Sequence[float]
) -> float | None:
    """The concentration at which the steps of chains vary as much in their chance to go wrong as those of the problems.
    None: evenly spread difficulty varies enough.

    Args:
        marks: for each step of each problem, and each answer without a mistake before, whether it goes wrong there.
        length: of the chains.
        flawless: see `Mistakes`, for this and the rest.
    """
    variance, mean = _chance_moments(marks)
    if not 0 < variance < mean * (1 - mean) or not 0 < flawless < 1:
        return None

    def relative_variance(concentration: float | None) -> float:
        world = ChainWorld(
            length, flawless, 1.0, concentration=concentration, hardness=_shares(hardness, length), spread=spread,
            law="gamma", num_problems=NUM_CHAINS,
        )  # fmt: skip
        chances = np.array(list(world.chances.values()))  # (NUM_CHAINS, length)
        # The weight of a step is the chance that an answer is still right when it gets there.
        reached = np.cumprod(np.hstack([np.ones((NUM_CHAINS, 1)), chances[:, :-1]]), axis=1)
        wrong = 1 - chances
        middle = np.average(wrong, weights=reached)
        return float(np.average((wrong - middle) ** 2, weights=reached)) / float(middle * (1 - middle))

    target = variance / (mean * (1 - mean))
    return min(CONCENTRATIONS, key=lambda concentration: abs(relative_variance(concentration) - target))


def _chance_moments(marks: Iterable[Sequence[bool]]) -> tuple[float, float]:
    """The variance and the mean of a chance that differs from place to place, estimated by moments. If c of a place's n
    marks are true, c(c − 1)/(n(n − 1)) is an unbiased estimate of the squared chance. A single mark says nothing."""
    counts = [(sum(place), len(place)) for place in marks if len(place) > 1]
    if not counts:
        return 0.0, 0.0
    c, n = np.array(counts).T
    mean = float(np.average(c / n, weights=n))
    return float(np.average(c * (c - 1) / (n * (n - 1)), weights=n)) - mean**2, mean


def _shares(hardness: Sequence[float], length: int) -> tuple[float, ...]:
    """The chances of steps to go wrong, interpolated to another number of steps, as shares of log Π p_t; empty if no
    step ever went wrong."""
    if not sum(hardness):
        return ()
    places = np.linspace(0, len(hardness) - 1, length)
    chances = np.interp(places, np.arange(len(hardness)), hardness)
    return tuple((-np.log1p(-np.minimum(chances, 0.99))).tolist())
