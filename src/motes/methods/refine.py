"""Whole answers as particles, which the language model itself refines: PRISM (arXiv 2603.02479)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import FloatArray, IntArray, Problem, Result, Trajectory
from motes.errors import ConfigurationError, UnknownNameError
from motes.methods.population import Aggregation, BoolArray, Population
from motes.methods.potential import CLIP, Link, log_potential
from motes.methods.refinement import (
    REFINE,
    REFINE_BY_CRITIQUE,
    asked,
    find_usable,
    move,
    moves_of,
    propose,
    read_prompt,
    spoken_text,
)
from motes.methods.run import Run
from motes.methods.selectors import SELECTORS, conclude
from motes.methods.sweep import Sweep, pool, share
from motes.protocols import RewardModelTraits
from motes.smc import RESAMPLING, Weights, resample


@dataclass(frozen=True)
class Refine:
    """N whole answers; in each round they are resampled by their scores, and the model writes each of them again.

        x_i ~ p                                       N drafts, w_i = φ(x_i)
        each of R rounds:
            a ~ resample(W), w = 1                    if ESS < ess_threshold · N
            x' ~ q(· | x_i)                           the model sees the question and x_i, and writes an answer
            x_i ← x'  if accepted, w_i ← w_i · G
        answer: by the selector over the last population, or over all

    φ = link(r)^beta, r the score of the whole answer, clipped to [1e−7, 1]: an answer that a checker refuses can still
    be refined.

    accept         x' replaces x
    "metropolis"   with probability min(1, φ(x')/φ(x))
    "better"       if r(x') > r(x)
    "always"       always

    Target. With K the move, its acceptance included, G = φ(x_new)/φ(x_old), and the target is (p K^R)(x) · φ(x): the
    distribution of answers after R moves, times φ. Ẑ (of Z = E[φ] under p K^R) and Ẑ · ΣWf are unbiased for every N,
    rule and threshold. With "always", p K^R is the distribution of answers that were refined R times. With the other
    two it is one that φ has shaped already: "metropolis" is not a Metropolis–Hastings step, because the density q(x'|x)
    of a refinement is unknown and left out of the ratio, so that K does not leave p · φ invariant. With
    `move="fresh"`, x' ~ p is a new draft, and "metropolis" is exact: the ratio of an independence sampler is
    φ(x')/φ(x). Then G = 1, and the target is p(x) · φ(x), whatever R.

    A proposal is not accepted if a model could not write or score it (it does not fit the context, say), if a limit on
    the run cut it off, or if it states no answer although the refined answer does: the particle stays. `Record.moves`
    has all proposals. The prompt contains an answer without its thoughts; if nothing else is left of it, the proposal
    is a new draft.

    Source: Sharma, Chen, Provenzano, Vu, PRISM (arXiv 2603.02479) for the loop of scoring, resampling, refinement and
    acceptance; "fresh" with "metropolis" is a resample-move filter (Gilks, Berzuini, 2001).

    Args:
        num_particles: N ≥ 1.
        rounds: R ≥ 0; 0 is weighted best-of-N.
        accept: see above.
        move: "refine" or "fresh".
        link, beta: of φ, see `motes.methods.potential`.
        ess_threshold: resample when ESS falls below this fraction of N; 1 always, 0 never.
        resampling: "multinomial", "stratified", "systematic" or "residual".
        settled: answers with at least this score are not refined, which saves tokens; more than 1: all are. It does not
            concern new drafts.
        elites: number of particles with the best scores that are neither resampled nor moved in a round, less than N.
            With elites there is no target.
        pool: the answers that the selector chooses from: "last", those of the last round, or "all", those of all
            rounds, drafts included, each round with the same weight.
        selector: "vote", "argmax", "sample" or "majority".
        aggregation: how the step scores of an answer become r: "last", "min", "prod" or "mean".
        prompt: the text of your own prompt, or a file that contains it, with {question} and {answer}, and if you like
            {critique}, what a judge says about the answer, and {score}. By default `motes.methods.refinement.REFINE`,
            or REFINE_BY_CRITIQUE if the reward model has a critique.

    Raises:
        ConfigurationError: a value is out of its range, or the prompt cannot be read.
    """

    num_particles: int
    rounds: int = 3
    accept: Literal["metropolis", "better", "always"] = "metropolis"
    move: Literal["refine", "fresh"] = "refine"
    link: Link = "probability"
    beta: float = 1.0
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    settled: float = 1.0
    elites: int = 0
    pool: Literal["last", "all"] = "last"
    selector: str = "vote"
    aggregation: Aggregation = "last"
    prompt: str | None = None

    def __post_init__(self) -> None:
        fit_fields(self)
        whole_number("num_particles", self.num_particles, least=1)
        whole_number("rounds", self.rounds, least=0)
        if not (self.beta >= 0.0 and np.isfinite(self.beta)):
            raise ConfigurationError(f"beta must be finite and at least 0, not {self.beta}")
        if not 0.0 <= self.ess_threshold <= 1.0:
            raise ConfigurationError(f"ess_threshold is a fraction of N in [0, 1], not {self.ess_threshold}")
        if not self.settled >= 0.0:
            raise ConfigurationError(f"settled is a score, at least 0, not {self.settled}")
        if not 0 <= self.elites < self.num_particles:
            raise ConfigurationError(f"elites must be at least 0 and less than num_particles, not {self.elites}")
        if self.resampling not in RESAMPLING:
            raise UnknownNameError("resampling scheme", self.resampling, RESAMPLING)
        if self.selector not in SELECTORS:
            raise UnknownNameError("selector", self.selector, SELECTORS)
        if self.prompt is not None:
            text = read_prompt("prompt", self.prompt, ("question", "answer"), ("critique", "score"))
            object.__setattr__(self, "prompt", text)

    @classmethod
    def of_budget(cls, budget: int, *, rounds: int = 3, **settings: Any) -> Self:
        """budget/(rounds + 1) particles, each drawn once and moved `rounds` times.

        Raises:
            ConfigurationError: the budget is not a multiple of rounds + 1.
        """
        rounds = whole_number("rounds", rounds, least=0)
        return cls(share(budget, "rounds", rounds + 1), rounds, **settings)

    @property
    def budget(self) -> int:
        return self.num_particles * (1 + self.rounds)

    async def run(self, run: Run) -> Result:
        n = self.num_particles
        population = await run.complete(run.start(n))
        weights = population.without_dropped(Weights(np.nan_to_num(self._log_phi(population), nan=-np.inf)))
        log_evidence = 0.0  # of the intervals that ended with a resampling
        self._record(run, population, np.arange(n), weights, log_evidence)
        sweeps = [Sweep(population, weights, log_evidence, 1)]
        while len(sweeps) <= self.rounds and self._find_movable(population).any() and not run.exhausted():
            # 1. Resample.
            ancestors, stays = np.arange(n), np.isin(np.arange(n), best := self._best(population))
            if resampled := self.ess_threshold >= 1.0 or weights.ess < self.ess_threshold * n:
                drawn = resample(run.rng, weights.normalized, n - self.elites, self.resampling)
                ancestors, stays = np.concatenate([best, drawn]), np.arange(n) < self.elites
                log_evidence, weights = log_evidence + weights.log_mean, Weights.uniform(n)
            population = population.select(ancestors)
            # 2. Move.
            prompts = self._prompts(run, population, self._find_movable(population) & ~stays)
            proposals = await propose(run, population, prompts, score=True)
            accepted = await self._accept(run, population, proposals)
            # 3. Reweight.
            if not self._is_exact:
                increment = self._log_phi(proposals) - self._log_phi(population)
                weights = weights.add(np.where(accepted, increment, 0.0))
            population = move(population, proposals, accepted)
            moves = moves_of(proposals, accepted, self.aggregation)
            self._record(run, population, ancestors, weights, log_evidence, resampled=resampled, moves=moves)
            sweeps.append(Sweep(population, weights, log_evidence, 1))
        if self.pool == "all":
            population, pooled = pool(sweeps)
        else:
            pooled = weights
        has_evidence = not self.elites and not weights.degenerate
        return await conclude(
            run,
            population,
            pooled,
            self.selector,
            aggregation=self.aggregation,
            log_evidence=log_evidence + weights.log_mean if has_evidence else None,
        )

    @property
    def _is_exact(self) -> bool:
        """Whether a move leaves p · φ invariant."""
        return self.move == "fresh" and self.accept == "metropolis"

    def _record(
        self,
        run: Run,
        population: Population,
        ancestors: IntArray,
        weights: Weights,
        log_evidence: float,
        **more: Any,
    ) -> None:
        estimate = np.nan if self.elites else log_evidence + weights.log_mean
        settings = {"resampled": False, "aggregation": self.aggregation, **more}
        run.record(population, ancestors=ancestors, weights=weights, log_evidence=estimate, **settings)

    def _log_phi(self, population: Population) -> FloatArray:
        """(N,) log φ; NaN for a particle without a score."""
        return log_potential(np.clip(population.aggregate(self.aggregation), CLIP, 1.0), self.link, self.beta)

    def _find_movable(self, population: Population) -> BoolArray:
        """(N,) whether each particle is a whole answer that is not good enough yet."""
        scores = population.aggregate(self.aggregation)  # of a particle that was dropped or cut off: NaN
        whole = np.array([not t.is_cut_off for t in population.trajectories], dtype=bool)
        return whole & ~np.isnan(scores) & ((self.move == "fresh") | ~(scores >= self.settled))

    def _best(self, population: Population) -> IntArray:
        """(elites,) the particles with the best scores, the first of equal ones."""
        scores = np.nan_to_num(population.aggregate(self.aggregation), nan=-np.inf)
        return np.argsort(-scores, kind="stable")[: self.elites].astype(np.int64)

    def _prompts(self, run: Run, population: Population, movable: BoolArray) -> list[Problem | None]:
        """(N,) the prompt by which each particle is moved; None for one that stays. Copies of a particle have the same
        prompt, so that they share its computation."""
        scores = population.aggregate(self.aggregation)
        prompts: dict[Trajectory, Problem] = {}
        for i in np.flatnonzero(movable).tolist():
            trajectory = population.trajectories[i]
            if trajectory not in prompts:
                prompts[trajectory] = self._prompt(run, trajectory, scores[i])
        pairs = zip(population.trajectories, movable.tolist(), strict=True)
        return [prompts[trajectory] if moves else None for trajectory, moves in pairs]

    def _prompt(self, run: Run, trajectory: Trajectory, score: float) -> Problem:
        answer = spoken_text(trajectory)
        if self.move == "fresh" or not answer:
            return run.problem
        tell = RewardModelTraits(run.reward).critique
        critique = (tell(trajectory) or "") if tell is not None else ""
        prompt = self.prompt or (REFINE_BY_CRITIQUE if critique else REFINE)
        return asked(run.problem, prompt, answer=answer, critique=critique, score=f"{score:.2f}")

    async def _accept(self, run: Run, population: Population, proposals: Population) -> BoolArray:
        """(N,) whether each proposal replaces its particle."""
        uniforms = run.rng.random(len(population))
        # Whether a new draft states an answer must not matter, or the move would not be exact.
        usable = await find_usable(run, population, proposals, scored=True, keeps_answer=self.move == "refine")
        if self.accept == "always":
            return usable
        if self.accept == "better":
            after, before = (each.aggregate(self.aggregation) for each in (proposals, population))
            return usable & (after > before)
        log_ratio = self._log_phi(proposals) - self._log_phi(population)
        with np.errstate(invalid="ignore"):
            return np.asarray(usable & (uniforms < np.exp(np.minimum(0.0, log_ratio))))
