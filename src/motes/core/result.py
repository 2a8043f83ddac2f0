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
from motes.thoughts import split

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def _finite(numbers: Iterable[float | None]) -> list[float | None]:
    """The numbers for JSON, which has no NaN and no infinity: these become None."""
    return [float(number) if number is not None and math.isfinite(number) else None for number in numbers]


def _format_error(error: MotesError | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, eq=False)
class Moves:
    """The moves of a round in which whole answers are replaced by others, as by `motes.methods.Refine`.

    Attributes:
        trajectories: (N,) the answer proposed in each place; the particle itself where none was proposed. A proposal
            that a model could not write or score has an `error`; the particle in its place stays.
        scores: (N,) the reward model's score of each; NaN if it has none.
        step_scores: (N,) the scores of each one's steps; empty if it was not scored.
        accepted: (N,) whether the proposal has replaced the particle.
    """

    trajectories: tuple[Trajectory, ...]
    scores: FloatArray
    step_scores: tuple[Sequence[float], ...]
    accepted: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Record:
    """One round of a run.

    Attributes:
        trajectories: (N,) the population after the round.
        ancestors: (N,) for each trajectory, the index of its ancestor in the previous population.
        log_weights: (N,) unnormalised log-weights after the round, accumulated since the last resampling.
        scores: (N,) the reward model's score of each trajectory; NaN if it has none.
        step_scores: (N,) the scores of each trajectory's steps; empty if it was not scored.
        ess: effective sample size of `log_weights`, in [1, N].
        resampled: whether the round began by resampling.
        log_evidence: estimate for the sweep so far; NaN for methods without one.
        usage: the cost of this round.
        sweep: number of the sweep that the round belongs to, from 0.
        chain: number of the chain or island that the round belongs to, from 0.
        moves: the answers that the round proposed in the place of others; None for methods that extend answers.

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
    moves: Moves | None = None

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the round as JSON can hold them; see `Result.to_dict`."""
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
            **({} if self.moves is None else {"accepted": self.moves.accepted.tolist()}),
        }

    @property
    def failures(self) -> dict[int, MotesError]:
        """The error of each dropped particle, by the particle's index."""
        return {i: t.error for i, t in enumerate(self.trajectories) if t.error is not None}


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a run.

    Attributes:
        method: the method's name.
        answer: the selected answer; None if no trajectory states one.
        selector: name of the rule that selected it, see `motes.methods.SELECTORS`.
        text: the text of the selected trajectory; without an answer, the likeliest text that the model wrote, "" if
            there is none.
        posterior: normalised weight of each distinct answer, largest first. The sum is less than 1 if trajectories
            without an answer have weight.
        answers: (N,) the answer of each trajectory, by its name in the posterior; None if it states none.
        trajectories: (N,) the final population; that of all sweeps or islands if the method pools them.
        log_weights: (N,) unnormalised, after reweighting by an outcome reward model if the run had one.
        scores: (N,) final score of each trajectory, by the outcome reward model if the run had one; NaN without score.
        log_evidence: estimate of the log normalising constant; None for methods that have none.
        records: one per round, in the order of (sweep, chain, round).
        usage: the cost of the run.
        swap_rates: (K − 1,) for parallel tempering, the share of proposed swaps between inverse temperatures k and
            k + 1 that were accepted, NaN if none was proposed. Empty for other methods.
        stopped: "deadline" or "token_budget" if that limit ended the run early: the answer is the best one so far,
            weights, posterior and log_evidence are those at that moment, and unfinished trajectories have the limit's
            name as `finished` and no answer. After a deadline, answers that were not compared in time are different
            unless their texts are equal. None: the run is complete.
        error: why the run failed. Only the `result` of a raised error has one.
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

    @cached_property
    def selected(self) -> Trajectory | None:
        """The selected trajectory, whose text is `text`; None if there is none."""
        return next((t for t in self.trajectories if t.error is None and t.text == self.text), None)

    @property
    def thoughts(self) -> str:
        """What the model thinks in `text`, without tags, see `motes.thoughts.split`."""
        return split(self.text)[0]

    @property
    def content(self) -> str:
        """What the model says in `text`: all of it but its thoughts."""
        return split(self.text)[1]

    @property
    def thought_tokens(self) -> int:
        """Number of tokens of thought in `text`, see `motes.core.thinking`. (`usage` counts those of all
        trajectories.)"""
        return 0 if self.selected is None else self.selected.thought_tokens

    @property
    def content_tokens(self) -> int:
        """Number of the other tokens of `text`."""
        return 0 if self.selected is None else self.selected.num_tokens - self.selected.thought_tokens

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it: NaN and infinite numbers become None.

        Fields:
            problem: `id`, `question`, `messages`, `answer` (the reference).
            method, seed, answer, selector, text, thoughts, content, thought_tokens, content_tokens, confidence,
            log_evidence, stopped, answers, scores, log_weights, swap_rates, posterior: as the attributes.
            trajectories: (N,) each a dict of `text`, `steps` (their texts), `tokens`, `thought_tokens`, `finished` and
                `error`.
            records: each a dict of `sweep`, `chain`, `ancestors`, `log_weights`, `scores`, `ess`, `resampled`,
                `log_evidence`, `usage`, without the texts of its particles; for methods that move whole answers also
                `accepted`, see `Moves`.
            usage: see `Usage`. error: the name of its class and its message; None if there is none.
        """
        unchanged = ("method", "seed", "answer", "selector", "text", "stopped", "thought_tokens", "content_tokens")
        thoughts, content = split(self.text)
        return {
            "problem": {
                "id": self.problem.id,
                "question": self.problem.question,
                "messages": [dict(turn) for turn in self.problem.messages],
                "answer": self.problem.answer,
            },
            **{name: getattr(self, name) for name in unchanged},
            "thoughts": thoughts,
            "content": content,
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
                    "tokens": trajectory.num_tokens,
                    "thought_tokens": trajectory.thought_tokens,
                    "finished": trajectory.finished,
                    "error": _format_error(trajectory.error),
                }
                for trajectory in self.trajectories
            ],
            "records": [record.to_dict() for record in self.records],
            "swap_rates": _finite(self.swap_rates),
            "usage": self.usage.to_dict(),
            "error": _format_error(self.error),
        }

    def _repr_html_(self) -> str:
        """The HTML that a notebook shows (`motes.core.result_html`)."""
        thought = self.usage.thought_tokens
        facts = [
            self.method,
            f"{len(self.trajectories)} {'trajectory' if len(self.trajectories) == 1 else 'trajectories'}",
            counted(len(self.records), "round"),
            f"{self.usage.total_tokens:,} tokens" + (f", {thought:,} of them thought" if thought else ""),
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
        """The score of each particle that has one; a recorded score replaces the final one."""
        populations: list[Any] = [(self.trajectories, self.scores, ())]
        populations += [(record.trajectories, record.scores, record.step_scores) for record in self.records]
        score_of: dict[Trajectory, float] = {}
        for trajectories, scores, step_scores in populations:
            for trajectory, score in zip(trajectories, scores.tolist(), strict=False):
                if math.isfinite(score):
                    score_of[trajectory] = score
            for trajectory, steps in zip(trajectories, step_scores, strict=False):
                if len(steps) == trajectory.depth:
                    score_of.update(zip(trajectory.path, map(float, steps), strict=True))
        return score_of

    @cached_property
    def dropped(self) -> tuple[Trajectory, ...]:
        """Every trajectory that a model could not extend or score, as recorded; its `error` says why."""
        populations = [*(record.trajectories for record in self.records), self.trajectories]
        return tuple(dict.fromkeys(t for trajectories in populations for t in trajectories if t.error is not None))

    def texts(self) -> dict[str, str]:
        """For each answer of the posterior, largest first, a text that states it: for the selected answer `text`, for
        others the text with the best score."""
        scores = np.nan_to_num(self.scores, nan=-np.inf).tolist()
        best: dict[str | None, int] = {}
        for i, answer in enumerate(self.answers):
            if answer not in best or scores[i] > scores[best[answer]]:
                best[answer] = i
        texts = {answer: self.trajectories[best[answer]].text for answer in self.posterior if answer != self.answer}
        return {answer: texts.get(answer, self.text) for answer in self.posterior}

    @cached_property
    def confidence(self) -> float:
        """Posterior mass of the selected answer, in [0, 1]; 0 without an answer."""
        return self.posterior.get(self.answer, 0.0) if self.answer is not None else 0.0
