"""The result of a run, and the record of each of its rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from motes.core.problem import Problem
from motes.core.result_html import genealogy, html
from motes.core.trajectory import Stop, Trajectory
from motes.core.usage import Usage
from motes.errors import MotesError
from motes.text import counted

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def _finite(numbers: Iterable[float | None]) -> list[float | None]:
    """Numbers as JSON has them."""
    return [float(number) if number is not None and math.isfinite(number) else None for number in numbers]


def _named(error: MotesError | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, eq=False)
class Record:
    """One round of a run.

    Attributes:
        trajectories: (N,) the population after the round.
        ancestors: (N,) the index in the previous population that each one comes from.
        log_weights: (N,) accumulated since the last resampling, unnormalised, after the round.
        scores: (N,) the reward model's score of each trajectory, NaN where it has none.
        step_scores: (N,) the scores it is made of, one per step; empty where nothing was scored.
        ess: effective sample size of `log_weights`, in [1, N].
        resampled: whether the round began by resampling.
        log_evidence: of the sweep so far; of the run, for methods that have one sweep.
        usage: spent in this round.
        sweep: which pass over the answer the round belongs to, from 0; methods of one pass have no other.
        chain: which of the run's parts side by side, from 0: a temperature of the ladder, an island.

    A particle that was dropped, because a model could not extend or score it, has log-weight −inf.
    """

    trajectories: tuple[Trajectory, ...]
    ancestors: IntArray
    log_weights: FloatArray
    scores: FloatArray
    ess: float
    resampled: bool
    log_evidence: float
    usage: Usage
    step_scores: tuple[Sequence[float], ...] = ()
    sweep: int = 0
    chain: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The round in numbers, as JSON can hold it; see `Result.to_dict`."""
        return {
            "sweep": self.sweep,
            "chain": self.chain,
            "ancestors": [int(i) for i in self.ancestors],
            "log_weights": _finite(self.log_weights),
            "scores": _finite(self.scores),
            "ess": _finite([self.ess])[0],
            "resampled": bool(self.resampled),
            "log_evidence": _finite([self.log_evidence])[0],
            "usage": self.usage.to_dict(),
        }

    @property
    def failures(self) -> dict[int, MotesError]:
        """The places of particles that are dropped, and why."""
        return {i: t.error for i, t in enumerate(self.trajectories) if t.error is not None}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run returns.

    Attributes:
        problem, method, seed: what was run.
        answer: the selected answer, None where no trajectory gave one.
        selector: how it was chosen among the weighted trajectories, see `motes.methods.SELECTORS`.
        text: the text of the trajectory that the answer is taken from; without an answer, the likeliest text that the
            model wrote, "" where it wrote none.
        posterior: normalised weight of each distinct answer, largest first. What is missing from 1 is the weight of
            trajectories without an answer.
        answers: (N,) what each trajectory answers, named as in the posterior; None for those without.
        trajectories: (N,) the final population, that of several sweeps or islands together where the method pools
            them; `log_weights`: (N,) theirs, unnormalised; `scores`: (N,) theirs, NaN where there is none.
            Where an outcome reward model had the last word, both are what it led to.
        log_evidence: estimate of the log normalising constant; None for methods that have none.
        records: one per round, in the order of (sweep, chain, round).
        usage: everything spent.
        swap_rates: (K − 1,) of parallel tempering: the share of proposed swaps between inverse temperatures k and
            k + 1 that were accepted, NaN where none was proposed. Empty for other methods.
        stopped: "deadline" or "token_budget" where that limit cut the run short: the answer is the best of what there
            was, weights, posterior and log_evidence are those of that moment, and unfinished trajectories, finished by
            the limit's name, carry no answer. At a deadline, answers that there was no time to compare are different
            ones unless their texts are equal. None: the run is complete.
        error: why the run failed, where it did; such a result is only ever found on the error that was raised.
    """

    problem: Problem
    method: str
    seed: int
    answer: str | None = None
    selector: str | None = None
    text: str = ""
    posterior: Mapping[str, float] = field(default_factory=dict)
    answers: tuple[str | None, ...] = field(default=(), repr=False)
    trajectories: tuple[Trajectory, ...] = field(default=(), repr=False)
    log_weights: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    scores: FloatArray = field(default_factory=lambda: np.zeros(0), repr=False)
    log_evidence: float | None = None
    records: tuple[Record, ...] = field(default=(), repr=False)
    usage: Usage = field(default_factory=Usage)
    stopped: Stop | None = None
    error: MotesError | None = None
    swap_rates: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it: numbers that are none, and infinite ones, are None.

        Fields:
            problem: `id`, `question`, `messages`, `answer` (the reference).
            method, seed, answer, selector, text, confidence, log_evidence, stopped, answers, scores, log_weights,
            swap_rates, posterior: as the attributes.
            trajectories: (N,) each a dict of `text`, `steps` (their texts), `finished` and `error`.
            records: each a dict of `sweep`, `chain`, `ancestors`, `log_weights`, `scores`, `ess`, `resampled`,
                `log_evidence`, `usage`; what its particles say is in none.
            usage: see `Usage`. error: the name of its class and its message, None where there is none.
        """
        same = ("method", "seed", "answer", "selector", "text", "stopped")
        return {
            "problem": {
                "id": self.problem.id,
                "question": self.problem.question,
                "messages": [dict(turn) for turn in self.problem.messages],
                "answer": self.problem.answer,
            },
            **{name: getattr(self, name) for name in same},
            "confidence": float(self.confidence),
            "posterior": {answer: float(mass) for answer, mass in self.posterior.items()},
            "answers": list(self.answers),
            "log_weights": _finite(self.log_weights),
            "scores": _finite(self.scores),
            "log_evidence": _finite([self.log_evidence])[0],
            "trajectories": [
                {
                    "text": trajectory.text,
                    "steps": [step.text for step in trajectory.steps],
                    "finished": trajectory.finished,
                    "error": _named(trajectory.error),
                }
                for trajectory in self.trajectories
            ],
            "records": [record.to_dict() for record in self.records],
            "swap_rates": _finite(self.swap_rates),
            "usage": self.usage.to_dict(),
            "error": _named(self.error),
        }

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows (`motes.core.result_html`)."""
        facts = [
            self.method,
            f"{len(self.trajectories)} {'trajectory' if len(self.trajectories) == 1 else 'trajectories'}",
            counted(len(self.records), "round"),
            f"{self.usage.total_tokens:,} tokens",
            f"seed {self.seed}",
        ]
        if self.stopped:
            facts.append(f"stopped by its {self.stopped}".replace("_", " "))
        rounds = [record.trajectories for record in self.records]
        return html(
            question=self.problem.question,
            answer=self.answer,
            confidence=self.confidence,
            facts=facts,
            error=self.error,
            posterior=self.posterior,
            genealogy=genealogy(self.trajectories, self.log_weights, rounds, self._recorded_scores()),
            text=self.text,
        )

    def _recorded_scores(self) -> dict[Trajectory, float]:
        """The score of each particle that was scored; those of records count before the final ones."""
        populations: list[Any] = [(self.trajectories, self.scores, ())]
        populations += [(record.trajectories, record.scores, record.step_scores) for record in self.records]
        found: dict[Trajectory, float] = {}
        for trajectories, scores, step_scores in populations:
            found |= {t: r for t, r in zip(trajectories, scores.tolist(), strict=False) if math.isfinite(r)}
            for trajectory, steps in zip(trajectories, step_scores, strict=False):
                if len(steps) == trajectory.depth:
                    found.update(zip(trajectory.path, map(float, steps), strict=True))
        return found

    @cached_property
    def dropped(self) -> tuple[Trajectory, ...]:
        """Every trajectory that a model could not extend or score, as recorded; its `error` says why."""
        populations = [*(record.trajectories for record in self.records), self.trajectories]
        return tuple(dict.fromkeys(t for trajectories in populations for t in trajectories if t.error is not None))

    def texts(self) -> dict[str, str]:
        """For each answer of the posterior, largest first, a text that gives it: the result's own, or the one that
        scores best. Dropped trajectories give no answer."""
        scores = np.nan_to_num(self.scores, nan=-np.inf).tolist()
        best: dict[str | None, int] = {}
        for i, answer in enumerate(self.answers):
            if answer not in best or scores[i] > scores[best[answer]]:
                best[answer] = i
        texts = {answer: self.trajectories[best[answer]].text for answer in self.posterior if answer != self.answer}
        return {answer: texts.get(answer, self.text) for answer in self.posterior}

    @cached_property
    def confidence(self) -> float:
        """Posterior mass of the answer given, in [0, 1]; 0 without an answer."""
        return self.posterior.get(self.answer, 0.0) if self.answer is not None else 0.0
