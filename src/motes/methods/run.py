"""The one place that extends, scores and counts.

A `Run` works on one problem: it turns a population into the next one, counts the cost and keeps the records.
Methods (`Method`) differ in *selection* alone.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from motes.concurrency import CallBatcher, Origin, gather, working_for
from motes.core import STOPS, Failure, Moves, Problem, Record, Result, Sampling, Step, Trajectory, Usage
from motes.errors import ConfigurationError, ContextLengthError, DegenerateWeightsError, NoParticlesError
from motes.ledger import Call, Ledger, cost_alone
from motes.methods.answers import Answers, state_final_answers
from motes.methods.calls import request_scores, request_steps
from motes.methods.limits import Limits
from motes.methods.population import Aggregation, Population
from motes.methods.requirements import require_steps, require_thinking, sampling_for
from motes.methods.thinking import Bounds, Form, form_of, num_own_steps
from motes.protocols import (
    AnswerRule,
    LanguageModel,
    LanguageModelTraits,
    RewardModel,
    RewardModelTraits,
)
from motes.smc import Weights

T = TypeVar("T")

Observer = Callable[["Run", Record], None]
ProgressCallback = Callable[[Sequence[Trajectory]], None]


@dataclass(eq=False)
class Run:
    """One problem worked on by one method with one seed.

    Args:
        sampling: the run adds what its reward model reads, see `motes.methods.requirements.sampling_for`.
        rng: the run's only source of randomness; every particle's seed is drawn from it.
        observe: called with each new record; must not block.
        on_progress: called with the current partial answers whenever any of them has grown, by methods that draw
            complete trajectories; must not block.
        limits: on time and tokens. `extend` and `complete` respect them: they finish trajectories that cannot be
            extended any more, so that methods end by themselves, with their current weights.
        chain: the number that this run's records carry, if it is a part of a larger run.
        ledger: computes the cost of the run and its parts.
        calls: the list to which it adds each call of the language model that has ended; None: they are not kept.

    Attributes:
        usage, records: of the run and its parts so far.
    """

    problem: Problem
    lm: LanguageModel
    reward: RewardModel | None
    rule: AnswerRule
    sampling: Sampling
    rng: np.random.Generator
    method: str = ""
    seed: int = 0
    observe: Observer | None = None
    on_progress: ProgressCallback | None = None
    limits: Limits = field(default_factory=Limits)
    usage: Usage = field(default_factory=Usage, init=False)
    records: list[Record] = field(default_factory=list, init=False)
    chain: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    calls: list[Call] | None = None
    _whole: Run | None = None  # the run that this one is a part of
    _recorded: Usage = field(default_factory=Usage, init=False)  # the part of the usage that the records hold

    def __post_init__(self) -> None:
        self.sampling = sampling_for(self.sampling, self.reward)

    def start(self, n: int) -> Population:
        """n empty trajectories, all of them the same object."""
        return Population((Trajectory(self.problem),) * n, ((),) * n, np.zeros(n, dtype=bool))

    async def extend(
        self,
        population: Population,
        *,
        score: bool = True,
        sampling: Sampling | None = None,
        streams: Sequence[np.random.Generator] | None = None,
    ) -> Population:
        """Extend every unfinished trajectory by one step and, if `score`, score it.

        Finished trajectories do not change and cost nothing. If both models merge concurrent calls, each step is scored
        as soon as it ends, while other steps are still being generated; a reward model that does not merge calls scores
        the whole round in one call.

        When a limit is reached, unfinished trajectories are finished with the limit's name. A deadline cancels steps in
        flight: their trajectories do not change. For a token budget, steps in flight are completed.

        Particles that a model cannot extend or score (`motes.core.Failure`) are dropped: they end as "failed", lose
        their scores, and have weight zero from then on. The run goes on with the others.

        Args:
            streams: (N,) generators of the trajectories' seeds; by default the run's own for all.
        """
        self._require_reward(score)
        sampling = sampling or self.sampling
        require_steps(self.lm, sampling)
        require_thinking(self.lm, sampling)
        trajectories, scores = list(population.trajectories), list(population.scores)
        live = [i for i, trajectory in enumerate(trajectories) if trajectory.finished is None]
        streams = streams or [self.rng] * len(population)
        seeds = {i: int(streams[i].integers(2**63)) for i in live}

        async def advance(batch: Sequence[int]) -> None:
            parents = [trajectories[i] for i in batch]
            children = dict(zip(batch, await self._children(parents, sampling, [seeds[i] for i in batch]), strict=True))
            new: dict[int, Sequence[float] | Failure] = {i: scores[i] for i in batch}
            if score:
                grown = [i for i in batch if children[i].depth > trajectories[i].depth]
                new.update(zip(grown, await self._score([children[i] for i in grown], self.reward), strict=True))
            for i in batch:  # together, so that a deadline leaves no step without a score
                trajectories[i], scores[i] = _drop_if_failed(children[i], new[i])

        apart = self._merges and (not score or self._scores_at_once)
        if live and not self.exhausted():
            await self._before_deadline(map(advance, [[i] for i in live] if apart else [live]))
        pairs = zip(trajectories, population.trajectories, strict=True)
        extended = np.array([new.depth > old.depth and new.finished != "failed" for new, old in pairs], dtype=bool)
        if any(trajectory.finished is None for trajectory in trajectories) and self.exhausted():
            trajectories = [t if t.finished else t.finish(self.limits.stopped or "deadline") for t in trajectories]
        return Population(tuple(trajectories), tuple(scores), extended)

    async def complete(
        self, population: Population, *, score: bool = True, sampling: Sampling | None = None, report: bool = True
    ) -> Population:
        """Extend every trajectory until it is finished, then score it once if `score`. Trajectories that are finished
        and scored already do not change and cost nothing.

        If the language model merges concurrent calls, trajectories do not wait for each other; this does not change
        them. A language model that cannot continue a prefix writes each trajectory as one step.

        Args:
            report: whether `on_progress` is called: not for texts that are no answers.
        """
        self._require_reward(score)
        sampling = sampling or self.sampling
        if not LanguageModelTraits(self.lm).continues_prefixes:
            sampling = sampling.whole()
        streams = [np.random.default_rng(seed) for seed in self.rng.integers(2**63, size=len(population))]
        current = list(population.trajectories)
        score_apart = score and self._scores_at_once

        async def finish(places: Sequence[int]) -> Population:
            part = population.select(places)
            while part.alive:
                part = await self.extend(part, score=False, sampling=sampling, streams=[streams[i] for i in places])
                for i, trajectory in zip(places, part.trajectories, strict=True):
                    current[i] = trajectory
                if report and self.on_progress is not None:
                    self.on_progress(tuple(current))
            return await self._score_complete(part) if score_apart else part

        # Under a token budget all advance together: which one is cut off must not depend on which one is faster.
        together = not self._merges or self.limits.token_budget is not None
        every = range(len(population))
        complete = Population.concatenate(await gather(map(finish, [every] if together else [[i] for i in every])))
        return await self._score_complete(complete) if score and not score_apart else complete

    async def score(self, population: Population, places: Sequence[int], reward: RewardModel | None) -> Population:
        """The population with scores by `reward` for the trajectories at `places`; those that it cannot score are
        dropped. At a deadline the population is returned unchanged.

        A trajectory that stands at several places is scored once.
        """
        trajectories, scores = list(population.trajectories), list(population.scores)

        async def fill() -> None:
            distinct = list(dict.fromkeys(trajectories[i] for i in places))
            new = dict(zip(distinct, await self._score(distinct, reward), strict=True))
            for i in places:
                trajectories[i], scores[i] = _drop_if_failed(trajectories[i], new[trajectories[i]])

        if self.limits.stopped != "deadline":
            await self._before_deadline([fill()])
        return Population(tuple(trajectories), tuple(scores), population.extended)

    async def side_by_side(self, works: Sequence[Callable[[Run], Coroutine[Any, Any, T]]]) -> list[T]:
        """The results of `works`, each on a part of this run, all at once, so that their calls meet in one batch.

        Each part has its own generator, so that it depends neither on the others nor on the order in which they end.
        Its cost is the run's as well; its records are appended, part by part, when all parts have ended.
        """
        seeds = self.rng.integers(2**63, size=len(works))
        parts = [replace(self, rng=np.random.default_rng(seed), chain=i, _whole=self) for i, seed in enumerate(seeds)]
        try:
            return await gather(work(part) for work, part in zip(works, parts, strict=True))
        finally:
            for part in parts:
                self.records += part.records
                self._recorded += part._recorded

    def part(self, calls: list[Call]) -> Run:
        """A part of this run that adds its calls to `calls`. Its cost is the run's as well."""
        return replace(self, calls=calls, _whole=self)

    async def answers(self, trajectories: Sequence[Trajectory]) -> list[str | None]:
        """(N,) the answer of each trajectory, equivalent answers named by the first of them; see `Answers`."""
        return await self._root._answers.of(trajectories, self.limits)

    def exhausted(self) -> bool:
        """Whether a limit on the run is reached; if so, `Result.stopped` names the limit. A method calls this before it
        begins further work, such as another sweep."""
        return self.limits.stop(self._root.usage.generated_tokens)

    @property
    def _root(self) -> Run:
        return self if self._whole is None else self._whole._root

    async def _before_deadline(self, work: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run all coroutines at once; the deadline cancels those still in flight."""
        try:
            async with self.limits.timeout() as timeout:
                with working_for(Origin(self.limits.deadline, self._root._id)):
                    await gather(work)
        except TimeoutError:
            if not timeout.expired():
                raise  # raised by a model itself
            self.limits.stopped = "deadline"

    def _spend(self, usage: Usage) -> None:
        self.usage += usage
        if self._whole is not None:
            self._whole._spend(usage)

    def count_cancelled(self, before: Usage, kept: Iterable[Call]) -> None:
        """Count the tokens of trajectories that were cancelled as those of failed attempts. How many these are depends
        on the speed of the others; all other counts depend on the seed alone again.

        Args:
            before: the run's usage before `kept` and the calls for the cancelled trajectories, without scores.
            kept: the calls for the trajectories that were not cancelled.
        """
        needed, spent = cost_alone(kept, self.lm), self.usage - before
        rest = spent - needed
        cancelled = Usage(
            failed_generated_tokens=rest.generated_tokens + rest.failed_generated_tokens,
            failed_prefill_tokens=rest.prefill_tokens + rest.failed_prefill_tokens,
            computed_prefill_tokens=rest.computed_prefill_tokens,
        )
        self._spend(needed + cancelled - spent)

    def _require_reward(self, score: bool) -> None:
        if score and self.reward is None:
            raise ConfigurationError("this method needs a reward model: give `reward=`")

    @property
    def _merges(self) -> bool:
        return LanguageModelTraits(self.lm).merges_calls

    @property
    def _scores_at_once(self) -> bool:
        """Whether each trajectory is scored by itself as soon as possible, instead of a whole round in one call: if the
        reward model merges calls, and under a deadline, so that steps which ended in time count."""
        return RewardModelTraits(self.reward).merges_calls or self.limits.deadline is not None

    async def _children(
        self, parents: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Trajectory]:
        """Each trajectory after one more step."""
        work = self._bounded_steps if self._bounds_thoughts(sampling) else self._steps
        if self._merges:
            calls = [work([parent], sampling, [seed]) for parent, seed in zip(parents, seeds, strict=True)]
            steps: Sequence[Step | Failure] = [step for (step,) in await gather(calls)]
        else:
            steps = await work(parents, sampling, seeds)
        children = [_child(parent, step) for parent, step in zip(parents, steps, strict=True)]
        final = await state_final_answers(children, self.rule)
        return [_finish_if_due(child, sampling, is_final) for child, is_final in zip(children, final, strict=True)]

    async def _steps(
        self, parents: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Step | Failure]:
        """The next step of each trajectory, paid for."""
        steps = await self._request_steps(parents, sampling, seeds)
        for parent, step in zip(parents, steps, strict=True):
            self._spend(self.ledger.step(parent, step, self.lm))
            if self.calls is not None:
                self.calls.append((parent, step))
        return steps

    async def _bounded_steps(
        self, parents: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[Step | Failure]:
        """The same with bounds on thoughts, see `motes.methods.thinking`."""
        spent = self._root.usage
        form = self._root._form
        if self.limits.deadline is not None:
            await form.ask(self.lm, self.problem)
        bounds = Bounds(sampling, self.limits, self._steps, spent.generated_tokens, form)
        return await bounds.steps(parents, seeds)

    def _bounds_thoughts(self, sampling: Sampling) -> bool:
        limits = self.limits
        is_limited = (limits.deadline, limits.token_budget) != (None, None)
        return (is_limited or sampling.bounds_thinking) and LanguageModelTraits(self.lm).continues_prefixes

    async def _request_steps(
        self, parents: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        """The next step of each trajectory, or the reason why there is none. A prompt of the method's own that does not
        fit the model's context fails alone, the problem's own prompt fails the run."""
        try:
            return await request_steps(self.lm, parents, sampling, seeds)
        except ContextLengthError as error:
            if all(parent.problem is self.problem for parent in parents):
                raise
            if len(parents) == 1:
                return [Failure(error)]
            singles = zip(parents, seeds, strict=True)
            return [(await self._request_steps([parent], sampling, [seed]))[0] for parent, seed in singles]

    async def _score(
        self, trajectories: Sequence[Trajectory], reward: RewardModel | None
    ) -> Sequence[Sequence[float] | Failure]:
        """The scores of each trajectory, one per step, or the reason why there are none."""
        if not trajectories:
            return []
        assert reward is not None
        if reward is self.reward and not RewardModelTraits(reward).merges_calls:
            scores = await self._root._batched_scores(trajectories)
        else:
            scores = await request_scores(reward, trajectories)
        for trajectory, values in zip(trajectories, scores, strict=True):
            self._spend(self.ledger.scores(trajectory, values, reward))
        return scores

    @cached_property
    def _form(self) -> Form:
        return form_of(self.lm)

    @cached_property
    def _id(self) -> str:
        """An id of this run and its parts, for servers. A seed is none: other runs may have it, too."""
        return uuid4().hex

    @cached_property
    def _batched_scores(self) -> CallBatcher[Trajectory, Sequence[float] | Failure]:
        """Scores the concurrent requests of this run and its parts in one call."""
        assert self.reward is not None
        return CallBatcher(partial(request_scores, self.reward))

    @cached_property
    def _answers(self) -> Answers:
        """The answers of this run and its parts."""
        return Answers(self.rule)

    async def _score_complete(self, population: Population) -> Population:
        """The population with scores for all trajectories that no limit on the run has cut off."""
        trajectories = population.trajectories
        complete = [i for i, t in enumerate(trajectories) if t.depth and not t.error and t.finished not in STOPS]
        complete = [i for i in complete if not len(population.scores[i])]  # the others have been scored before
        return await self.score(population, complete, self.reward)

    def record(
        self,
        population: Population,
        *,
        ancestors: npt.ArrayLike,
        weights: Weights,
        resampled: bool,
        log_evidence: float = np.nan,
        aggregation: Aggregation = "last",
        sweep: int = 0,
        moves: Moves | None = None,
    ) -> None:
        """Append the record of a round. Dropped particles are recorded with weight zero.

        Raises:
            NoParticlesError: all weights are zero, and some particles were dropped.
            DegenerateWeightsError: all weights are zero, although there was time to score something.
        """
        weights = population.without_dropped(weights)
        record = Record(
            trajectories=population.trajectories,
            ancestors=np.array(ancestors, dtype=np.int64),
            log_weights=weights.log_weights,
            scores=population.aggregate(aggregation),
            step_scores=population.scores,
            ess=weights.ess,
            resampled=resampled,
            log_evidence=log_evidence,
            usage=self.usage - self._recorded,
            sweep=sweep,
            chain=self.chain,
            moves=moves,
        )
        self._recorded = self.usage
        self.records.append(record)
        if self.observe is not None:
            self.observe(self._root, record)
        if not weights.degenerate:
            return
        if self.limits.stopped and np.isnan(record.scores).all() and not population.dropped.all():
            return  # there was no time to score anything
        if record.failures:
            first = next(iter(record.failures.values()))
            raise NoParticlesError(
                f"no particle is left after step {len(self.records)}: {len(record.failures)} of {len(population)} were "
                f"dropped, because a model could not extend or score them; the first: {first}"
            ) from first
        raise DegenerateWeightsError(
            f"every particle's weight is zero after step {len(self.records)}: by the scores of {self.reward!r} "
            f"none of {len(population)} partial answers can go on. Check its prompt format, use link='odds', "
            "which gives no weight of zero, or more particles"
        )

    def result(self, **outcome: Any) -> Result:
        """A result of this run, with its cost and records; `outcome` fills the other fields of `Result`."""
        return Result(
            problem=self.problem,
            method=self.method,
            seed=self.seed,
            records=tuple(self.records),
            usage=self.usage,
            stopped=self.limits.stopped,
            **outcome,
        )


def _child(parent: Trajectory, step: Step | Failure) -> Trajectory:
    if isinstance(step, Failure):
        return parent.fail(step.error)
    if step.end == "length" and not step.text and not step.token_ids:
        return parent.finish("max_tokens")
    return parent.extend(step)


def _finish_if_due(child: Trajectory, sampling: Sampling, states_final_answer: bool) -> Trajectory:
    """The trajectory, finished if it states a final answer or has reached a limit of its own."""
    if child.finished is not None:
        return child
    if states_final_answer:
        return child.finish("answer")
    if sampling.max_tokens is not None and child.num_tokens >= sampling.max_tokens:
        return child.finish("max_tokens")
    is_last = child.depth >= sampling.max_steps and num_own_steps(child) >= sampling.max_steps
    return child.finish("max_steps") if is_last else child


def _drop_if_failed(trajectory: Trajectory, scores: Sequence[float] | Failure) -> tuple[Trajectory, Sequence[float]]:
    """The trajectory and its scores; if it failed or could not be scored, a failed trajectory without scores."""
    if isinstance(scores, Failure):
        return trajectory.fail(scores.error), ()
    return trajectory, () if trajectory.finished == "failed" else scores
