"""Calls that fail together, and calls that become one batch: in general, and those of a run to its reward model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

import motes
from motes import (
    BestOfN,
    FunctionReward,
    Islands,
    ParticleFilter,
    Problem,
    Sampling,
    Step,
    TabularLanguageModel,
    TabularReward,
)
from motes.concurrency import Batcher, CallBatcher, Pending, first_result, gather
from motes.core import Failure, Trajectory

CHAIN = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(3)})


async def settle(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------------------------------------------- batches


def test_calls_of_one_turn_are_one_batch_and_outcomes_keep_their_order():
    batches: list[list[int]] = []

    async def square(items: list[int]) -> list[int]:
        batches.append(items)
        await asyncio.sleep(0)
        return [item * item for item in items]

    async def main() -> None:
        call = CallBatcher(square)
        assert await asyncio.gather(call([3, 1]), call([2]), call([])) == [[9, 1], [4], []]
        assert await call([5]) == [25]

    asyncio.run(main())
    assert batches == [[3, 1, 2], [5]]


def test_an_error_of_a_batch_reaches_each_of_its_callers_and_no_other():
    async def refuse(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("not that one")
        return items

    async def main() -> list[Any]:
        call = CallBatcher(refuse)
        bad = await asyncio.gather(call([13]), call([1]), return_exceptions=True)
        return [*bad, await call([2])]

    first, second, third = asyncio.run(main())
    assert (type(first), type(second), third) == (ValueError, ValueError, [2])


def test_work_is_cancelled_when_nobody_waits_for_it_any_more():
    cancelled: list[int] = []

    async def never(items: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.extend(items)
            raise
        return items

    async def main() -> None:
        call = CallBatcher(never)
        calls = [asyncio.ensure_future(call([i])) for i in range(2)]
        await settle()
        calls[0].cancel()
        await settle()
        assert cancelled == [], "another caller waits for the same batch"
        calls[1].cancel()
        await settle()
        assert cancelled == [0, 1]

    asyncio.run(main())


def test_what_is_withdrawn_before_the_batch_begins_is_not_in_it():
    batches: list[list[int]] = []

    async def keep(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    async def main() -> None:
        call = CallBatcher(keep)
        kept, withdrawn = asyncio.ensure_future(call([1])), asyncio.ensure_future(call([2]))
        await asyncio.sleep(0)
        withdrawn.cancel()
        assert await kept == [1]

    asyncio.run(main())
    assert batches == [[1]]


def test_parts_of_a_batch_fail_by_themselves():
    @dataclass(eq=False)
    class Number(Pending[int]):
        value: int

    async def settle_one(number: Number) -> None:
        number.settle(10 // number.value)

    async def process(numbers: list[Number]) -> None:
        for number in numbers:
            batcher.start(settle_one(number), [number])

    batcher: Batcher[Number, int] = Batcher(process)

    async def main() -> list[Any]:
        calls = (batcher.submit([Number(value)]) for value in (2, 0, 5))
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert (first, type(second), third) == ([5], ZeroDivisionError, [2])


def test_the_first_failure_cancels_the_rest():
    ended: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with pytest.raises(LookupError):
        asyncio.run(gather([fail(), wait(), wait()]))
    assert ended == ["cancelled"] * 2


def test_the_first_result_counts_and_the_others_are_cancelled():
    async def main() -> None:
        ended: list[str] = []

        async def work(name: str, turns: int, error: Exception | None = None) -> str:
            try:
                await settle(turns)
            finally:
                ended.append(name)
            if error is not None:
                raise error
            return name

        first = await first_result([work("a", 1000), work("b", 1, OSError()), work("c", 5)], OSError)
        assert (first, ended) == ("c", ["b", "c", "a"])
        with pytest.raises(OSError, match="the first"):
            await first_result([work("a", 5, OSError("the first")), work("b", 1, OSError("other"))], OSError)
        with pytest.raises(ZeroDivisionError):
            await first_result([work("a", 1000), work("b", 1, ZeroDivisionError())], OSError)
        assert ended[-1] == "a", "it was cancelled"

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------------- a run's calls


def batch_sizes(lm_merges: bool, method: Any, **options: Any) -> list[int]:
    """How many trajectories each call of a reward model that merges nothing was given."""
    sizes: list[int] = []

    class Counting(TabularReward):
        async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float]]:
            sizes.append(len(trajectories))
            return await super().score(trajectories)

    class Merging:
        merges_calls = lm_merges

        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            steps = await CHAIN.extend(trajectories, sampling, seeds)
            for _ in range(seeds[0] % 7 if lm_merges else 0):  # each ends at a time of its own
                await asyncio.sleep(0)
            return steps

    motes.solve("?", lm=Merging(), reward=Counting({}), method=method, seed=1, **options)
    return sizes


@pytest.mark.parametrize("lm_merges", [True, False])
def test_a_reward_model_scores_a_round_in_one_call(lm_merges: bool):
    assert batch_sizes(lm_merges, ParticleFilter(32)) == [32, 32, 32]
    assert batch_sizes(lm_merges, BestOfN(32)) == [32]


def test_parts_that_run_side_by_side_share_the_call():
    assert batch_sizes(False, Islands(4, 8)) == [32, 32, 32]


def test_under_a_deadline_what_has_ended_is_scored_at_once():
    sizes = batch_sizes(True, BestOfN(32), deadline=1000.0)
    assert sum(sizes) == 32
    assert len(sizes) > 1


# ------------------------------------------------------------------------------------------------ off the event loop


def node(text: str) -> Trajectory:
    return Trajectory(Problem("?")).extend(Step(text, "step"))


def test_a_sync_function_does_not_hold_up_the_event_loop():
    """The function waits for the loop to go on: on the loop's own thread it would wait for ever."""
    goes_on = threading.Event()

    def wait(problem: Problem, text: str) -> float:
        return float(goes_on.wait(60))

    async def main() -> Any:
        asyncio.get_running_loop().call_later(0.01, goes_on.set)
        return await FunctionReward(wait).score([node("a")])

    assert asyncio.run(main()) == [[1.0]]


