"""A language model as a reward model: it is asked what it thinks of a partial answer.

Judges (Zheng et al., arXiv 2306.05685) and generative verifiers (Zhang et al., arXiv 2408.15240; ThinkPRM, arXiv
2504.16828) are one thing here. They differ in their rubric: what is asked, whether the model thinks aloud before its
verdict, which verdicts there are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from weakref import WeakKeyDictionary, WeakValueDictionary

from motes.arguments import instance_of, whole_number
from motes.concurrency import gather
from motes.core import Failure, Problem, Reads, Sampling, Scores, Step, Trajectory, Usage
from motes.errors import ContextLengthError, MotesError, VerdictError
from motes.ledger import Ledger
from motes.protocols import LanguageModel, LanguageModelTraits
from motes.rewards.blank import fill_scores, written_steps
from motes.rewards.rubric import Rubric, rubric_named
from motes.rewards.steps import StepSource

REPLY_TOKENS = 64
"""Of a whole reply, beside its critique."""

Read = Callable[[str], str | None]
"""From what was said to the verdict in it."""

ONE_TOKEN = Sampling(temperature=1.0, max_step_tokens=1, delimiter=None)


class Judge:
    """Scores each prefix by the verdicts of a language model.

    Where the model tells log-probabilities, the score is the expectation over verdicts, as far as they were drawn:

        r = (Σ_v p(v) s(v) + rest · s̄) / (Σ_v p(v) + rest)      v: the verdicts drawn, p(v): their probabilities

    s(v) is a verdict's score; `rest` the probability of everything that was not drawn, and s̄ the mean score of the
    verdicts that were not (if all were, the rest is left out). One draw, the likeliest token, is enough where there are
    two verdicts; of more, `num_verdicts` are drawn. Elsewhere the score is the mean of `num_verdicts` draws and of each
    verdict once (Laplace's rule of succession), so that no handful of draws makes it 0 or 1. Where the rubric wants
    critiques, `num_verdicts` of them are written, each with a verdict of its own, and these averaged.

    A draw that states no verdict is repeated. A prefix for which none states one has no score: a run drops the
    particle. A blank step is not asked about: it has the score of the step before. What the model computes counts as
    reward tokens. A prefix is judged once; the same prefix, seed and model give the same score, whatever else is in the
    call, since draws are seeded by what is asked.

    Args:
        lm: any language model; no more than its protocol is used. One that cannot continue a prefix writes whole
            replies, in which the verdict is found.
        rubric: one of `motes.rewards.rubric.RUBRICS` by name, or your own.
        num_verdicts: draws for each prefix; by default 4, with critiques 1.
        max_retries: times that a draw is repeated.
        seed: of all draws.

    A prefix that cannot be scored fails with a `VerdictError` (no reply stated a verdict), a `ContextLengthError` (what
    is asked does not fit) or the language model's own error.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    def __init__(
        self,
        lm: LanguageModel,
        rubric: Rubric | str = "step",
        *,
        num_verdicts: int | None = None,
        max_retries: int = 2,
        seed: int = 0,
    ) -> None:
        self.lm: LanguageModel = instance_of("lm", lm, LanguageModel, "motes.language_model('tiny')")
        self.rubric = rubric_named(rubric) if isinstance(rubric, str) else rubric
        self.num_verdicts = num_verdicts if num_verdicts is not None else 1 if self.rubric.critique_tokens else 4
        self.max_retries = max_retries
        self.seed = seed
        for name, least in (("num_verdicts", 1), ("max_retries", 0), ("seed", 0)):
            setattr(self, name, whole_number(name, getattr(self, name), least))
        self._tells_probabilities = True  # until the model shows that it does not
        self._known: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()
        self._needs: WeakKeyDictionary[Trajectory, int] = WeakKeyDictionary()  # tokens of its verdict
        self._made: WeakKeyDictionary[Trajectory, _Inquiry] = WeakKeyDictionary()  # which keeps it as long as the node
        self._inquiries: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[bytes, _Inquiry]] = (
            WeakKeyDictionary()
        )
        self._steps = StepSource(self.lm)

    @property
    def merges_calls(self) -> bool:
        """Whether concurrent calls of the language model meet in one batch."""
        return LanguageModelTraits.of(self.lm).merges_calls

    @property
    def continues_prefixes(self) -> bool:
        """Whether the model's verdict can be drawn behind a cue; otherwise it writes whole replies."""
        return LanguageModelTraits.of(self.lm).continues_prefixes

    def forget(self) -> None:
        """See `motes.protocols.RewardModel`."""
        self._inquiries.clear()

    async def ready(self) -> None:
        """See `motes.protocols.RewardModel`: of the language model."""
        if (ready := LanguageModelTraits.of(self.lm).ready) is not None:
            await ready()

    @property
    def num_parameters(self) -> int | None:
        """Of the language model, where it says so."""
        return LanguageModelTraits.of(self.lm).num_parameters

    @property
    def outcome(self) -> bool:
        """Whether finished answers only are judged."""
        return self.rubric.outcome

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. All that is new in a call is asked at once; what is asked already, or was
        for a partial answer that is still there, is not asked again."""
        inquiries = self._inquiries.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        of: dict[Trajectory, _Inquiry] = {}
        for node in dict.fromkeys(node for trajectory in trajectories for node in self._judged(trajectory)):
            if node not in self._known:
                asked, ends = self.rubric.asked(node), self.rubric.ends(node)
                name = _digest(asked, *ends)
                if (inquiry := inquiries.get(name)) is None:
                    inquiries[name] = inquiry = _Inquiry(self, asked, ends)
                of[node] = inquiry
        distinct = list(dict.fromkeys(of.values()))
        results = dict(zip(distinct, await gather(inquiry.result() for inquiry in distinct), strict=True))
        outcomes: list[Sequence[float] | Failure] = []
        for trajectory in trajectories:
            mine = {node: of[node] for node in trajectory.path if node in of}
            usage = sum((inquiry.bill() for inquiry in mine.values()), Usage())
            errors = [result for inquiry in mine.values() if isinstance(result := results[inquiry], MotesError)]
            if errors:
                outcomes.append(Failure(errors[0], usage))
                continue
            for node, inquiry in mine.items():
                if not isinstance(result := results[inquiry], MotesError):
                    self._known[node], self._needs[node], self._made[node] = result, inquiry.needs, inquiry
            outcomes.append(Scores(fill_scores(trajectory, self._known), usage, self._reads(trajectory)))
        return outcomes

    def _reads(self, trajectory: Trajectory) -> Reads:
        """What the verdicts on a trajectory take."""
        needs = [self._needs.get(node, 0) for node in trajectory.path]
        return Reads(0, tuple(sum(needs[t:]) for t in range(len(needs) + 1)))

    def _judged(self, trajectory: Trajectory) -> list[Trajectory]:
        """The prefixes of a trajectory that have verdicts of their own."""
        if self.rubric.outcome:
            return [node for node in trajectory.path if node.finished is not None]
        return written_steps(trajectory)

    def __repr__(self) -> str:
        return f"Judge({self.lm!r}, {self.rubric.name!r})"


@dataclass(frozen=True)
class _Draw:
    """What was said where a verdict was wanted.

    Attributes:
        text: as it was said.
        verdict: None where it is none.
        probability: None where the model does not tell it.
    """

    text: str
    verdict: str | None
    probability: float | None


class _Inquiry:
    """One prefix being judged, for all who want to know.

    Args:
        asked: the user's turn.
        ends: what ends a critique.
    """

    def __init__(self, judge: Judge, asked: str, ends: tuple[str, ...]) -> None:
        self.judge = judge
        self.rubric = judge.rubric
        self.asked = asked
        self.ends = ends
        self.needs = 0  # tokens, whatever is cached
        self._ledger = Ledger()
        self._spent = Usage()
        self._error: MotesError | None = None
        self._task: asyncio.Task[float | MotesError] | None = None
        self._waiting = 0

    async def result(self) -> float | MotesError:
        """The score, or why there is none. The judge is asked once, for as long as anybody waits for it."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run(self.judge._steps))
        task = self._task
        self._waiting += 1
        try:
            outcome = await asyncio.shield(task)
            self.asked, self._ledger = "", Ledger()  # what is done is remembered, what it was made of is not
            return outcome
        finally:
            self._waiting -= 1
            if not self._waiting and not task.done():
                self._task = None
                task.cancel()

    async def _run(self, lm: StepSource) -> float | MotesError:
        root = Trajectory(Problem(self.asked))
        n = self.judge.num_verdicts
        if not self.judge.continues_prefixes:
            tokens = self.rubric.critique_tokens + REPLY_TOKENS
            sampling = Sampling(temperature=self.rubric.temperature, max_step_tokens=tokens, delimiter=None)
            replies = (self._verdict(lm, root, sampling, self.rubric.last_verdict, "reply", i) for i in range(n))
            places: list[Sequence[_Draw]] = [[draw for draws in await asyncio.gather(*replies) for draw in draws]]
        elif self.rubric.critique_tokens:
            places = list(await asyncio.gather(*(self._criticise(lm, root, i) for i in range(n))))
        else:
            places = [await self._behind(lm, root.extend(Step(self.rubric.opening + self.rubric.cue, "step")), n)]
        score = expectation(places, self.rubric.verdicts)
        if score is not None:
            return score
        said = [draw.text for draws in places for draw in draws]
        return self._error or VerdictError(
            f"{self.judge!r} stated no verdict in {len(said)} replies, the last of which ends with {said[-1][-80:]!r}: "
            f"none of {', '.join(self.rubric.verdicts)} stands behind {self.rubric.cue.strip()!r}. Use a model that "
            "follows instructions, or another rubric"
        )

    def bill(self) -> Usage:
        """What was spent since the last bill."""
        spent, self._spent = self._spent, Usage()
        computed = spent.generated_tokens + spent.prefill_tokens
        return Usage(
            reward_tokens=computed,
            reward_tokens_cached=spent.prefill_tokens_cached,
            failed_reward_tokens=spent.failed_generated_tokens + spent.failed_prefill_tokens,
        )

    async def _criticise(self, lm: StepSource, root: Trajectory, number: int) -> Sequence[_Draw]:
        """A critique, and a verdict behind it."""
        begun = root.extend(Step(self.rubric.opening, "step")) if self.rubric.opening else root
        sampling = Sampling(
            temperature=self.rubric.temperature, max_step_tokens=self.rubric.critique_tokens, delimiter=self.ends
        )
        step = await self._extend(lm, begun, sampling, "critique", number)
        if step is None:
            return []
        critique = re.split("|".join(map(re.escape, self.ends)), step.text, maxsplit=1)[0]
        said = (self.rubric.opening + critique).rstrip() + self.rubric.cue
        return await self._behind(lm, root.extend(Step(said, "step")), 1, number)

    async def _behind(self, lm: StepSource, place: Trajectory, count: int, *name: int) -> Sequence[_Draw]:
        """Draws of a verdict behind a cue: the likeliest token if that is enough, else `count`."""
        read = self.rubric.verdict
        likeliest: list[_Draw] = []
        if len(self.rubric.verdicts) == 2 and self.judge._tells_probabilities:
            step = await self._extend(lm, place, ONE_TOKEN.replace(temperature=0.0), "likeliest", *name)
            if step is None:
                return []
            self.judge._tells_probabilities = step.logprob is not None
            if step.logprob is not None:
                likeliest = [_Draw(step.text, read(step.text), math.exp(step.logprob))]
                if likeliest[0].verdict is not None:
                    return likeliest
        drawn = await asyncio.gather(
            *(self._verdict(lm, place, ONE_TOKEN, read, "verdict", *name, i) for i in range(count))
        )
        return [*likeliest, *(draw for draws in drawn for draw in draws)]

    async def _verdict(
        self, lm: StepSource, place: Trajectory, sampling: Sampling, read: Read, *name: str | int
    ) -> Sequence[_Draw]:
        """Draws up to one that states a verdict."""
        draws: list[_Draw] = []
        for attempt in range(self.judge.max_retries + 1):
            step = await self._extend(lm, place, sampling, *name, attempt)
            if step is None:
                break
            known = sampling is ONE_TOKEN and step.logprob is not None
            probability = math.exp(step.logprob or 0.0) if known else None
            draws.append(_Draw(step.text, read(step.text), probability))
            if draws[-1].verdict is not None:
                break
        return draws

    async def _extend(self, lm: StepSource, place: Trajectory, sampling: Sampling, *name: str | int) -> Step | None:
        """A step, drawn by a seed that depends on what is asked and on the draw's name; None where it fails."""
        digest = _digest(self.judge.seed, self.asked, *name)
        step = await lm.extend(place, sampling, int.from_bytes(digest[:8], "big") >> 1)
        if isinstance(step, Failure):
            self._error = step.error
            self._spent += step.usage
            return None
        self._spent += step.usage or Usage(generated_tokens=len(step.token_ids))
        self.needs += self._ledger.step(place, step, self.judge.lm).total_tokens
        if step.end == "length" and not step.text and not step.token_ids:
            self._error = ContextLengthError(
                f"{self.judge!r} has no room left in its context: lower max_steps or max_tokens"
            )
            return None
        return step


