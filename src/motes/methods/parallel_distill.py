"""Drafts in parallel, distilled into a short workspace from which new drafts are written: PDR (arXiv 2510.01123)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from motes.arguments import fit_fields, whole_number
from motes.core import Moves, Problem, Result, Trajectory
from motes.errors import ContextLengthError, MotesError, UnknownNameError
from motes.methods.population import Aggregation, Population
from motes.methods.potential import CLIP
from motes.methods.refinement import (
    DISTIL,
    SOLVE_WITH_NOTES,
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
from motes.methods.sweep import share
from motes.smc import Weights


@dataclass(frozen=True)
class ParallelDistillRefine:
    """N drafts; in each round they are distilled into a workspace, from which the model writes N new drafts.

        S_0 = {x_1, …, x_N},  x_i ~ p
        C_r = D(S_{r−1})                       the workspace: bounded, and made anew in each round
        S_r = {x_1, …, x_N},  x_i ~ p(· | C_r)
        answer: by the selector over S_R

    The context of a draft does not grow with N or R. Needs no reward model, unless `workspace` or `selector` does.

    workspace      C
    "summary"      notes that the model writes on all drafts, the same for all new drafts
    "random"       `shown` drafts, drawn anew for each new draft
    "top"          the `shown` drafts with the best scores, the same for all new drafts

    Target. None: the answer is one of the drafts that the model writes with its own notes.

    A new draft takes the place of the old one, unless a model could not write (or score) it, a limit on the run cut it
    off, or it states no answer although the old one does. If no summary can be written, all old drafts stay; one that
    does not fit the model's context is written on half as many drafts. Drafts and notes are passed on without thoughts.

    Source: Madaan et al., PDR (arXiv 2510.01123), where the last round writes one answer; here it writes N, which vote.

    Args:
        num_drafts: N ≥ 1, of each round.
        rounds: R ≥ 0; 0 is majority vote.
        workspace: see above.
        shown: number of drafts in a workspace of drafts, at least 1.
        workspace_tokens: maximum number of tokens of a summary, its thoughts included; None: as many as an answer has.
            A summary that is cut off is used as it is.
        selector: "majority" or "sample"; with a reward model "vote", by scores, or "argmax".
        aggregation: how the step scores of an answer become its score.
        prompt, distil_prompt: the text of your own prompt, or a file that contains it: for new drafts with {question}
            and {workspace}, for the summary with {question} and {drafts}. By default
            `motes.methods.refinement.SOLVE_WITH_NOTES` and `DISTIL`.

    Raises:
        ConfigurationError: a value is out of its range, or a prompt cannot be read.
    """

    num_drafts: int
    rounds: int = 1
    workspace: Literal["summary", "random", "top"] = "summary"
    shown: int = 4
    workspace_tokens: int | None = None
    selector: str = "majority"
    aggregation: Aggregation = "last"
    prompt: str | None = None
    distil_prompt: str | None = None

    def __post_init__(self) -> None:
        fit_fields(self)
        for name, least in (("num_drafts", 1), ("rounds", 0), ("shown", 1)):
            whole_number(name, getattr(self, name), least=least)
        if self.workspace_tokens is not None:
            whole_number("workspace_tokens", self.workspace_tokens, least=1)
        if self.selector not in SELECTORS:
            raise UnknownNameError("selector", self.selector, SELECTORS)
        for name, field in (("prompt", "workspace"), ("distil_prompt", "drafts")):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, read_prompt(name, value, ("question", field)))

    @classmethod
    def of_budget(cls, budget: int, *, rounds: int = 1, **settings: Any) -> Self:
        """budget/(rounds + 1) drafts in each round; summaries are no trajectories of the budget.

        Raises:
            ConfigurationError: the budget is not a multiple of rounds + 1.
        """
        rounds = whole_number("rounds", rounds, least=0)
        return cls(share(budget, "rounds", rounds + 1), rounds, **settings)

    @property
    def budget(self) -> int:
        return self.num_drafts * (1 + self.rounds)

    @property
    def needs_reward(self) -> bool:
        """See `motes.methods.MethodTraits`."""
        return self.workspace == "top" or self.selector in ("vote", "argmax")

    async def run(self, run: Run) -> Result:
        n = self.num_drafts
        population = await run.complete(run.start(n), score=self.needs_reward)
        self._record(run, population)
        for _ in range(self.rounds):
            if run.exhausted():
                break
            # 1. Distil.
            workspaces = await self._distil(run, population)
            if run.exhausted():
                break
            # 2. Draft.
            if isinstance(workspaces, MotesError):  # there is nothing to draft from
                proposals = Population((Trajectory(run.problem).fail(workspaces),) * n, ((),) * n, population.extended)
            else:
                prompts = self._prompts(run, workspaces)
                proposals = await propose(run, population, prompts, score=self.needs_reward)
            # 3. Keep old drafts in the places of those that are incomplete.
            accepted = await find_usable(run, population, proposals, scored=self.needs_reward)
            population = move(population, proposals, accepted)
            self._record(run, population, moves_of(proposals, accepted, self.aggregation))
        weights = self._weights(population)
        return await conclude(run, population, weights, self.selector, aggregation=self.aggregation)

    def _record(self, run: Run, population: Population, moves: Moves | None = None) -> None:
        run.record(
            population,
            ancestors=np.arange(len(population)),
            weights=self._weights(population),
            resampled=False,
            aggregation=self.aggregation,
            moves=moves,
        )

    def _weights(self, population: Population) -> Weights:
        if self.selector != "vote":
            return Weights.uniform(len(population))
        scores = np.clip(population.aggregate(self.aggregation), CLIP, 1.0)  # if all are 0, they count the same
        return Weights(np.nan_to_num(np.log(scores), nan=-np.inf))

    async def _distil(self, run: Run, population: Population) -> list[str] | MotesError:
        """(N,) the workspace of each new draft, "" if there is nothing to put into it; or why there is none."""
        complete = [not t.is_cut_off for t in population.trajectories]
        scores = np.where(complete, np.nan_to_num(population.aggregate(self.aggregation), nan=-1.0), -np.inf)
        order = np.argsort(-scores, kind="stable") if self.workspace == "top" else np.arange(len(scores))
        texts = [spoken_text(population.trajectories[i]) for i in order.tolist() if complete[i]]
        drafts = [text for text in dict.fromkeys(texts) if text]
        if self.workspace == "random":
            draws = [run.rng.permutation(len(drafts))[: self.shown] for _ in range(len(population))]
            return [_numbered([drafts[i] for i in draw.tolist()]) for draw in draws]
        if self.workspace == "summary" and drafts:
            notes = await self._write_summary(run, drafts)
        else:
            notes = _numbered(drafts[: self.shown])
        return notes if isinstance(notes, MotesError) else [notes] * len(population)

    async def _write_summary(self, run: Run, drafts: Sequence[str]) -> str | MotesError:
        """The model's notes on the drafts; if these do not fit its context, on the first half of them."""
        prompt = asked(run.problem, self.distil_prompt or DISTIL, drafts=_numbered(drafts))
        sampling = run.sampling.replace(max_tokens=self.workspace_tokens or run.sampling.max_tokens).whole()
        start = Population((Trajectory(prompt),), ((),), np.zeros(1, dtype=bool))
        (notes,) = (await run.complete(start, score=False, sampling=sampling, report=False)).trajectories
        does_not_fit = isinstance(notes.error, ContextLengthError) or (notes.depth == 0 and notes.error is None)
        if does_not_fit and len(drafts) > 1 and not run.exhausted():
            return await self._write_summary(run, drafts[: len(drafts) // 2])
        return spoken_text(notes) if notes.error is None else notes.error

    def _prompts(self, run: Run, workspaces: Sequence[str]) -> list[Problem | None]:
        """(N,) the prompt of each new draft; without a workspace it is the problem's own."""
        prompt = self.prompt or SOLVE_WITH_NOTES
        prompts = {text: asked(run.problem, prompt, workspace=text) if text else run.problem for text in workspaces}
        return [prompts[text] for text in workspaces]


def _numbered(drafts: Sequence[str]) -> str:
    return "\n\n".join(f"<solution {i}>\n{draft}\n</solution {i}>" for i, draft in enumerate(drafts, start=1))