def test_a_sync_function_is_never_called_twice_at_a_time():
    running = threading.Semaphore(1)
    threads: set[int] = set()

    def check(problem: Problem, text: str) -> float:
        assert running.acquire(blocking=False), "another call is under way"
        threads.add(threading.get_ident())
        running.release()
        return 0.5

    reward = FunctionReward(check)

    async def main() -> None:
        await asyncio.gather(*(reward.score([node(str(i))]) for i in range(50)))

    asyncio.run(main())
    assert threading.get_ident() not in threads


def test_a_run_that_is_cancelled_makes_no_further_calls():
    called: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def slow(problem: Problem, text: str) -> float:
        called.append(text)
        begun.set()
        goes_on.wait(60)
        return 0.5

    reward = FunctionReward(slow)

    async def main() -> Any:
        call = asyncio.ensure_future(reward.score([node("a"), node("b")]))
        while not begun.is_set():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        goes_on.set()
        return await reward.score([node("c")])

    assert asyncio.run(main()) == [[0.5]]
    assert called == ["a", "c"]


def test_a_function_that_never_returns_holds_up_its_own_run_only():
    goes_on = threading.Event()

    def stuck(problem: Problem, text: str) -> float:
        return float(goes_on.wait(60)) if "stuck" in text else 0.5

    reward = FunctionReward(stuck)

    async def main() -> Any:
        call = asyncio.ensure_future(reward.score([node("stuck")]))
        waiting = asyncio.ensure_future(reward.score([node("well")]))
        await asyncio.sleep(0.01)
        call.cancel()
        return await waiting

    try:
        assert asyncio.run(main()) == [[0.5]]
    finally:
        goes_on.set()


@pytest.mark.parametrize("wrap", [lambda fn: fn, lambda fn: lambda *given: fn(*given)], ids=["declared", "returned"])
def test_async_functions_run_on_the_event_loop(wrap: Callable[[Any], Any]):
    async def fn(problem: Problem, text: str) -> float:
        assert asyncio.get_running_loop()
        return 0.25

    class Object:
        async def __call__(self, problem: Problem, text: str) -> float:
            return await fn(problem, text)

    async def main(reward: FunctionReward) -> Any:
        return await reward.score([node("a"), node("b")])

    assert asyncio.run(main(FunctionReward(wrap(fn)))) == [[0.25], [0.25]]
    assert asyncio.run(main(FunctionReward(wrap(Object())))) == [[0.25], [0.25]]


# ------------------------------------------------------------------------------------------------------------- memory


def test_only_finished_answers_keep_their_text():
    """If every node kept the text up to it, memory would grow with the square of the number of steps."""
    result = motes.solve(
        "?",
        lm=TabularLanguageModel({("a" * 10,) * k: {"a" * 10: 1.0} for k in range(30)}),
        reward=TabularReward({}),
        method=ParticleFilter(4),
        sampling=Sampling(max_steps=30),
    )
    nodes = {t for record in result.records for t in record.trajectories}
    assert sum(len(t._text or "") for t in nodes if t.finished is None) == 0
    assert [t.text for t in result.trajectories] == ["a" * 300] * 4
    assert all(t.text is t.text for t in result.trajectories)


def test_tokens_are_counted_along_the_path():
    lm = TabularLanguageModel({("a",) * k: {"a": 1.0} for k in range(5)})
    result = motes.solve("?", lm=lm, reward=None, method=motes.Majority(2))
    assert [t.num_tokens for t in result.trajectories[0].path] == [1, 2, 3, 4, 5]


def test_a_failure_says_what_the_attempt_cost():
    class Refusing(TabularReward):
        async def score(self, trajectories: Sequence[Trajectory]) -> Any:
            refused = Failure(motes.errors.RewardError("no"), motes.Usage(reward_tokens=7))
            return [refused if "b" in t.text else [0.5] * t.depth for t in trajectories]

    lm = TabularLanguageModel({(): {"a": 0.5, "b": 0.5}})
    result = motes.solve("?", lm=lm, reward=Refusing({}), method=ParticleFilter(8), seed=0)
    failed = len(result.dropped)
    assert 0 < failed < 8
    assert (result.usage.reward_tokens, result.usage.failed_reward_tokens) == (0, 7 * failed)


def test_names_of_errors_that_are_gone_can_still_be_caught():
    with pytest.warns(DeprecationWarning, match="return `motes.core.Failure`"):
        from motes.errors import StepsFailedError
    assert issubclass(StepsFailedError, motes.errors.MotesError)
    with pytest.raises(ImportError):
        from motes.errors import NeverWasError  # noqa: F401
