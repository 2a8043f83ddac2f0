"""In which regime a task, a language model and a reward model are: the numbers that decide whether particles win.

They are estimated from independent answers with scores, a few for each of some problems, and say which world of chains
(`motes.lab.chains`) is like this one. What methods gain there is what they can be expected to gain here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from motes.errors import ConfigurationError
from motes.lab.chains import MISTAKES, ChainWorld
from motes.lab.measure.readings import ReadAnswer, Readings, answers_read
from motes.lab.measure.reliability import Predictions, StepQuality
from motes.lab.measure.statistics import Interval, share_interval
from motes.lab.run.method_spec import draws_independently
from motes.lab.run.records import RunRecord

LEAST_ANSWERS = 2
"""Of each problem: from one alone nothing is known of how answers to the same problem differ."""
STEEPEST = 0.999
"""No AUROC is taken for larger: 1 has no separation."""
SHARPEST = 20.0
"""No reward model's sharpness is taken for more, nor for less than one over it."""
RAREST = 1e-4
"""No answer is taken to be flawless more rarely, nor flawed."""
CONCENTRATIONS = (None, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""That are looked at, from even difficulty to what lies in one step."""
ALIKE = 400
"""Chains that are held against the problems for that."""


@dataclass(frozen=True)
class Mistakes:
    """How answers go wrong.

    Attributes:
        flawless: the share of answers all of whose steps are right. `spread`: of that over problems, as `ChainWorld`
            has it.
        hardness: of each step, the share of answers right so far that go wrong at it.
        concentration: how unevenly difficulty lies in the steps of one problem, as `ChainWorld` has it.
        luck: the share of answers with a mistake that are right in spite of it.
        agreement: the chance that two wrong answers to one problem are the same.
        meeting: the chance that two of them go wrong first at the same step.
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
        """Of the answers of a pilot, and how often wrong ones agree."""
        reached, failed = Counter[int](), Counter[int]()
        at: dict[tuple[str, int], list[bool]] = {}
        flawless: dict[str, list[bool]] = {}
        for answer in answers:
            flawless.setdefault(answer.problem, []).append(answer.mistake is None)
            last = len(answer.logits) - 1 if answer.mistake is None else answer.mistake
            for place in range(last + 1):
                reached[place] += 1
                failed[place] += place == answer.mistake
                at.setdefault((answer.problem, place), []).append(place == answer.mistake)
        hardness = tuple(failed[place] / reached[place] for place in sorted(reached))
        flawed = [answer for answer in answers if answer.mistake is not None]
        share = (len(answers) - len(flawed)) / len(answers)
        length = round(float(np.mean([len(answer.logits) for answer in answers])))
        spread = _spread(flawless.values())
        return cls(
            flawless=share,
            spread=spread,
            hardness=hardness,
            concentration=_concentration(list(at.values()), length, share, spread, hardness),
            luck=sum(answer.is_lucky for answer in flawed) / max(1, len(flawed)),
            agreement=agreement,
            meeting=_meeting(flawed),
        )

    @property
    def sameness(self) -> float:
        """The chance that two mistakes at the same step are the same mistake: those who make it answer the same."""
        return min(1.0, self.agreement / self.meeting) if self.meeting > 0 else 1.0

    @property
    def kinds(self) -> tuple[float, ...]:
        """Of mistakes at a step, how likely each is: two are the same with that chance, or nearly."""
        others = MISTAKES[:-1]  # each half of the one before, as many as there are usually
        rest = sum(share**2 for share in others) / sum(others) ** 2
        first = min(1.0, (rest + math.sqrt(max(0.0, self.sameness * (1 + rest) - rest))) / (1 + rest))
        return (first, *((1 - first) * share / sum(others) for share in others)) if first < 1 else (1.0,)

    @classmethod
    def unknown(cls, success: float, spread: float, agreement: float) -> Mistakes:
        """Where nothing is known but how often an answer is right: any step may go wrong, for good."""
        return cls(success, spread, (), None, 0.0, agreement)


@dataclass(frozen=True)
class Regime:
    """The numbers that decide.

    Attributes:
        problems: that were looked at; `answers`: of each, independent samples.
        steps: T, the mean number of an answer's steps.
        success: P, the share of answers that is right, pass@1.
        spread: of pass@1 over problems, as `ChainWorld` has it.
        auroc: of the reward model within a problem: over partial answers of as many steps where steps were checked,
            over final answers else. `checked` says which.
        beta: how sharply a filter should take the scores: see `motes.lab.measure.reliability.Predictions.sharpness`.
        systematic: the share of the variance of scores' logits at first mistakes that is a matter of the problem and
            the step: what other words do not change. NaN where no two answers ever go wrong at the same step.
        mistakes: how answers go wrong; where steps are unchecked, as their scores suggest.
        readings: what the reward model says of partial answers. None where it scores nothing but whole ones.
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
        """Of an evaluation's records: those of the method whose independent answers have scores and are the most.

        Raises:
            ConfigurationError: there are none, or none that are right, or none that are wrong; or the records are
                those of a version that did not keep partial answers.
        """
        samples = samples_of(records)
        right = [(record.problem_id, each is True) for record in samples for each in record.right]
        success = share_interval(right)
        if not 0 < success.value < 1:
            what = "right" if success.value == 0 else "wrong"
            raise ConfigurationError(
                f"none of {len(right):,} answers is {what}: there is nothing to choose between. Take "
                + ("easier problems, or a better model" if what == "right" else "harder problems")
            )
        quality = StepQuality.of(samples[0].method, samples[0].budget, True, samples)
        assert quality is not None  # they have scores
        if math.isnan(quality.steps.value):
            raise ConfigurationError(
                "an earlier version made these records: they do not say of how many steps answers are. Evaluate again"
            )
        checked = quality.checked
        spread = _spread([[each is True for each in record.right] for record in samples])
        agreement = _agreement(samples)
        answers = answers_read(samples)
        return cls(
            problems=len({record.problem_id for record in samples}),
            answers=round(len(right) / len(samples)),
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
        return max(0.0, math.sqrt(2) * NormalDist().inv_cdf(min(self.auroc.value, STEEPEST)))

    def world(self, num_problems: int, seed: int = 0, auroc: float | None = None) -> ChainWorld:
        """Chains like these. `auroc`: of a reward model that knows more."""
        regime = self if auroc is None else replace(self, auroc=Interval.none(auroc))
        reader = self.readings if self.readings is None or auroc is None else self.readings.with_auroc(auroc)
        length, mistakes = max(1, round(self.steps.value)), self.mistakes
        # How often two mistakes are the same without having a usual end, and how much of an error they then share.
        kinds = mistakes.kinds
        same = sum(share**2 for share in kinds)
        alone = same * (1 / length if math.isnan(mistakes.meeting) else mistakes.meeting)
        usual = math.sqrt(max(0.0, mistakes.agreement - alone) / max(1e-9, 1 - alone))
        systematic = 1.0 if math.isnan(self.systematic) else min(1.0, self.systematic / same)
        return ChainWorld(
            num_steps=length,
            success=min(max(mistakes.flawless, RAREST), 1 - RAREST),
            separation=regime.separation,
            systematic=systematic,
            sharpness=min(max(self.beta.value, 1 / SHARPEST), SHARPEST) if self.beta.value > 0 else 1.0,
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
    """The runs of independent answers with scores, of the method and budget that has the most of them for a problem.

    Raises:
        ConfigurationError: there are none.
    """
    cells: dict[tuple[str, int], list[RunRecord]] = {}
    for record in records:
        scored = any(score is not None for score in record.scores)
        if scored and len(record.right) >= LEAST_ANSWERS and draws_independently(record.method):
            cells.setdefault((record.method, record.budget), []).append(record)
    if not cells:
        raise ConfigurationError(
            "nothing is known of independent answers with scores: evaluate bon or wbon with a budget of 8, say"
        )
    best = max(cells, key=lambda cell: (len({record.problem_id for record in cells[cell]}), cell[1]))
    return cells[best]


def resampled(records: Sequence[RunRecord], rng: np.random.Generator) -> list[RunRecord]:
    """As many problems, drawn with replacement, with all their runs; one that is drawn twice is two."""
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
    """Of the chances of problems, each given by marks."""
    variance, mean = _variance(right)
    if variance <= 0:
        return 1000.0
    return min(1000.0, max(0.05, mean * (1 - mean) / variance - 1))


def _wrong(record: RunRecord) -> list[str]:
    """The wrong answers; equivalent ones by one name."""
    names = list(record.posterior)
    return [
        answer if group is None else names[group]
        for answer, group, right in zip(
            record.answers, record.groups or (None,) * len(record.answers), record.right, strict=True
        )
        if answer is not None and right is False
    ]


def _meetings(flawed: Iterable[ReadAnswer]) -> dict[str, dict[int, list[float]]]:
    """The logits of first mistakes, by problem and place."""
    found: dict[str, dict[int, list[float]]] = {}
    for answer in flawed:
        if answer.mistake is not None:
            found.setdefault(answer.problem, {}).setdefault(answer.mistake, []).append(answer.logits[answer.mistake])
    return found


def _meeting(flawed: Sequence[ReadAnswer]) -> float:
    """The chance that two answers to a problem go wrong first at the same place; NaN where no problem has two."""
    same = pairs = 0
    for places in _meetings(flawed).values():
        counts = [len(logits) for logits in places.values()]
        same += sum(n * (n - 1) for n in counts)
        pairs += sum(counts) * (sum(counts) - 1)
    return same / pairs if pairs else math.nan


def _systematic(answers: Sequence[ReadAnswer]) -> float:
    """1 − V_within/V: half the mean squared difference of the logits of two first mistakes at one place of one problem,
    over the variance of all."""
    squares, weights, everywhere = [], [], []
    for places in _meetings(answers).values():
        for logits in places.values():
            everywhere += logits
            if len(logits) > 1:
                squares.append(float(np.var(logits, ddof=1)))
                weights.append(len(logits) - 1)
    if not squares or not np.var(everywhere):
        return math.nan
    return min(1.0, max(0.0, 1 - float(np.average(squares, weights=weights)) / float(np.var(everywhere))))


def _agreement(samples: Sequence[RunRecord]) -> float:
    """The chance that two wrong answers to a problem are the same, mean over the pairs."""
    same = pairs = 0
    for record in samples:
        counts = Counter(_wrong(record))
        n = sum(counts.values())
        same += sum(count * (count - 1) for count in counts.values())
        pairs += n * (n - 1)
    return same / pairs if pairs else 0.0


def _concentration(
    marks: Sequence[Sequence[bool]], length: int, flawless: float, spread: float, hardness: Sequence[float]
) -> float | None:
    """Of the difficulty within problems: with it chains differ as much from each other, in the chance that a step goes
    wrong, as the problems do. None: even difficulty differs enough.

    Args:
        marks: of each step of each problem, whether those of its answers that were right before it went wrong at it.
        length: of the chains; the rest as `Mistakes` has it.
    """
    variance, mean = _variance(marks)
    if not 0 < variance < mean * (1 - mean) or not 0 < flawless < 1:
        return None

    def differ(concentration: float | None) -> float:
        chances = np.array([*ChainWorld(
            length, flawless, 1.0, concentration=concentration, hardness=_shares(hardness, length), spread=spread,
            law="gamma", num_problems=ALIKE,
        ).chances.values()])  # fmt: skip
        # A step counts as often as an answer comes so far.
        reached = np.cumprod(np.hstack([np.ones((ALIKE, 1)), chances[:, :-1]]), axis=1)
        wrong = 1 - chances
        middle = np.average(wrong, weights=reached)
        return float(np.average((wrong - middle) ** 2, weights=reached)) / float(middle * (1 - middle))

    wanted = variance / (mean * (1 - mean))
    return min(CONCENTRATIONS, key=lambda each: abs(differ(each) - wanted))


def _variance(marks: Iterable[Sequence[bool]]) -> tuple[float, float]:
    """Of a chance that differs from place to place, by moments: its variance, and its mean. Of c of n marks,
    c(c − 1)/(n(n − 1)) is an unbiased estimate of the square of the chance; places with a single mark tell nothing."""
    shares, squares, weights = [], [], []
    for each in marks:
        c, n = sum(each), len(each)
        if n < 2:
            continue
        shares.append(c / n)
        squares.append(c * (c - 1) / (n * (n - 1)))
        weights.append(n)
    if not shares:
        return 0.0, 0.0
    mean = float(np.average(shares, weights=weights))
    return float(np.average(squares, weights=weights)) - mean**2, mean


def _shares(hardness: Sequence[float], length: int) -> tuple[float, ...]:
    """Chances of going wrong, step by step, as shares of log Π p_t over another number of steps; none where no step
    ever went wrong."""
    if not sum(hardness):
        return ()
    places = np.linspace(0, len(hardness) - 1, length)
    chances = np.interp(places, np.arange(len(hardness)), hardness)
    return tuple((-np.log1p(-np.minimum(chances, 0.99))).tolist())
