r"""Worlds of known difficulty: chains of steps, and a reward model of known quality. The gain of a method in them can
be computed exactly and cheaply.

A problem takes T steps. Step t is right with probability p_t if all steps before it are. Each step has a few possible
mistakes; the steps that follow a mistake lead to a wrong answer of its own. So a sample is right with probability
Π p_t.

The reward model knows better than chance whether a prefix is right. Its logit is the log-likelihood ratio of a reading
that is normally distributed around ±d′/2 with standard deviation 1, divided by the reward model's sharpness:

    logit r_t = d′ (±d′/2 + e_t) / sharpness
          e_t = memory · e_{t−1} + √(1 − memory²) · ε_t        e_t, ε_t ~ N(0, 1)

d′ is its separation: a right prefix outscores a wrong one with as many steps with probability Φ(d′/√2), the reward
model's AUROC within a problem: 0.76 at d′ = 1, 0.86 at 1.5, 0.92 at 2, 0.98 at 3. The share `systematic` of the
variance of ε_t depends only on the prefix's statements, so it is the same for all particles that make them. The rest
depends on the wording, which differs from particle to particle. At sharpness 1 the reward model is as confident as its
knowledge allows; at 2 it knows as much, but is half as confident. Other reward models can take its place, see `Reader`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from motes.arguments import fit_fields
from motes.core import Problem, Sampling, Step, Trajectory
from motes.errors import ConfigurationError
from motes.lab.corruption import normal_of
from motes.models.tabular import Path, TabularLanguageModel
from motes.tasks.boxed import BoxedAnswers

RIGHT = "right"
"""The right answer of every chain."""

MISTAKES = (0.5, 0.25, 0.125, 0.125)
"""Probabilities of the possible mistakes at a step, "a", "b", and so on, given that one is made."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"

USUAL = "usual"
"""The wrong answer that several mistakes of a chain may share."""


def table_of(
    success: Sequence[float],
    usual: Collection[str] = (),
    lucky: Collection[str] = (),
    mistakes: Sequence[float] = MISTAKES,
) -> dict[Path, dict[str, float]]:
    """The table of a chain, for `TabularLanguageModel`.

    Args:
        success: (T,) for each step, the probability that it is right if the steps before it are.
        usual: mistakes that lead to the usual wrong answer, such as "3b", the second possible mistake at step 3.
        lucky: mistakes that lead to the right answer.
        mistakes: probability of each mistake, given that one is made.
    """
    table: dict[Path, dict[str, float]] = {}

    def text(t: int, answer: str, mistake: str = "") -> str:
        return f"{t}{mistake}" + (f" \\boxed{{{answer}}}" if t == len(success) else "\n\n")

    right: Path = ()
    for t, chance in enumerate(success, start=1):
        row = table.setdefault(right, {text(t, RIGHT): chance})
        for mistake, share in zip(LETTERS, mistakes, strict=False):
            name = f"{t}{mistake}"
            if name in lucky:
                answer = RIGHT
            elif name in usual:
                answer = USUAL
            else:
                answer = name
            row[text(t, answer, mistake)] = (1 - chance) * share
            wrong = (*right, text(t, answer, mistake))
            for later in range(t + 1, len(success) + 1):
                table[wrong] = {text(later, answer): 1.0}
                wrong = (*wrong, text(later, answer))
        right = (*right, text(t, RIGHT))
    return table


