"""Answers drawn one after the other until there are enough: adaptive self-consistency, and DeepConf."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

import motes
from costs import own
from motes import AdaptiveMajority, DeepConf, Failure, Majority, Result, Sampling, Step, Trajectory
from motes.confidence import Confidences, measure_trajectory
from motes.core import Certainty
from motes.errors import ConfigurationError, EngineError, NoParticlesError
from motes.methods.adaptive_majority import beta_lead, dirichlet_lead
from motes.tasks.arithmetic import Arithmetic

STORY = "Some friends collect pears. Ben owns 7. Rosa has 5 more than Ben. How many does Rosa have?"
STORIES = Arithmetic().problems("test")[60:66]


class Scripted:
    """Answers by the number of their draw, each of steps of one token, with the confidences given; None: it is unknown.
    The answer "fails" fails at its last step.

    Attributes:
        begun, ended, cancelled: numbers of the draws.
    """

    merges_calls = True

    def __init__(
        self,
        answers: Sequence[str | None],
        confidences: Sequence[Sequence[float | None]] = (),
        slow: Sequence[int] = (),
    ) -> None:
        self.answers, self.confidences, self.slow = answers, confidences or [[5.0]] * len(answers), slow
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self._numbers: dict[int, int] = {}
        self.never = asyncio.Event()

    async def extend(
        self, trajectories: Sequence[Trajectory], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Step | Failure]:
        (trajectory,) = trajectories
        number = int(trajectory.text.split("#")[0]) if trajectory.depth else len(self.begun)
        if not trajectory.depth:
            self.begun.append(number)
        await asyncio.sleep(0)
        if number in self.slow:
            try:
                await self.never.wait()
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise
        confidences = self.confidences[number]
        is_last = trajectory.depth == len(confidences) - 1
        answer = self.answers[number]
        if answer == "fails" and is_last:
            return [Failure(EngineError("no more"))]
        text = ("" if trajectory.depth else f"{number}#") + (
            rf"\boxed{{{answer}}}" if is_last and answer is not None else "a\n\n"
        )
        confidence, certainty = confidences[trajectory.depth], None
        if confidence is not None and sampling.top_logprobs:
            certainty = Certainty(np.array([[0, 0, confidence]], dtype=np.float32), 4)
        if is_last:
            self.ended.append(number)
        return [Step(text, "eos" if is_last else "step", (1,), certainty=certainty)]


def solve(lm: Any, method: Any, **options: Any) -> Result:
    return motes.solve("How many?", lm=lm, method=method, seed=1, **options)


# ------------------------------------------------------------------------------------- the posterior of the leader


@pytest.mark.parametrize("votes", [[1], [4], [3, 1], [5, 5], [20, 15, 3], [200, 150]])
def test_beta_is_the_integral(votes: list[int]):
    first, second = (*votes, 0)[:2]
    assert beta_lead(votes) == pytest.approx(stats.beta.sf(0.5, first + 1, second + 1), abs=1e-12)


@pytest.mark.parametrize("votes", [[1], [4], [3, 1], [5, 5], [5, 3, 2], [20, 15, 3, 1], [400, 350]])
def test_dirichlet_is_the_chance_of_the_largest(votes: list[int]):
    """Against a million draws. A false alarm in a million runs for each case."""
    draws = np.random.default_rng(0).standard_gamma([*(v + 1 for v in votes), 1], size=(1_000_000, len(votes) + 1))
    share = float(np.mean(draws.argmax(axis=-1) == 0))
    error = math.sqrt(share * (1 - share) / 1_000_000)
    assert abs(dirichlet_lead(votes) - share) < 4.9 * error + 1e-6


def test_two_answers_alone_have_the_same_posterior_in_both():
    assert dirichlet_lead([30, 18]) == pytest.approx(beta_lead([30, 18]), abs=1e-6)  # the third is out of the race
    assert dirichlet_lead([3]) == pytest.approx(beta_lead([3]), abs=1e-6)


# -------------------------------------------------------------------------------------------- adaptive self-consistency


def test_without_a_threshold_it_is_majority_for_less():
    """It stops only where the leader cannot be overtaken."""
    saved = 0
    for problem in (STORY, STORIES[0]):
        whole = motes.solve(problem, lm="tiny", method=Majority(12), seed=3)
        found = motes.solve(problem, lm="tiny", method=AdaptiveMajority(12, decided=2), seed=3)
        n = len(found.trajectories)
        assert found.answer == whole.answer
        assert [t.text for t in found.trajectories] == [t.text for t in whole.trajectories[:n]]
        saved += whole.usage.generated_tokens - found.usage.generated_tokens
        if n < 12:
            votes = [count for _, count in Counter(filter(None, found.answers)).most_common()] + [0]
            assert votes[0] - votes[1] > 12 - n
    assert saved > 0


@pytest.mark.parametrize("posterior", ["beta", "dirichlet"])
@pytest.mark.parametrize("decided", [0.7, 0.95])
def test_it_stops_at_the_first_answer_that_decides(posterior: Any, decided: float):
    lead = {"beta": beta_lead, "dirichlet": dirichlet_lead}[posterior]
    rng = np.random.default_rng(7)
    lengths = set()
    for _ in range(20):
        answers = [str(i) if i < 4 else None for i in rng.choice(5, size=16, p=[0.5, 0.2, 0.1, 0.1, 0.1])]
        found = solve(Scripted(answers), AdaptiveMajority(16, decided=decided, posterior=posterior))
        for n in range(1, 17):
            votes = [count for _, count in Counter(filter(None, answers[:n])).most_common()]
            runner_up = votes[1] if len(votes) > 1 else 0
            if votes and (lead(votes) >= decided or votes[0] - runner_up > 16 - n):
                break
        assert list(found.answers) == answers[:n]
        lengths.add(n)
    assert len(lengths) > 1


def test_its_result_and_its_cost_do_not_depend_on_how_many_are_in_flight():
    """What those cost that are cancelled counts as failed."""
    for problem in (STORY, STORIES[0]):
        results = [
            motes.solve(problem, lm="tiny", method=AdaptiveMajority(8, num_in_flight=k), seed=4) for k in (1, 3, 8)
        ]
        first = results[0]
        assert first.usage.failed_tokens == 0
        for result in results:
            assert [t.text for t in result.trajectories] == [t.text for t in first.trajectories]
            cost = dataclasses.replace(own(result.usage), failed_generated_tokens=0, failed_prefill_tokens=0)
            assert cost == own(first.usage)
            assert result.records[-1].usage.generated_tokens == sum(t.num_tokens for t in result.trajectories)


def test_calls_that_failed_count_whatever_is_in_flight():
    answers = ["1", "fails", *["1"] * 14]
    usages = [solve(Scripted(answers), AdaptiveMajority(16, num_in_flight=k)).usage for k in (1, 6)]
    assert [usage.failed_generated_tokens for usage in usages] == [0, 1]
    assert dataclasses.replace(usages[1], failed_generated_tokens=0) == usages[0]
    assert usages[0].lm_calls == 5


def test_what_is_in_flight_is_cancelled():
    lm = Scripted(["7"] * 20, slow=range(4, 20))
    result = solve(lm, AdaptiveMajority(20, num_in_flight=6))
    assert result.answer == "7"
    assert len(result.trajectories) == 4  # 1 − 2^−5 is above 0.95
    assert lm.cancelled == lm.begun[4:] == [4, 5]
    assert result.usage.generated_tokens == 4


def test_votes_need_answers():
    lm = Scripted([None, "1", None, "2", "2", None, "2", "2", "2"])
    result = solve(lm, AdaptiveMajority(9))
    assert result.answer == "2"
    assert len(result.trajectories) == 8  # 4 to 1, and one more to come
    assert solve(Scripted([None] * 5), AdaptiveMajority(5)).answer is None


def test_answers_that_are_ready_at_a_deadline_count():
    """The first is not, those behind it are."""

    class Deadline(Scripted):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            steps = await super().extend(trajectories, sampling, seeds)
            if len(self.ended) == 4:
                limits.bring_forward(asyncio.get_running_loop().time())
            return steps

    limits = motes.methods.limits.Limits()
    lm = Deadline(["1", "2", "2", "2", "3"], slow=[0])
    method = AdaptiveMajority(5, num_in_flight=5)
    result = motes.solve("How many?", lm=lm, method=method, limits=limits)
    assert result.stopped == "deadline"
    assert result.answer == "2"
    assert [t.finished for t in result.trajectories] == ["deadline", *["eos"] * 3]  # the fifth cannot change it


@pytest.mark.parametrize("method", [AdaptiveMajority(4), DeepConf(4), DeepConf(4, mode="offline")])
def test_a_deadline_that_has_passed_leaves_an_empty_answer(method: Any):
    result = solve(Scripted(["1"] * 4), method, deadline=1e-9)
    assert (result.stopped, result.answer, result.text) == ("deadline", None, "")
    assert [t.finished for t in result.trajectories] == ["deadline"]


def test_a_token_budget_cuts_off_by_order_not_by_speed():
    results = [
        motes.solve(STORIES[0], lm="tiny", method=AdaptiveMajority(16, decided=2), token_budget=300, seed=2)
        for _ in range(2)
    ]
    assert results[0].stopped == "token_budget"
    assert results[0].usage.generated_tokens >= 300
    assert results[0].usage.failed_tokens == 0
    assert [t.text for t in results[0].trajectories] == [t.text for t in results[1].trajectories]
    assert results[0].trajectories[-1].finished == "token_budget"


def test_dropped_draws_do_not_vote_and_an_error_is_raised():
    lm = Scripted(["1", "fails", "1", "fails", "1", "1", "1"])
    result = solve(lm, AdaptiveMajority(7))
    assert (result.answer, len(result.dropped)) == ("1", 2)
    with pytest.raises(NoParticlesError):
        solve(Scripted(["fails"] * 4), AdaptiveMajority(4))

    class Broken(Scripted):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            if len(self.begun) == 2:
                raise EngineError("gone")
            return await super().extend(trajectories, sampling, seeds)

    with pytest.raises(EngineError, match="gone") as caught:
        solve(Broken(["1", "2", "3", "4"]), AdaptiveMajority(4))
    assert caught.value.result.usage.generated_tokens == 2  # type: ignore[attr-defined]


def test_answers_can_be_watched_as_they_grow():
    seen: list[Sequence[Trajectory]] = []
    lm = Scripted(["1", "2"], [[5.0, 5.0], [6.0, 6.0]])
    result = solve(lm, DeepConf(2, mode="offline"), on_progress=seen.append)
    assert [[t.depth for t in trajectories] for trajectories in seen] == [[1, 0], [1, 1], [2, 1], [2, 2]]
    assert tuple(seen[-1]) == result.trajectories


def test_models_of_whole_answers_will_do():
    class Whole(Scripted):
        continues_prefixes = False

        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            assert sampling.max_steps == 1
            return await super().extend(trajectories, sampling, seeds)

    assert solve(Whole(["3"] * 8), AdaptiveMajority(8)).answer == "3"
    result = solve(Whole(["3", "4"] * 4), DeepConf(8, warmup=4, keep=1))
    assert len(result.trajectories) == 8


# ----------------------------------------------------------------------------------------------------- DeepConf

CONFIDENCES = [[6.0, 6.0], [9.0, 3.0], [5.0, 5.0], [8.0, 8.0], [4.0, 4.0], [7.0, 7.0]]


def test_offline_is_a_vote_among_the_certain_ones_weighted_by_confidence():
    lm = Scripted(["1", "1", "1", "2", "1", "2"], CONFIDENCES)
    result = solve(lm, DeepConf(6, mode="offline", keep=0.5, measure="certainty", window=1))
    assert result.answer == "2"  # 8 and 7 against 6 and, level with it, 6
    assert_weights(result, [6, 6, 0, 8, 0, 7])
    result = solve(Scripted(["1", "1", "1", "2", "1", "2"], CONFIDENCES), DeepConf(6, mode="offline", keep=1, window=1))
    assert result.answer == "1"  # by the lowest token: 6 + 3 + 5 + 4 against 8 + 7
    assert_weights(result, [6, 3, 5, 8, 4, 7])


def assert_weights(result: Result, expected: Sequence[float]) -> None:
    weights = np.exp(result.log_weights)
    assert weights / weights.sum() == pytest.approx(np.array(expected) / sum(expected), rel=1e-5)


def test_offline_draws_what_majority_draws():
    whole = motes.solve(STORIES[1], lm="tiny", method=Majority(12), seed=5)
    found = motes.solve(STORIES[1], lm="tiny", method=DeepConf(12, mode="offline", window=8, keep=0.25), seed=5)
    assert [t.text for t in found.trajectories] == [t.text for t in whole.trajectories]
    assert own(found.usage) == own(whole.usage)
    values = [measure_trajectory(t, "lowest", Confidences(8)) for t in found.trajectories]
    least = np.quantile(values, 0.75) * 0.9999
    assert_weights(found, [value if value >= least else 0 for value in values])


def test_online_stops_answers_of_low_confidence():
    """Their steps up to there cost, and no more; they have no vote."""
    first = [[5.0, 5.0, 5.0], [6.0, 6.0, 6.0]]
    others = [[9.0, 4.9, 9.0], [7.0, 7.0, 7.0], [5.0, 9.0, 9.0]]
    lm = Scripted(["1", "2", "3", "2", "1"], [*first, *others])
    result = solve(lm, DeepConf(5, warmup=2, keep=1, window=1, consensus=2))
    assert [t.finished for t in result.trajectories] == ["eos", "eos", "low_confidence", "eos", "eos"]
    assert result.trajectories[2].depth == 2
    assert result.usage.generated_tokens == 14
    assert result.answers == ("1", "2", None, "2", "1")
    assert_weights(result, [5, 6, 0, 7, 5])
    assert result.answer == "2"


def test_online_has_windows_of_several_tokens():
    """One low token does not stop an answer, a low window does; there is none before it is full."""
    first = [[5.0] * 4]
    others = [[1.0, 9.0, 9.0, 9.0], [1.0, 8.5, 9.0, 9.0], [9.0, 9.0, 9.0, 0.5]]
    lm = Scripted(["1"] * 4, [*first, *others])
    result = solve(lm, DeepConf(4, warmup=1, window=2, consensus=2))
    assert [(t.finished, t.depth) for t in result.trajectories[1:]] == [("eos", 4), ("low_confidence", 2), ("eos", 4)]
    assert_weights(result, [5, 5, 0, 0])  # its last window ended with it: it is complete, but does not vote


def test_online_ends_with_a_consensus():
    lm = Scripted(["1", "2", *["1"] * 30], slow=range(8, 32))
    result = solve(lm, DeepConf(32, warmup=4, keep=1, consensus=0.8, num_in_flight=7))
    assert result.answer == "1"
    assert len(result.trajectories) == 5  # 4 of 5
    assert lm.cancelled
    assert result.usage.generated_tokens == 5


def test_a_consensus_of_the_first_answers_is_enough():
    lm = Scripted(["1", "2", *["1"] * 30], [[9.0], [1.0], *[[8.0]] * 30])
    result = solve(lm, DeepConf(32, warmup=2, keep=0.5))
    assert result.answer == "1"
    assert lm.begun == [0, 1]


def test_dropped_answers_set_no_threshold():
    """What the first of them were when they failed is no reason to let others go on."""
    lm = Scripted(["1", "fails", "2"], [[5.0, 5.0], [1.0, 9.0], [3.0, 9.0]])
    result = solve(lm, DeepConf(3, warmup=2, keep=1, window=1, consensus=2))
    assert [t.finished for t in result.trajectories] == ["eos", "failed", "low_confidence"]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_answers_of_unknown_confidence_are_dropped(mode: Any):
    lm = Scripted(["1", "2", "2", "1"], [[5.0], [None, 9.0], [6.0, None], [5.0]])
    result = solve(lm, DeepConf(4, mode=mode, warmup=2, keep=1, consensus=2))
    assert [(t.finished, t.depth) for t in result.trajectories] == [
        ("eos", 1),
        ("failed", 1),
        ("failed", 2),
        ("eos", 1),
    ]
    assert result.answer == "1"
    assert_weights(result, [5, 0, 0, 5])
    with pytest.raises(NoParticlesError, match="returned no log-probabilities of the likeliest tokens"):
        solve(Scripted(["1"] * 4, [[None]] * 4), DeepConf(4, mode=mode))


def test_its_result_does_not_depend_on_how_many_are_in_flight():
    method = DeepConf(16, warmup=6, keep=0.3, window=8)
    for problem in (STORY, STORIES[0]):
        results = [
            motes.solve(problem, lm="tiny", method=dataclasses.replace(method, num_in_flight=k), seed=4)
            for k in (1, 5, 16)
        ]
        for result in results:
            assert [t.text for t in result.trajectories] == [t.text for t in results[0].trajectories]
            assert result.log_weights.tolist() == pytest.approx(results[0].log_weights.tolist(), abs=1e-4)
            cost = dataclasses.replace(own(result.usage), failed_generated_tokens=0, failed_prefill_tokens=0)
            assert cost == own(results[0].usage)


def test_if_no_certain_answer_is_stated_all_vote():
    lm = Scripted([None, "1", "1", "2"], [[9.0], [5.0], [4.0], [6.0]])
    result = solve(lm, DeepConf(4, mode="offline", keep=0.1))
    assert result.answer == "1"
    assert_weights(result, [9, 5, 4, 6])


def test_a_text_without_a_token_has_no_vote_and_harms_nothing():
    class Empty(Scripted):
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> Any:
            return [Step("", "eos") for _ in trajectories]

    assert solve(Empty(["1"] * 3), DeepConf(3)).answer is None


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: AdaptiveMajority(0), "n must be"),
        (lambda: AdaptiveMajority(4, decided=0.5), "more than 0.5"),
        (lambda: AdaptiveMajority(4, posterior="gauss"), "posterior"),  # type: ignore[arg-type]
        (lambda: AdaptiveMajority(4, num_in_flight=0), "num_in_flight"),
        (lambda: DeepConf(4, keep=0), r"\(0, 1\]"),
        (lambda: DeepConf(4, keep=1.5), r"\(0, 1\]"),
        (lambda: DeepConf(4, consensus=0.4), "more than 0.5"),
        (lambda: DeepConf(4, measure="entropy"), "measures confidence"),
        (lambda: DeepConf(4, window=0), "window"),
        (lambda: DeepConf(4, warmup=0), "warmup"),
        (lambda: DeepConf(4, top_logprobs=1), "top_logprobs"),
        (lambda: DeepConf(4, mode="both"), "mode"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: Any, fault: str):
    with pytest.raises(ConfigurationError, match=fault):
        make()
