"""A language model as a reward model: its prompt asks for a verdict on a partial answer.

Judges (Zheng et al., arXiv 2306.05685) and generative verifiers (Zhang et al., arXiv 2408.15240; ThinkPRM, arXiv
2504.16828) are one class here. They differ in their rubric: the question, the possible verdicts, and whether the model
thinks aloud before its verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from weakref import WeakKeyDictionary, WeakValueDictionary

from motes.arguments import instance_of, whole_number
from motes.concurrency import CallBatcher, gather
from motes.core import Failure, Problem, Reads, Sampling, Scores, Step, Trajectory, Usage
from motes.errors import ContextLengthError, MotesError, VerdictError
from motes.ledger import Ledger
from motes.protocols import LanguageModel, LanguageModelTraits, RequestObserver
from motes.rewards.blank import fill_scores, written_steps
from motes.rewards.rubric import Rubric, rubric_named
from motes.thoughts import split

REPLY_TOKENS = 64
"""Maximum number of tokens of a whole reply, in addition to those of its critique."""

Read = Callable[[str], str | None]
"""Reads the verdict in a reply; None if there is none."""

ONE_TOKEN = Sampling(temperature=1.0, max_step_tokens=1, delimiter=None)


class Judge:
    """Scores each prefix by the verdicts of a language model.

    If the model returns log-probabilities, the score is the expectation over the sampled verdicts:

        r = (Σ_v p(v) s(v) + rest · s̄) / (Σ_v p(v) + rest)      v: the sampled verdicts, p(v): their probabilities

    s(v) is a verdict's score, `rest` the probability of everything that was not sampled, and s̄ the mean score of the
    verdicts that were not sampled (if all were, `rest` is left out). If there are two verdicts, one sample is enough,
    the likeliest token; if there are more, `num_verdicts` are sampled. Without log-probabilities the score is the mean
    over `num_verdicts` samples and one of each verdict (Laplace's rule of succession), so that a few samples never make
    it 0 or 1. If the rubric wants critiques, the judge writes `num_verdicts` of them, each with a verdict of its own,
    and the score is the average of these.

    A sample without a verdict is repeated. A prefix for which no sample states a verdict has no score: a run drops the
    particle. A blank step has the score of the step before; the judge does not read it. All tokens of the model count
    as reward tokens. A prefix is judged once; the same prefix, seed and model give the same score, whatever else is in
    the call, since the prompt seeds the samples.

    Args:
        lm: any language model; only its protocol is used. If it cannot continue a prefix, it writes whole replies, and
            the verdict is read from these.
        rubric: one of `motes.rewards.rubric.RUBRICS` by name, or your own.
        num_verdicts: samples for each prefix; by default 4, with critiques 1.
        max_retries: how often a sample is repeated.
        seed: of all samples.

    A prefix that cannot be scored fails with a `VerdictError` (no reply stated a verdict), a `ContextLengthError` (the
    prompt does not fit) or the language model's own error.

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
        if num_verdicts is None:
            num_verdicts = 1 if self.rubric.critique_tokens else 4
        self.num_verdicts = whole_number("num_verdicts", num_verdicts, 1)
        self.max_retries = whole_number("max_retries", max_retries, 0)
        self.seed = whole_number("seed", seed, 0)
        self._has_probabilities = True  # until the model returns a step without log-probability
        self._scores: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()
        self._inquiry_of: WeakKeyDictionary[Trajectory, _Inquiry] = WeakKeyDictionary()  # keeps it while the node lives
        self._inquiries: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[bytes, _Inquiry]] = (
            WeakKeyDictionary()
        )
        self._steps = _StepSource(self.lm)

    # The optional attributes, see `motes.protocols.RewardModelTraits`:

    @property
    def merges_calls(self) -> bool:
        return LanguageModelTraits(self.lm).merges_calls

    @property
    def continues_prefixes(self) -> bool:
        """Whether the model can continue a cue with its verdict; otherwise it writes whole replies."""
        return LanguageModelTraits(self.lm).continues_prefixes

    def forget(self) -> None:
        self._inquiries.clear()

    async def ready(self) -> None:
        if (ready := LanguageModelTraits(self.lm).ready) is not None:
            await ready()

    def watch_requests(self, observe: RequestObserver) -> None:
        if (watch := LanguageModelTraits(self.lm).watch_requests) is not None:
            watch(observe)

    @property
    def num_parameters(self) -> int | None:
        return LanguageModelTraits(self.lm).num_parameters

    @property
    def outcome(self) -> bool:
        return self.rubric.outcome

    def critique(self, trajectory: Trajectory) -> str | None:
        """The critique on the whole of a trajectory that has been scored, or the whole reply of a model that cannot
        continue a cue, without thoughts; None if the rubric wants no critiques. Of several it is the first one."""
        judged = self._judged_nodes(trajectory)
        inquiry = self._inquiry_of.get(judged[-1]) if judged else None
        if inquiry is None or not inquiry.critiques:
            return None
        thoughts, content = split(inquiry.critiques[min(inquiry.critiques)])
        return content.strip() or thoughts.strip()  # the critique may be the thought itself

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`. All new prefixes of a call are judged at once. A prefix that is being
        judged, or was judged for a partial answer that still exists, is not judged again."""
        # 1) an inquiry for each new prefix
        inquiries = self._inquiries.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        inquiry_of: dict[Trajectory, _Inquiry] = {}
        for node in dict.fromkeys(node for trajectory in trajectories for node in self._judged_nodes(trajectory)):
            if node not in self._scores:
                prompt, ends = self.rubric.asked(node), self.rubric.ends(node)
                digest = _digest(prompt, *ends)
                if (inquiry := inquiries.get(digest)) is None:
                    inquiries[digest] = inquiry = _Inquiry(self, prompt, ends)
                inquiry_of[node] = inquiry
        # 2) their results
        distinct = list(dict.fromkeys(inquiry_of.values()))
        results = dict(zip(distinct, await gather(inquiry.result() for inquiry in distinct), strict=True))
        # 3) the scores of each trajectory
        outcomes: list[Sequence[float] | Failure] = []
        for trajectory in trajectories:
            own = {node: inquiry_of[node] for node in trajectory.path if node in inquiry_of}
            usage = sum((inquiry.bill() for inquiry in own.values()), Usage())
            errors = [result for inquiry in own.values() if isinstance(result := results[inquiry], MotesError)]
            if errors:
                outcomes.append(Failure(errors[0], usage))
                continue
            for node, inquiry in own.items():
                if not isinstance(result := results[inquiry], MotesError):
                    self._scores[node], self._inquiry_of[node] = result, inquiry
            outcomes.append(Scores(fill_scores(trajectory, self._scores), usage, self._reads(trajectory)))
        return outcomes

    def _reads(self, trajectory: Trajectory) -> Reads:
        """The tokens that the verdicts on a trajectory need."""
        counts = [self._inquiry_of[node].num_tokens if node in self._inquiry_of else 0 for node in trajectory.path]
        return Reads(0, tuple(sum(counts[t:]) for t in range(len(counts) + 1)))

    def _judged_nodes(self, trajectory: Trajectory) -> list[Trajectory]:
        """The prefixes of a trajectory that have verdicts of their own."""
        if self.rubric.outcome:
            return [node for node in trajectory.path if node.finished is not None]
        return written_steps(trajectory)

    def __repr__(self) -> str:
        return f"Judge({self.lm!r}, {self.rubric.name!r})"


@dataclass(frozen=True)
class _Reply:
    """A text that the model wrote in the place of a verdict."""

    text: str
    verdict: str | None  # None: the text states none
    probability: float | None  # of the text; None: the model does not return it


class _Inquiry:
    """The judgement of one prefix, for all calls that wait for it."""

    def __init__(self, judge: Judge, prompt: str, ends: tuple[str, ...]) -> None:
        self.judge = judge
        self.rubric = judge.rubric
        self.prompt = prompt  # the user's turn
        self.ends = ends  # texts that end a critique
        self.num_tokens = 0  # needed for the verdict, cached or not
        self.critiques: dict[int, str] = {}  # by the number of the sample
        self._ledger = Ledger()
        self._unbilled = Usage()
        self._error: MotesError | None = None
        self._task: asyncio.Task[float | MotesError] | None = None
        self._num_waiting = 0

    async def result(self) -> float | MotesError:
        """The score, or the error. The model is called once, and only as long as anybody waits for the result."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())
        task = self._task
        self._num_waiting += 1
        try:
            outcome = await asyncio.shield(task)
            self.prompt, self._ledger = "", Ledger()  # only the outcome is needed from now on
            return outcome
        finally:
            self._num_waiting -= 1
            if not self._num_waiting and not task.done():
                self._task = None
                task.cancel()

    async def _run(self) -> float | MotesError:
        root = Trajectory(Problem(self.prompt))
        n = self.judge.num_verdicts
        # 1) replies, in groups from one distribution each
        if not self.judge.continues_prefixes:
            tokens = self.rubric.critique_tokens + REPLY_TOKENS
            sampling = Sampling(temperature=self.rubric.temperature, max_step_tokens=tokens, delimiter=None)
            calls = (self._sample_verdict(root, sampling, self.rubric.last_verdict, "reply", i) for i in range(n))
            samples = await asyncio.gather(*calls)
            groups: list[Sequence[_Reply]] = [[reply for replies in samples for reply in replies]]
            if self.rubric.critique_tokens:
                stated = [reply.text for reply in groups[0] if reply.verdict is not None]
                self.critiques = dict(enumerate(stated))
        elif self.rubric.critique_tokens:
            groups = list(await asyncio.gather(*(self._sample_critique(root, i) for i in range(n))))
        else:
            beginning = root.extend(Step(self.rubric.opening + self.rubric.cue, "step"))
            groups = [await self._sample_after_cue(beginning, n)]
        # 2) their score, or an error
        score = expectation(groups, self.rubric.verdicts)
        if score is not None:
            return score
        texts = [reply.text for replies in groups for reply in replies]
        return self._error or VerdictError(
            f"{self.judge!r} stated no verdict in {len(texts)} replies, the last of which ends with "
            f"{texts[-1][-80:]!r}: none of {', '.join(self.rubric.verdicts)} comes after {self.rubric.cue.strip()!r}. "
            "Use a model that follows instructions, or another rubric"
        )

    def bill(self) -> Usage:
        """The usage since the last bill."""
        usage, self._unbilled = self._unbilled, Usage()
        return Usage(
            reward_tokens=usage.generated_tokens + usage.prefill_tokens,
            reward_tokens_cached=usage.prefill_tokens_cached,
            failed_reward_tokens=usage.failed_generated_tokens + usage.failed_prefill_tokens,
        )

    async def _sample_critique(self, root: Trajectory, number: int) -> Sequence[_Reply]:
        """Sample a critique, and a verdict after it; returns the replies in the place of the verdict."""
        start = root.extend(Step(self.rubric.opening, "step")) if self.rubric.opening else root
        sampling = Sampling(
            temperature=self.rubric.temperature, max_step_tokens=self.rubric.critique_tokens, delimiter=self.ends
        )
        step = await self._extend(start, sampling, "critique", number)
        if step is None:
            return []
        critique = re.split("|".join(map(re.escape, self.ends)), step.text, maxsplit=1)[0]
        self.critiques[number] = critique
        text = (self.rubric.opening + critique).rstrip() + self.rubric.cue
        return await self._sample_after_cue(root.extend(Step(text, "step")), 1, number)

    async def _sample_after_cue(self, place: Trajectory, count: int, *name: int) -> Sequence[_Reply]:
        """Sample verdicts after a cue: the likeliest token if that is enough, else `count`."""
        read = self.rubric.verdict
        likeliest: list[_Reply] = []
        if len(self.rubric.verdicts) == 2 and self.judge._has_probabilities:
            step = await self._extend(place, ONE_TOKEN.replace(temperature=0.0), "likeliest", *name)
            if step is None:
                return []
            self.judge._has_probabilities = step.logprob is not None
            if step.logprob is not None:
                likeliest = [_Reply(step.text, read(step.text), math.exp(step.logprob))]
                if likeliest[0].verdict is not None:
                    return likeliest
        samples = await asyncio.gather(
            *(self._sample_verdict(place, ONE_TOKEN, read, "verdict", *name, i) for i in range(count))
        )
        return [*likeliest, *(reply for replies in samples for reply in replies)]

    async def _sample_verdict(
        self, place: Trajectory, sampling: Sampling, read: Read, *name: str | int
    ) -> Sequence[_Reply]:
        """Sample replies up to the first one that states a verdict."""
        replies: list[_Reply] = []
        for attempt in range(self.judge.max_retries + 1):
            step = await self._extend(place, sampling, *name, attempt)
            if step is None:
                break
            probability = math.exp(step.logprob) if sampling is ONE_TOKEN and step.logprob is not None else None
            replies.append(_Reply(step.text, read(step.text), probability))
            if replies[-1].verdict is not None:
                break
        return replies

    async def _extend(self, place: Trajectory, sampling: Sampling, *name: str | int) -> Step | None:
        """A step, sampled with a seed that depends on the prompt and the sample's name; None if the model fails."""
        digest = _digest(self.judge.seed, self.prompt, *name)
        step = await self.judge._steps.extend(place, sampling, int.from_bytes(digest[:8], "big") >> 1)
        if isinstance(step, Failure):
            self._error = step.error
            self._unbilled += step.usage
            return None
        self._unbilled += step.usage or Usage(generated_tokens=len(step.token_ids))
        self.num_tokens += self._ledger.step(place, step, self.judge.lm).total_tokens
        if step.end == "length" and not step.text and not step.token_ids:
            self._error = ContextLengthError(
                f"{self.judge!r} has no room left in its context: lower max_steps or max_tokens"
            )
            return None
        return step


class _StepSource:
    """Extends trajectories one at a time. Concurrent calls with the same sampling become one call of the language
    model, unless it merges them itself."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._merges = LanguageModelTraits(lm).merges_calls
        self._batchers: dict[Sampling, CallBatcher[tuple[Trajectory, int], Step | Failure]] = {}

    async def extend(self, trajectory: Trajectory, sampling: Sampling, seed: int) -> Step | Failure:
        """A step, or the failure of this trajectory. Raises EngineError if the model cannot go on."""
        requests = [(trajectory, seed)]
        if self._merges:
            (outcome,) = await self._extend_all(sampling, requests)
            return outcome
        if sampling not in self._batchers:
            self._batchers[sampling] = CallBatcher(partial(self._extend_all, sampling))
        (outcome,) = await self._batchers[sampling](requests)
        return outcome

    async def _extend_all(
        self, sampling: Sampling, requests: Sequence[tuple[Trajectory, int]]
    ) -> Sequence[Step | Failure]:
        try:
            return await self.lm.extend([t for t, _ in requests], sampling, [seed for _, seed in requests])
        except ContextLengthError as error:  # one prompt is too long, but the others shall not fail with it
            if len(requests) == 1:
                return [Failure(error)]
            results = await gather(self._extend_all(sampling, [request]) for request in requests)
            return [outcome for outcomes in results for outcome in outcomes]


def _digest(*parts: str | int) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def expectation(groups: Sequence[Sequence[_Reply]], verdicts: Mapping[str, float]) -> float | None:
    """The score of replies, see `Judge`; None if none states a verdict. Each group is from one distribution."""
    groups = [replies for replies in groups if any(reply.verdict is not None for reply in replies)]
    if not groups:
        return None
    valid = [reply for replies in groups for reply in replies if reply.verdict is not None]
    if all(reply.probability is not None for reply in valid):
        return fmean(_expected_score(replies, verdicts) for replies in groups)
    scores = [verdicts[reply.verdict] for reply in valid if reply.verdict is not None]
    return fmean([*scores, *verdicts.values()])


def _expected_score(replies: Sequence[_Reply], verdicts: Mapping[str, float]) -> float:
    """The expected score of replies from one distribution, whose probabilities are known."""
    distinct = {reply.text: reply for reply in replies}.values()
    stated = [(reply.verdict, reply.probability or 0.0) for reply in distinct if reply.verdict is not None]
    total = sum(probability * verdicts[verdict] for verdict, probability in stated)
    mass = sum(probability for _, probability in stated)
    if missing := [score for verdict, score in verdicts.items() if verdict not in dict(stated)]:
        rest = max(0.0, 1.0 - sum(reply.probability or 0.0 for reply in distinct))
        total, mass = total + rest * fmean(missing), mass + rest
    return min(1.0, total / mass)