@dataclass(frozen=True)
class ChainWorld(BoxedAnswers):
    """A task whose problems are chains, with a language model that writes them and a reward model that reads them.

    Args:
        num_steps: T.
        success: mean over problems of the probability Π p_t that all steps of a sample are right.
        separation: d′ of the reward model.
        systematic: the share of its error that prefixes with the same statements have in common.
        memory: correlation of its errors at neighbouring steps, in [0, 1).
        sharpness: the beta with which its scores express exactly what it knows.
        concentration: how evenly the difficulty is spread over the steps. None: as `hardness` says, in all problems.
            Otherwise each problem's shares of log Π p_t are sampled from a Dirichlet distribution around `hardness`
            whose parameters have this mean: the smaller it is, the fewer steps decide.
        hardness: (T,) the steps' shares of log Π p_t, in any unit. Empty: all steps are equally hard.
        agreement: share of mistakes that lead to the problem's usual wrong answer, instead of one of their own.
        luck: share of mistakes that lead to the right answer.
        mistakes: probabilities of the possible mistakes at a step, given that one is made.
        spread: how similar the problems are. Their success probabilities have the variance success · (1 − success) /
            (spread + 1), as those of a beta distribution after so many observations.
        law: distribution of these probabilities: "beta"; or "gamma" for their negative logarithms, so that no problem
            is hopeless, as if a problem's difficulty were a sum over steps.
        num_problems: number of problems.
        seed: seed of the problems and of the reward model's errors.
        reader: a reward model to use instead of the one with this separation, memory and sharpness.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    num_steps: int
    success: float
    separation: float
    systematic: float = 1.0
    memory: float = 0.8
    sharpness: float = 1.0
    concentration: float | None = None
    hardness: tuple[float, ...] = ()
    agreement: float = 0.0
    luck: float = 0.0
    mistakes: tuple[float, ...] = MISTAKES
    spread: float = 5.0
    law: Literal["beta", "gamma"] = "beta"
    num_problems: int = 300
    seed: int = 0
    reader: Reader | None = None

    name = "chains"
    is_quick = True

    def __post_init__(self) -> None:
        fit_fields(self)
        for name, is_valid, requirement in (
            ("num_steps", self.num_steps >= 1, "be at least 1"),
            ("num_problems", self.num_problems >= 1, "be at least 1"),
            ("success", 0 < self.success < 1, "lie between 0 and 1"),
            ("separation", self.separation >= 0, "be at least 0"),
            ("systematic", 0 <= self.systematic <= 1, "lie in [0, 1]"),
            ("memory", 0 <= self.memory < 1, "lie in [0, 1)"),
            ("sharpness", self.sharpness > 0, "be more than 0"),
            ("concentration", self.concentration is None or self.concentration > 0, "be more than 0, or None"),
            ("hardness", not self.hardness or len(self.hardness) == self.num_steps, "have one number a step, or none"),
            ("hardness", min(self.hardness, default=0.0) >= 0, "be 0 or more"),
            ("hardness", not self.hardness or any(self.hardness), "be more than 0 at some step"),
            ("agreement", 0 <= self.agreement <= 1, "lie in [0, 1]"),
            ("luck", 0 <= self.luck <= 1, "lie in [0, 1]"),
            ("mistakes", 0 < len(self.mistakes) <= len(LETTERS), f"be 1 to {len(LETTERS)} chances"),
            ("mistakes", min(self.mistakes, default=0.0) >= 0, "be chances"),
            ("mistakes", math.isclose(sum(self.mistakes), 1), "sum to 1"),
            ("spread", self.spread > 0, "be more than 0"),
        ):
            if not is_valid:
                raise ConfigurationError(f"{name} must {requirement}, not {getattr(self, name)}")

    @property
    def auroc(self) -> float:
        """Φ(d′/√2): the probability that a right prefix outscores a wrong one with as many steps."""
        return NormalDist().cdf(self.separation / math.sqrt(2))

    @cached_property
    def chances(self) -> dict[str, tuple[float, ...]]:
        """(T,) p_t of each problem, by its question."""
        rng = np.random.default_rng(self.seed)
        chances = {}
        for i in range(self.num_problems):
            if self.law == "beta":
                whole = rng.beta(self.spread * self.success, self.spread * (1 - self.success))
            else:
                whole = math.exp(-rng.gamma(*self._gamma))
            shares = np.array(self.hardness or (1.0,) * self.num_steps)
            shares = shares / shares.mean()
            if self.concentration is not None:
                shares = rng.dirichlet(np.maximum(self.concentration * shares, 1e-3))
            shares = shares / shares.sum()
            chances[f"chain {i}"] = tuple((max(whole, 1e-9) ** shares).tolist())
        return chances

    @cached_property
    def _gamma(self) -> tuple[float, float]:
        """Shape and scale of the gamma law of −log p for which p has the wanted mean and variance:
        E[p^k] = (1 + k · scale)^−shape."""
        mean = self.success
        ratio = math.log(mean**2 + mean * (1 - mean) / (self.spread + 1)) / math.log(mean)  # from 1 to 2
        low, high = -14.0, 14.0  # bounds of log(scale), found by bisection
        for _ in range(60):
            middle = (low + high) / 2
            scale = math.exp(middle)
            if math.log1p(2 * scale) / math.log1p(scale) > ratio:
                low = middle
            else:
                high = middle
        return -math.log(mean) / math.log1p(scale), scale

    def problems(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        """See `motes.protocols.Task`; all splits are the same."""
        problems = [Problem(question, id=question.replace(" ", "-"), answer=RIGHT) for question in self.chances]
        return problems[:limit]

    def grade(self, problem: Problem, answer: str) -> bool:
        """See `motes.protocols.Task`."""
        return answer == RIGHT

    def check_step(self, problem: Problem, step: str) -> bool:
        """See `motes.protocols.Task`."""
        return is_right(step)

    @cached_property
    def lm(self) -> ChainLanguageModel:
        """The language model that writes the problems' chains."""
        usual, lucky = self._choose_mistakes(1, self.agreement), self._choose_mistakes(2, self.luck)
        return ChainLanguageModel(self.chances, usual, lucky, self.mistakes)

    def _choose_mistakes(self, stream: int, share: float) -> dict[str, set[str]]:
        """Choose a share of each problem's possible mistakes at random, with a random stream of their own."""
        rng = np.random.default_rng((self.seed, stream))
        names = [f"{t}{mistake}" for t in range(1, self.num_steps + 1) for mistake in LETTERS[: len(self.mistakes)]]
        return {question: {name for name in names if rng.random() < share} for question in self.chances}

    @cached_property
    def reward(self) -> ChainReward:
        """The reward model that reads the chains."""
        reader = self.reader or Gaussian(self.separation, self.memory, self.sharpness)
        return ChainReward(reader, self.num_steps, self.systematic, self.seed)


