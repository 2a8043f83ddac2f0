"""Searches: beam search, its split into subtrees (DVTS), and REBASE. Each round continues the best of N candidates.

A search has N slots. A finished candidate keeps its slot and costs nothing more. The slots of the L unfinished ones are
open: each round allocates them again. So a round extends L ≤ N candidates, the search ends with exactly N trajectories,
and a budget buys as many answers as with any other method. Searches differ only in how they allocate the open slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import FloatArray, IntArray, Result, Sampling
from motes.errors import ConfigurationError, UnknownNameError
from motes.methods.population import Aggregation, Population
from motes.methods.requirements import require_steps
from motes.methods.run import Run
from motes.methods.selectors import SELECTORS, conclude, score_weights
from motes.protocols import LanguageModel
from motes.smc import Weights


@dataclass(frozen=True)
class _Search:
    """select → extend → score, until every candidate is finished."""

    one_population: ClassVar[bool] = True

    n: int
    aggregation: Aggregation = field(default="last", kw_only=True)
    selector: str = field(default="vote", kw_only=True)

    def __post_init__(self) -> None:
        whole_number("n", self.n, least=1)
        fit_fields(self)
        if self.selector not in SELECTORS:
            raise UnknownNameError("selector", self.selector, SELECTORS)

    @property
    def budget(self) -> int:
        return self.n

    @property
    def num_subtrees(self) -> int:
        """Number of parts of the search that do not compete with each other."""
        return 1

    def require(self, lm: LanguageModel, sampling: Sampling) -> None:
        """See `motes.methods.MethodTraits`."""
        require_steps(lm, sampling)

    async def run(self, run: Run) -> Result:
        population = run.start(self.n)
        ancestors = np.arange(self.n)
        while population.alive:
            if selected := bool(run.records):
                ancestors = self._select(population)
            population = await run.extend(population.select(ancestors))
            run.record(
                population,
                ancestors=ancestors,
                weights=Weights.uniform(self.n),  # a search has no weights
                resampled=selected,
                aggregation=self.aggregation,
            )
        weights = score_weights(population, self.aggregation)
        return await conclude(run, population, weights, self.selector, aggregation=self.aggregation)

    def _select(self, population: Population) -> IntArray:
        """(N,) for each slot, the candidate that fills it; a finished candidate keeps its slot."""
        alive = np.array([trajectory.finished is None for trajectory in population.trajectories])
        scores = population.aggregate(self.aggregation)
        ancestors = np.arange(self.n)
        for subtree in ancestors.reshape(self.num_subtrees, -1).copy():
            live = subtree[alive[subtree]]
            ancestors[live] = live[self._allocate_slots(scores[live])]
        return ancestors

    def _allocate_slots(self, scores: FloatArray) -> IntArray:
        """(L,) for each of the L open slots, the index of the candidate that fills it, in ascending order.

        Args:
            scores: (L,) of the unfinished candidates.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BeamSearch(_Search):
    """In each round the best N/M of N candidates are continued M times each.

    Once F candidates are finished, L = N − F slots are open: the best ⌈L/M⌉ candidates fill M of them each, the last of
    these the remaining ones. Of equal scores the earlier slot comes first. Continuations of one candidate share its
    prefix in the engine's cache.

    The answer is selected from the finished candidates: "vote" weighs each by its score, "argmax" takes the largest
    score. If none of them states an answer (limits cut all of them off), the answer is None.

    Source: Snell, Lee, Xu, Kumar, "Scaling LLM test-time compute optimally …" (arXiv 2408.03314), section 5.

    Args:
        n: N, the number of trajectories: a multiple of `beam_width`, or less than it.
        beam_width: M, the number of continuations of each selected candidate; n if that is less, so that n = 1 is plain
            sampling. With M = 1 no candidate is ever dropped.
        aggregation: how a candidate's score is computed from its step scores.
        selector: "vote", "argmax", "sample" (all with the scores as weights) or "majority".

    Raises:
        ConfigurationError: a value is out of its range.
    """

    beam_width: int = 4

    def __post_init__(self) -> None:
        whole_number("beam_width", self.beam_width, least=1)
        super().__post_init__()
        if self.n % self.width:
            below = self.n - self.n % self.width
            raise ConfigurationError(
                f"n must be a multiple of beam_width, and {self.n} is not one of {self.beam_width}: "
                f"use n={below} or n={below + self.width}, or another beam_width"
            )

    @property
    def width(self) -> int:
        """M: the smaller of `beam_width` and n."""
        return min(self.beam_width, self.n)

    def _allocate_slots(self, scores: FloatArray) -> IntArray:
        best_first = np.argsort(-scores, kind="stable")
        return np.sort(np.repeat(best_first, self.width)[: len(scores)])


@dataclass(frozen=True)
class DVTS(BeamSearch):
    """Diverse verifier tree search: beam search in N/M subtrees of M slots, each of which continues its best candidate.

    Subtrees never compete, so that answers stay as diverse as their first steps. A subtree with F finished candidates
    continues its best unfinished one in the other M − F slots, and ends when all M are finished.

    Source: Beeching, Tunstall, Rush, "Scaling test-time compute with open models" (Hugging Face, 2024).

    Args and Raises: as for `BeamSearch`.
    """

    @property
    def num_subtrees(self) -> int:
        return self.n // self.width


@dataclass(frozen=True)
class Rebase(_Search):
    """Reward-balanced search: every candidate is continued in proportion to softmax(score / temperature).

        c_i = round(L_i · e^{r_i/τ} / Σ_{j≥i} e^{r_j/τ}),   best first, with L_1 = L and L_{i+1} = L_i − c_i

    L is the number of unfinished candidates. As in the authors' code each share is taken of the slots that better
    candidates left open, so that the counts add up to L. Halves are rounded up. The answer is selected as in
    `BeamSearch`.

    Source: Wu, Sun, Li, Welleck, Yang, "Inference scaling laws …" (arXiv 2408.00724), section 3.

    Args:
        n: N, the number of trajectories.
        balance_temperature: τ > 0; as it goes to 0 only the best is continued, as it goes to infinity all are, evenly.
        aggregation, selector: as for `BeamSearch`; errors as there.
    """

    balance_temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.balance_temperature > 0 and np.isfinite(self.balance_temperature)):
            raise ConfigurationError(
                f"balance_temperature must be finite and greater than 0, not {self.balance_temperature}"
            )

    def _allocate_slots(self, scores: FloatArray) -> IntArray:
        open_slots = len(scores)
        counts = np.zeros(open_slots, dtype=np.int64)
        best_first = np.argsort(-scores, kind="stable")
        weights = np.exp((scores[best_first] - scores.max(initial=0.0)) / self.balance_temperature)
        for i, weight, rest in zip(best_first, weights, np.cumsum(weights[::-1])[::-1], strict=True):
            if open_slots == 0:  # the remaining shares may be 0 / 0
                break
            counts[i] = np.floor(open_slots * (weight / rest) + 0.5)
            open_slots -= counts[i]
        return np.repeat(np.arange(len(scores)), counts)
