"""In which regime a task, a language model and a reward model are: the numbers that decide whether particles win.

They are estimated from independent answers with scores, a few for each of some problems, and say which world of chains
(`motes.lab.chains`) is like this one. What methods gain there is what they can be expected to gain here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np

from motes.errors import ConfigurationError
from motes.lab.chains import MISTAKES, ChainWorld
from motes.lab.method_spec import draws_independently
from motes.lab.records import RunRecord
from motes.lab.reliability import Predictions, StepQuality
from motes.lab.statistics import Interval, share_interval

LEAST_ANSWERS = 2
"""Of each problem: from one alone nothing is known of how answers to the same problem differ."""
STEEPEST = 0.999
"""No AUROC is taken for larger: 1 has no separation."""
CLIP = 1e-6


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
        beta: how sharply a filter should take the scores: see `motes.lab.reliability.Predictions.sharpness`.
        systematic: the share of the variance of wrong answers' logits that those who answer the same have in common.
            NaN where no two wrong ones of a problem ever do.
        memory: the correlation of the reward model's error at a step with that at the step before.
        hardness: of each step, the share of answers right so far that go wrong at it. Empty where steps are unchecked.
        agreement: the chance that two wrong answers to one problem are the same.
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
    memory: float
    hardness: tuple[float, ...]
    agreement: float
    tokens: tuple[float, float]

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Regime:
        """Of an evaluation's records: those of the method whose independent answers have scores and are the most.

        Raises:
            ConfigurationError: there are none, or none that are right, or none that are wrong.
        """
        samples = samples_of(records)
        right = [(record.problem_id, each is True) for record in samples for each in record.right]
        answers = round(len(right) / len(samples))
        success = share_interval(right)
        if not 0 < success.value < 1:
            what = "right" if success.value == 0 else "wrong"
            raise ConfigurationError(
                f"none of {len(right):,} answers is {what}: there is nothing to choose between. Take "
                + ("easier problems, or a better model" if what == "right" else "harder problems")
            )
        quality = StepQuality.of(samples[0].method, samples[0].budget, True, samples)
        assert quality is not None  # they have scores
        checked = quality.checked
        return cls(
            problems=len({record.problem_id for record in samples}),
            answers=answers,
            steps=quality.steps,
            success=success,
            spread=_spread([[each is True for each in record.right] for record in samples]),
            auroc=quality.abreast if checked else Predictions.of_scores(samples).auroc()[1],
            checked=checked,
            beta=quality.beta,
            systematic=_systematic(samples),
            memory=_memory(samples, checked),
            hardness=_hardness(samples) if checked else (),
            agreement=_agreement(samples),
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
        """Chains like these. `auroc`: of another reward model."""
        length = max(1, round(self.steps.value))
        regime = self if auroc is None else replace(self, auroc=Interval.none(auroc))
        hardness = tuple(-math.log1p(-min(share, 0.99)) for share in _of_length(self.hardness, length))
        alone = sum(share**2 for share in MISTAKES.values()) / length  # how often two mistakes are the same by chance
        usual = math.sqrt(max(0.0, self.agreement - alone) / max(1e-9, 1 - alone))
        return ChainWorld(
            num_steps=length,
            success=self.success.value,
            separation=regime.separation,
            systematic=1.0 if math.isnan(self.systematic) else self.systematic,
            memory=self.memory,
            hardness=hardness if sum(hardness) > 0 else (),
            agreement=usual,
            spread=self.spread,
            num_problems=num_problems,
            seed=seed,
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
    """By moments: of c of n answers right, c(c − 1)/(n(n − 1)) is an unbiased estimate of the square of the chance."""
    shares, squares = [], []
    for marks in right:
        c, n = sum(marks), len(marks)
        shares.append(c / n)
        squares.append(c * (c - 1) / (n * (n - 1)))
    mean = float(np.mean(shares))
    variance = float(np.mean(squares)) - mean**2
    if variance <= 0:
        return 1000.0
    return min(1000.0, max(0.05, mean * (1 - mean) / variance - 1))


def _logit(score: float) -> float:
    clipped = min(max(score, CLIP), 1 - CLIP)
    return math.log(clipped / (1 - clipped))


def _wrong(record: RunRecord) -> list[tuple[str, float]]:
    """The wrong answers with their logits; equivalent ones by one name."""
    names = list(record.posterior)
    return [
        (answer if group is None else names[group], _logit(score))
        for answer, group, right, score in zip(
            record.answers, record.groups or (None,) * len(record.answers), record.right, record.scores, strict=True
        )
        if answer is not None and right is False and score is not None
    ]


def _systematic(samples: Sequence[RunRecord]) -> float:
    """1 − V_within/V_all: half the mean squared difference of logits, of pairs of wrong answers to a problem that say
    the same, over that of all its pairs of wrong answers."""
    within: list[float] = []
    everywhere: list[float] = []
    for record in samples:
        for (first, one), (second, other) in combinations(_wrong(record), 2):
            everywhere.append((one - other) ** 2)
            if first == second:
                within.append((one - other) ** 2)
    if not within or not sum(everywhere):
        return math.nan
    return min(1.0, max(0.0, 1 - float(np.mean(within)) / float(np.mean(everywhere))))


def _agreement(samples: Sequence[RunRecord]) -> float:
    """The chance that two wrong answers to a problem are the same, mean over the pairs."""
    same = pairs = 0
    for record in samples:
        counts = Counter(answer for answer, _ in _wrong(record))
        n = sum(counts.values())
        same += sum(count * (count - 1) for count in counts.values())
        pairs += n * (n - 1)
    return same / pairs if pairs else 0.0


def _memory(samples: Sequence[RunRecord], checked: bool) -> float:
    """The correlation of logits of successive steps, both right, or both wrong, less the mean of their kind and depth;
    without labels of steps those of the answers' ends."""
    pairs: dict[tuple[bool, int], list[tuple[float, float]]] = {}
    for record in samples:
        if (prefixes := record.prefixes) is None:
            continue
        right = prefixes.right if checked else prefixes.lead_to(record.right)
        depths = prefixes.depths
        for place, parent in enumerate(prefixes.parents):
            if parent is None or not right or right[place] is None or right[place] != right[parent]:
                continue
            now, before = prefixes.scores[place], prefixes.scores[parent]
            if now is not None and before is not None:
                pairs.setdefault((bool(right[place]), depths[place]), []).append((_logit(before), _logit(now)))
    centred = [np.array(each) - np.mean(each, axis=0) for each in pairs.values() if len(each) > 2]
    if not centred:
        return 0.8
    both = np.concatenate(centred)
    product = float(np.mean(both[:, 0] * both[:, 1]))
    scale = math.sqrt(float(np.mean(both[:, 0] ** 2)) * float(np.mean(both[:, 1] ** 2)))
    return min(0.95, max(0.0, product / scale)) if scale else 0.8


def _hardness(samples: Sequence[RunRecord]) -> tuple[float, ...]:
    """Of each step, the share of answers right before it that are wrong from it on."""
    reached: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    for record in samples:
        if (prefixes := record.prefixes) is None or not prefixes.right:
            continue
        for place, (parent, depth) in enumerate(zip(prefixes.parents, prefixes.depths, strict=True)):
            if prefixes.right[place] is not None and (parent is None or prefixes.right[parent]):
                reached[depth] += 1
                failed[depth] += not prefixes.right[place]
    return tuple(failed[depth] / reached[depth] for depth in sorted(reached))


def _of_length(hardness: Sequence[float], length: int) -> list[float]:
    """The same profile over another number of steps."""
    if not hardness:
        return []
    places = np.linspace(0, len(hardness) - 1, length)
    found: list[float] = np.interp(places, np.arange(len(hardness)), hardness).tolist()
    return found