def is_right(step: str) -> bool:
    """Whether a step makes no mistake and does not state a wrong answer."""
    number, _, box = step.strip().partition(" ")
    return number.isdigit() and box in ("", f"\\boxed{{{RIGHT}}}")


@dataclass(frozen=True, eq=False)
class ChainLanguageModel:
    """A language model that writes chains. A step's second token is its wording, which does not affect its statement.

    Args:
        chances: (T,) p_t of each problem, by its question.
        usual, lucky, mistakes: see `table_of`; the first two by question.
    """

    chances: Mapping[str, tuple[float, ...]]
    usual: Mapping[str, Collection[str]]
    lucky: Mapping[str, Collection[str]]
    mistakes: Sequence[float]
    _tables: dict[str, TabularLanguageModel] = field(default_factory=dict, init=False)

    def table(self, question: str) -> TabularLanguageModel:
        """The chain of a problem, with the probability of every path. Other questions are a ConfigurationError."""
        if question not in self.chances:
            raise ConfigurationError(f"{question!r} is not a problem of this world")
        if question not in self._tables:
            table = table_of(self.chances[question], self.usual[question], self.lucky[question], self.mistakes)
            self._tables[question] = TabularLanguageModel(table)
        return self._tables[question]

    async def extend(self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]) -> list[Step]:
        """See `motes.protocols.LanguageModel`."""
        steps = []
        for trajectory, seed in zip(trajectories, seeds, strict=True):
            (step,) = await self.table(trajectory.problem.question).extend([trajectory], sampling, [seed])
            wording = 0 if sampling.temperature == 0 else seed & 0x7FFFFFFF
            token_ids = (*step.token_ids, wording)
            steps.append(Step(step.text, step.end, token_ids, step.logprob, proposal_logprob=step.proposal_logprob))
        return steps

    def __repr__(self) -> str:
        return f"ChainLanguageModel({len(self.chances)} problems)"


