"""Deep thinking with confidence: a vote among the answers of which the model was certain (arXiv 2508.15260)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.confidence import TOP_LOGPROBS, WINDOW, Confidences, Measure, measure_trajectory
from motes.core import FloatArray, Result, Sampling, Trajectory
from motes.errors import ConfigurationError, EngineError
from motes.methods.requirements import require_certainty
from motes.methods.run import Run
from motes.methods.selectors import conclude
from motes.methods.sequential import Draws, population_of
from motes.protocols import LanguageModel
from motes.smc import Weights

ROUNDING = 1e-4
"""Relative difference of two confidences that are the same: equal answers must not fall on both sides of a threshold
because they were computed in other batches."""


@dataclass(frozen=True)
class DeepConf:
    """A vote among N answers, weighted by the model's confidence, without those of low confidence. No reward model.

        c_i   confidence of answer i by `measure`, see `motes.confidence`
        s     the (1 − keep)-quantile of the confidences of the first answers
        vote  Σ c_i over the answers with c_i ≥ s; over all, if none of these states an answer

    "offline" draws all N answers, and s is a quantile of all of them. "online" draws `warmup` answers, from which s is
    fixed; of the others, each is stopped as soon as the mean confidence of its last `window` tokens falls below s, and
    all of them as soon as one answer has the share `consensus` of the vote. A stopped answer does not vote; its tokens
    up to there are the cost. It is checked where its steps end: set how often by the sampling (`--step-tokens`).
    Models that write whole answers only cannot be stopped within one.

    The answers, in order, are those of `Majority` with the same seed.

    Source: Fu, Wang, Tian, Zhao, "Deep think with confidence" (arXiv 2508.15260), algorithms 1 and 2. Its settings are
    keep = 0.1 and 0.9 ("low" and "high"), a window of 2,048 tokens, 16 answers to begin with and a consensus of 0.95,
    for answers of ten thousand tokens and more. Choose a window of about a tenth of your answers.

    Args:
        n: N, number of answers at most.
        mode: "online" or "offline".
        keep: share of the answers that vote, in (0, 1].
        measure: "lowest", "tail", "bottom" or "certainty". In "online" answers are stopped by their lowest window.
        window: number of tokens of a window.
        warmup: number of answers, at most N, that "online" begins with.
        consensus: share of the vote that ends "online"; more than 1: never.
        num_in_flight: number of answers that "online" draws at once.
        top_logprobs: number of likeliest tokens from which the confidence of a token is computed.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    needs_reward: ClassVar[bool] = False

    n: int
    mode: Literal["online", "offline"] = "online"
    keep: float = 0.1
    measure: Measure = "lowest"
    window: int = WINDOW
    warmup: int = 16
    consensus: float = 0.95
    num_in_flight: int = 16
    top_logprobs: int = TOP_LOGPROBS

    def __post_init__(self) -> None:
        fit_fields(self)
        for name in ("n", "window", "warmup", "num_in_flight"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("top_logprobs", self.top_logprobs, least=2)
        if not 0 < self.keep <= 1:
            raise ConfigurationError(f"keep is a share of the answers, in (0, 1], not {self.keep}")
        if not self.consensus > 0.5:
            raise ConfigurationError(f"consensus is a share of the vote of more than 0.5, not {self.consensus}")
        if self.measure == "entropy":
            raise ConfigurationError("deepconf measures confidence: 'lowest', 'tail', 'bottom' or 'certainty'")

    @property
    def budget(self) -> int:
        return self.n

    def require(self, lm: LanguageModel, sampling: Sampling) -> None:
        """See `motes.methods.MethodTraits`."""
        require_certainty(lm, self._sampling(sampling))

    def _sampling(self, sampling: Sampling) -> Sampling:
        return sampling.replace(top_logprobs=max(self.top_logprobs, sampling.top_logprobs))

    async def run(self, run: Run) -> Result:
        is_online = self.mode == "online"
        confidences = Confidences(self.window)
        draws = Draws(run, self.n, self.num_in_flight if is_online else self.n, self._sampling(run.sampling))
        # 1. Draw the answers from which the thresholds are computed.
        num_first = min(self.warmup, self.n) if is_online else self.n
        await draws.draw(num_first, check=partial(_checked, confidences=confidences))
        values = [_measure(trajectory, self.measure, confidences) for trajectory in draws.trajectories]
        threshold = self._threshold(values)
        # 2. Draw the others, and stop those of low confidence, until there is a consensus.
        is_done = num_first == self.n or run.exhausted()
        if not is_done and not await self._has_consensus(run, draws.trajectories, values, threshold):
            stop_below = self._threshold([_measure(t, "lowest", confidences) for t in draws.trajectories])

            async def is_enough(trajectories: Sequence[Trajectory]) -> bool:
                values.append(_measure(trajectories[-1], self.measure, confidences))
                return await self._has_consensus(run, trajectories, values, threshold)

            check = partial(_checked, confidences=confidences, stop_below=stop_below)
            await draws.draw(self.n, is_enough=is_enough, check=check)
        # 3. Let those vote of which the model was certain.
        trajectories = draws.trajectories
        if not (await self._votes(run, trajectories, values, threshold)).any():
            threshold = -np.inf
        weights = _weights(values, threshold)
        running = "lowest" if self.measure == "bottom" else self.measure
        scores = [() if t.finished == "failed" else tuple(confidences.scores(t, running)) for t in trajectories]
        population = population_of(trajectories, scores)
        run.record(population, ancestors=np.arange(len(trajectories)), weights=weights, resampled=False)
        return await conclude(run, population, weights, "vote")

    def _threshold(self, values: Sequence[float]) -> float:
        """The value that the share `keep` of the values reaches, up to rounding; minus infinity if there are none."""
        known = [value for value in values if not np.isnan(value)]
        return float(np.quantile(known, 1 - self.keep)) * (1 - ROUNDING) if known else -np.inf

    async def _votes(
        self, run: Run, trajectories: Sequence[Trajectory], values: Sequence[float], threshold: float
    ) -> FloatArray:
        """The votes for each answer that at least one answer of enough confidence states."""
        totals: dict[str, float] = {}
        for answer, value in zip(await run.answers(trajectories), values, strict=True):
            if answer is not None and value >= threshold:
                totals[answer] = totals.get(answer, 0.0) + value
        return np.array(list(totals.values()))

    async def _has_consensus(
        self, run: Run, trajectories: Sequence[Trajectory], values: Sequence[float], threshold: float
    ) -> bool:
        """Whether one answer has the share `consensus` of the vote."""
        votes = await self._votes(run, trajectories, values, threshold)
        return bool(votes.max(initial=0.0) >= self.consensus * votes.sum() > 0)


def _checked(trajectory: Trajectory, confidences: Confidences, stop_below: float = -np.inf) -> Trajectory:
    """The partial answer: dropped if its confidence is unknown, stopped if its lowest window is below `stop_below`."""
    try:
        lowest = confidences.of(trajectory).lowest
    except EngineError as error:
        return trajectory.fail(error)
    is_low = trajectory.finished is None and lowest < stop_below
    return trajectory.finish("low_confidence") if is_low else trajectory


def _measure(trajectory: Trajectory, measure: Measure, confidences: Confidences) -> float:
    """The confidence of an answer; NaN if it was stopped or dropped, or has no token."""
    return np.nan if trajectory.is_cut_off else measure_trajectory(trajectory, measure, confidences)


def _weights(values: Sequence[float], threshold: float) -> Weights:
    """The confidences as weights, zero for those below the threshold; equal weights if all are zero."""
    confidences = np.array(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = Weights(np.where(confidences >= threshold, np.log(np.maximum(confidences, 0.0)), -np.inf))
    return Weights.uniform(len(values)) if weights.degenerate else weights