def _digest(*named: str | int) -> bytes:
    return hashlib.sha256(json.dumps(named).encode()).digest()


def expectation(places: Sequence[Sequence[_Draw]], verdicts: Mapping[str, float]) -> float | None:
    """The score that the draws at several places speak for, see `Judge`; None where none of them is a verdict."""
    heard = [[draw for draw in draws if draw.verdict is not None] for draws in places]
    if not any(heard):
        return None
    if all(draw.probability is not None for draws in heard for draw in draws):
        return fmean(_expected(draws, verdicts) for draws, stated in zip(places, heard, strict=True) if stated)
    scores = [verdicts[draw.verdict] for draws in heard for draw in draws if draw.verdict is not None]
    return fmean([*scores, *verdicts.values()])


def _expected(draws: Sequence[_Draw], verdicts: Mapping[str, float]) -> float:
    """Of draws from one distribution, whose probabilities are known."""
    distinct = {draw.text: draw for draw in draws}.values()
    stated = [(draw.verdict, draw.probability or 0.0) for draw in distinct if draw.verdict is not None]
    total = sum(probability * verdicts[verdict] for verdict, probability in stated)
    mass = sum(probability for _, probability in stated)
    if missing := [score for verdict, score in verdicts.items() if verdict not in dict(stated)]:
        rest = max(0.0, 1.0 - sum(draw.probability or 0.0 for draw in distinct))
        total, mass = total + rest * fmean(missing), mass + rest
    return min(1.0, total / mass)