class Reader(Protocol):
    """A rule by which a reward model scores a prefix, given its score of the prefix one step shorter."""

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """The logit of a prefix's score.

        Args:
            before: the logit for the prefix one step shorter; None at a first step.
            was_right: whether that shorter prefix is right.
            is_right: whether this prefix is right.
            share: the prefix's share of the answer's steps, in (0, 1].
            normal: a draw from the standard normal distribution.
        """
        ...


@dataclass(frozen=True)
class Gaussian:
    """The reader with normally distributed errors that the module's docstring defines."""

    separation: float
    memory: float = 0.8
    sharpness: float = 1.0

    def next(self, before: float | None, was_right: bool, is_right: bool, share: float, normal: float) -> float:
        """See `Reader`."""
        if self.separation == 0:
            return 0.0
        scale = self.separation / self.sharpness
        error = normal
        if before is not None:
            last = before / scale - self._mean(was_right)
            error = self.memory * last + math.sqrt(1 - self.memory**2) * normal
        return scale * (self._mean(is_right) + error)

    def _mean(self, right: bool) -> float:
        return self.separation / 2 if right else -self.separation / 2


class _Reading(NamedTuple):
    """The reward model's state after a prefix: its number of steps, whether it is right, the logit of its score (None
    for the empty prefix), and digests of its statements and of its wording."""

    steps: int
    right: bool
    logit: float | None
    statement: bytes
    wording: bytes


class ChainReward:
    """A reward model that scores chains with a reader; the same prefix in the same wording always gets the same score.
    `systematic` is the share of the random variance that depends on a prefix's statements alone."""

    def __init__(self, reader: Reader, num_steps: int, systematic: float = 1.0, seed: int = 0) -> None:
        self.reader, self.num_steps, self.systematic, self.seed = reader, num_steps, systematic, seed
        self._readings: WeakKeyDictionary[Trajectory, _Reading] = WeakKeyDictionary()

    async def score(self, trajectories: Sequence[Trajectory]) -> list[list[float]]:
        """See `motes.protocols.RewardModel`."""
        return [[self._score(self._read(node)) for node in trajectory.path] for trajectory in trajectories]

    @staticmethod
    def _score(reading: _Reading) -> float:
        assert reading.logit is not None  # None is for the empty prefix, which has no score
        return 1 / (1 + math.exp(-reading.logit))

    def _read(self, node: Trajectory) -> _Reading:
        if (reading := self._readings.get(node)) is not None:
            return reading
        step, parent = node.step, node.parent
        assert step is not None
        assert parent is not None
        if parent.step is None:
            digest = _digest(str(self.seed).encode(), node.problem.plain.question.encode())
            before = _Reading(0, True, None, digest, digest)
        else:
            before = self._read(parent)
        statement = _digest(before.statement, step.text.encode())
        wording = _digest(before.wording, repr((step.text, step.token_ids)).encode())
        normal = math.sqrt(self.systematic) * normal_of(statement) + math.sqrt(1 - self.systematic) * normal_of(wording)
        steps, right = before.steps + 1, before.right and is_right(step.text)
        logit = self.reader.next(before.logit, before.right, right, steps / self.num_steps, normal)
        reading = _Reading(steps, right, logit, statement, wording)
        self._readings[node] = reading
        return reading

    def __repr__(self) -> str:
        return f"ChainReward({self.reader!r}, {self.num_steps}, {self.systematic:g})"


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()
