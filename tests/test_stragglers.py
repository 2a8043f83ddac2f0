"""Requests under a deadline to servers that leave some without a response, are slow, or become slow.

Time is virtual."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import httpx2
import pytest

import faulty
import motes
from engines import VLLM, connect
from motes import ParticleFilter, Problem, Sampling, Trajectory
from motes.concurrency import ORIGIN, Batcher, CallBatcher, Origin, Pending, working_for
from motes.core import Step
from motes.models.served import HTTPLanguageModel
from motes.transport import Client, Retries
from motes.transport.stragglers import FEWEST, FLOOR, MOST_CREDIT, SHARE, Stragglers
from virtual_time import timed

NEVER = 1e6
STEPS = Sampling(max_steps=4, max_step_tokens=8)


class Timed(VLLM):
    """Takes `seconds()` for a request for tokens. `asked` counts them all, `answered` those whose client waited."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        super().__init__()
        self.seconds = seconds
        self.counts: Counter[str] = Counter()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().__call__(request)
        if request.url.path.endswith("/completions"):
            self.counts["asked"] += 1
            await asyncio.sleep(self.seconds())
            self.counts["answered"] += 1
        return response


def stalling(share: float, mean: float = 1.0, spread: float = 0.5) -> Callable[[], float]:
    """A share of requests never ends; the others take log-normal times."""
    chance = random.Random(0)
    return lambda: NEVER if chance.random() < share else mean * chance.lognormvariate(0, spread)


def answer(
    seconds: Callable[[], float],
    *,
    number: int = 40,
    concurrent: int = 4,
    deadline: float | None = 60.0,
    is_watched: bool = True,
    particles: int = 8,
    then: Callable[[Timed], None] = lambda engine: None,
) -> tuple[int, Counter[str], Counter[str]]:
    """Answer some questions. Returns how many took the whole deadline, the server's counts, and the outcomes of
    attempts. `then` is called when a quarter of the questions is answered."""
    engine, outcomes, ended = Timed(lambda: 0.0), Counter[str](), Counter[str]()

    async def main() -> None:
        lm = await connect(engine)
        engine.seconds = seconds
        engine.counts.clear()
        lm.watch_requests(lambda outcome, _: outcomes.update([outcome]))
        if not is_watched:
            lm.client._stragglers.watch = lambda *_: nullcontext()  # type: ignore[method-assign]
        room = asyncio.Semaphore(concurrent)

        async def one(i: int) -> None:
            async with room:
                result = await motes.asolve(
                    f"What is {i}?", lm=lm, reward=faulty.reward(), method=ParticleFilter(particles), sampling=STEPS,
                    seed=i, deadline=deadline,
                )  # fmt: skip
                ended[str(result.stopped)] += 1
                if ended.total() == number // 4:
                    then(engine)

        await asyncio.gather(*(one(i) for i in range(number)))

    timed(main)
    return ended["deadline"], engine.counts, outcomes


# ---------------------------------------------------------------------------------------------------------- simulations


def test_one_stall_in_twenty_costs_few_answers_their_deadline():
    """Each answer takes about 26 requests, and so has a stall with a chance of 0.74."""
    before, _, outcomes = answer(stalling(0.05), number=60, particles=12, is_watched=False)
    assert 0.6 * 60 < before < 0.88 * 60
    assert outcomes["straggler"] == 0
    after, counts, outcomes = answer(stalling(0.05), number=60, particles=12)
    assert after <= 0.05 * 60
    assert outcomes["straggler"] > 20
    assert outcomes["straggler"] + outcomes["cancelled"] == counts["asked"] - counts["answered"]
    assert outcomes["straggler"] < 0.08 * counts["asked"], "hardly one was given up in vain"


@pytest.mark.parametrize(("mean", "deadline"), [(0.1, 10.0), (2.0, 60.0)])
def test_however_fast_the_server_is(mean: float, deadline: float):
    before, _, _ = answer(stalling(0.05, mean), deadline=deadline, is_watched=False)
    after, _, _ = answer(stalling(0.05, mean), deadline=deadline)
    assert before >= 28
    assert after <= 4


@pytest.mark.parametrize("seconds", [0.01, 3.0, 12.0, 25.0, 50.0])
def test_a_slow_server_gets_no_request_twice(seconds: float):
    """Not even one whose responses take more than half of the deadline."""
    chance = random.Random(1)
    _, counts, outcomes = answer(lambda: seconds * chance.uniform(0.7, 1.1), number=20)
    assert outcomes["straggler"] == 0
    assert counts["asked"] == counts["answered"] + outcomes["cancelled"]


def test_a_server_that_becomes_slow_gets_few_requests_twice():
    """All requests take 30 times as long from one moment on: those that are in flight, and all that follow."""

    def slow_down(engine: Timed) -> None:
        engine.seconds = stalling(0.0, 20.0, 0.2)

    _, counts, outcomes = answer(stalling(0.0, 0.7, 0.2), number=80, concurrent=20, deadline=120, then=slow_down)
    assert 0 < outcomes["straggler"] <= MOST_CREDIT + SHARE * counts["answered"]
    assert outcomes["straggler"] < 0.05 * counts["answered"]


def test_a_server_that_freezes_is_not_flooded():
    """For 40 seconds nothing is answered, then everything that is still asked for is."""

    frozen = [False]

    async def freeze(engine: Timed) -> None:
        frozen[0] = True
        engine.seconds = lambda: 40.0
        await asyncio.sleep(40)
        engine.seconds = stalling(0.0)

    tasks = []
    _, counts, outcomes = answer(
        stalling(0.0),
        number=60,
        concurrent=30,
        deadline=100,
        then=lambda e: tasks.append(asyncio.ensure_future(freeze(e))),
    )
    assert frozen[0]
    assert outcomes["straggler"] <= MOST_CREDIT + SHARE * counts["answered"]


def test_without_a_deadline_nothing_is_given_up():
    chance = random.Random(0)
    _, counts, outcomes = answer(lambda: 1000.0 if chance.random() < 0.05 else 1.0, number=5, deadline=None)
    assert counts["asked"] == counts["answered"]
    assert set(outcomes) == {"ok"}


# ------------------------------------------------------------------------------------------------------ single requests


class Answers:
    """Answers one request after another after so many seconds each; the last number counts for all that follow."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = seconds
        self.began: list[float] = []
        self.outcomes: list[tuple[str, float]] = []

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        seconds = self.seconds[min(len(self.began), len(self.seconds) - 1)]
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(seconds)
        return httpx2.Response(200, json={"fine": 1})

    def client(self, **options: Any) -> Client:
        client = Client("http://server.test/v1", transport=httpx2.MockTransport(self), **options)
        client.observe = lambda outcome, seconds: self.outcomes.append((outcome, round(seconds, 3)))
        return client


def ask(server: Answers, known: Sequence[float], *, seconds: float | None = 60.0, **options: Any) -> float:
    """The seconds of one request under a deadline, after others of these durations."""

    async def main() -> float:
        client, clock = server.client(**options), asyncio.get_running_loop().time
        for duration in known:
            client._stragglers.note(("http://server.test/v1/x", 4), duration)
        began = clock()
        with working_for(Origin(None if seconds is None else began + seconds)):
            assert await client.post("x", {}, num_tokens=8) == {"fine": 1}
        return clock() - began

    return timed(main)[0]


def test_an_attempt_has_three_times_the_usual_time():
    assert ask(server := Answers(NEVER, 2.0), [2.0] * 20) == pytest.approx(6 + 2)
    assert server.outcomes == [("straggler", 6.0), ("ok", 2.0)]
    assert ask(Answers(5.9), [2.0] * 20) == pytest.approx(5.9)
    assert ask(Answers(NEVER, 2.0), [1.0] * 18 + [4.0] * 2) == pytest.approx(12 + 2), "a tenth takes longer"
    assert ask(Answers(NEVER, 2.0), [0.01] * 20) == pytest.approx(FLOOR + 2)


def test_each_straggler_doubles_the_time():
    assert ask(Answers(NEVER, NEVER, NEVER, 2.0), [1.0] * 20) == pytest.approx(3 + 6 + 12 + 2)
    assert ask(Answers(NEVER, NEVER, NEVER, 25.0), [1.0] * 20) == pytest.approx(30 + 25), "in the second half"
    assert ask(server := Answers(8.0), [1.0] * 20) == pytest.approx(3 + 6 + 8), "a long answer arrives"
    assert len(server.began) == 3


def test_the_last_attempt_is_not_given_up():
    """It has the second half of the time, or is the last of `attempts`."""
    assert ask(Answers(NEVER, NEVER, 49.0), [5.0] * 20, seconds=100.0) == pytest.approx(15 + 30 + 49)
    assert ask(Answers(29.9), [11.0] * 20) == pytest.approx(29.9)
    assert ask(Answers(NEVER, 50.0), [1.0] * 20, retries=Retries(attempts=2), seconds=300.0) == pytest.approx(53)
    assert ask(Answers(55.0), [1.0] * 20, retries=Retries(attempts=1)) == pytest.approx(55)


def test_where_little_is_known_it_has_half_of_the_time():
    for known in ([2.0] * (FEWEST - 1), [2.0], [29.0] * 20):
        assert ask(Answers(NEVER, 2.0), known) == pytest.approx(30 + 2)
    for known in ([], [31.0] * 20, [11.0]):
        assert ask(server := Answers(55.0), known) == pytest.approx(55)
        assert len(server.began) == 1


def test_others_that_end_meanwhile_count():
    """Sixteen requests at once, the first of their kind: one of them stalls, and is given up soon after the others."""

    async def main() -> None:
        client = server.client()
        with working_for(Origin(60.0)):
            await asyncio.gather(*(client.post("x", {}, num_tokens=8) for _ in range(16)))

    server = Answers(NEVER, *[1.0] * 16)
    assert timed(main)[1] == pytest.approx(5, abs=1.1)


def test_kinds_are_apart():
    """Requests for one token say nothing about requests for a thousand."""

    async def main() -> None:
        client = server.client()
        with working_for(Origin(60.0)):
            for _ in range(20):
                await client.post("x", {}, num_tokens=1)
            await client.post("x", {}, num_tokens=1000)
            await client.post("y", {}, num_tokens=1)

    server = Answers(*[0.1] * 20, 20.0, 20.0)
    timed(main)
    assert {outcome for outcome, _ in server.outcomes} == {"ok"}


def test_a_deadline_that_is_over_ends_nothing():
    assert ask(Answers(20.0), [1.0] * 20, seconds=-5.0) == pytest.approx(20)
    assert ask(Answers(90.0), [100.0] * 20, seconds=60.0) == pytest.approx(90)


def test_a_straggler_is_sent_again_without_a_pause():
    pauses = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    ask(server := Answers(NEVER, 2.0), [1.0] * 20, sleep=sleep)
    assert not pauses
    assert server.began == [0.0, pytest.approx(3.0)]


def test_the_credit_is_earned_by_answers():
    stragglers = Stragglers()
    kind = ("x", 1)

    async def give_up() -> bool:
        timeout = asyncio.timeout(None)
        try:
            async with timeout:
                with stragglers.watch(timeout, kind, asyncio.get_running_loop().time() + 50, 0):
                    await asyncio.sleep(49)
        except TimeoutError:
            return True
        return False

    for _ in range(20):
        stragglers.note(kind, 0.1)
    assert [timed(give_up)[0] for _ in range(12)] == [True] * 10 + [False] * 2
    for _ in range(5):
        stragglers.note(kind, 0.1)
    assert [timed(give_up)[0] for _ in range(2)] == [True, False]


# ------------------------------------------------------------------------------------------------------- the deadlines


class _Request(Pending[float | None]):
    pass


def test_merged_requests_have_the_latest_deadline():
    batches: list[tuple[int, float | None]] = []

    async def process(requests: list[_Request]) -> None:
        batches.append((len(requests), ORIGIN.get().deadline))
        parts = [requests[:1], requests[1:]]
        for part in filter(None, parts):
            batcher.start(settle(part), part)

    async def settle(requests: list[_Request]) -> None:
        for request in requests:
            request.settle(ORIGIN.get().deadline)

    async def call(deadline: float | None) -> float | None:
        with working_for(Origin(deadline)):
            (outcome,) = await batcher.submit([_Request()])
            assert ORIGIN.get().deadline == deadline
            return outcome

    async def main(*deadlines: float | None) -> list[float | None]:
        nonlocal batcher
        batcher = Batcher(process)
        return await asyncio.gather(*map(call, deadlines))

    batcher: Batcher[_Request, float | None] = None  # type: ignore[assignment]
    assert asyncio.run(main(5.0, 9.0, 7.0)) == [5.0, 9.0, 9.0]
    assert asyncio.run(main(5.0, 9.0, None)) == [5.0, None, None]
    assert asyncio.run(main(5.0)) == [5.0]
    assert batches == [(3, 9.0), (3, None), (1, 5.0)]


def test_calls_that_are_merged_have_the_latest_deadline():
    async def look(items: list[int]) -> list[float | None]:
        return [ORIGIN.get().deadline] * len(items)

    async def call(batcher: Any, deadline: float) -> Any:
        with working_for(Origin(deadline)):
            return await batcher([1])

    async def main() -> Any:
        batcher = CallBatcher(look)
        return await asyncio.gather(call(batcher, 5.0), call(batcher, 6.0))

    assert asyncio.run(main()) == [[6.0], [6.0]]


def test_a_run_says_when_its_answer_is_due():
    seen = set()

    class Model:
        async def extend(self, trajectories: Any, sampling: Any, seeds: Any) -> list[Step]:
            seen.add(ORIGIN.get().deadline)
            await asyncio.sleep(1)
            return [Step("\\boxed{1}", "eos")] * len(trajectories)

    class Reward:
        async def score(self, trajectories: Any) -> list[list[float]]:
            seen.add(ORIGIN.get().deadline)
            return [[0.5] * trajectory.depth for trajectory in trajectories]

    for deadline in (30.0, None):
        seen.clear()
        timed(lambda: motes.asolve("?", lm=Model(), reward=Reward(), method=ParticleFilter(4), deadline=deadline))  # noqa: B023
        assert seen == {deadline}
    assert ORIGIN.get().deadline is None


@pytest.mark.parametrize("seeds", ["particle", "none"])
def test_a_model_s_requests_have_the_deadlines_of_their_runs(seeds: Any):
    """Requests that runs share have the latest; those of the renderer, too."""
    seen: dict[str, set[float | None]] = {}

    class Looking(VLLM):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            seen.setdefault(request.url.path, set()).add(ORIGIN.get().deadline)
            return await super().__call__(request)

    async def extend(lm: HTTPLanguageModel, question: str, deadline: float | None) -> None:
        with working_for(Origin(deadline)):
            await lm.extend([Trajectory(Problem(question))] * 2, Sampling(max_step_tokens=8), [0, 1])

    async def main() -> None:
        lm = await connect(Looking(), seeds=seeds)
        seen.clear()
        await asyncio.gather(extend(lm, "a?", 50.0), extend(lm, "b?", 80.0))

    timed(main)
    assert seen["/tokenize"] == {80.0}
    assert seen["/v1/completions"] == ({50.0, 80.0} if seeds == "particle" else {80.0})


@pytest.mark.parametrize(("seeds", "shared"), [("particle", False), ("group", False), ("none", True)])
def test_requests_name_the_run_that_they_are_for(seeds: Any, shared: bool):
    """A balancer can keep a run on one server. A request that two runs share names neither."""
    seen: list[tuple[str, str | None]] = []

    class Looking(VLLM):
        async def __call__(self, request: httpx2.Request) -> httpx2.Response:
            if request.url.path == "/v1/completions":
                seen.append((request.content.decode(), request.headers.get("x-motes-run")))
            return await super().__call__(request)

    class Reward:
        async def score(self, trajectories: Any) -> list[list[float]]:
            return [[0.5] * trajectory.depth for trajectory in trajectories]

    async def main() -> None:
        lm = await connect(Looking(), seeds=seeds)
        seen.clear()
        sampling = Sampling(max_steps=2, max_step_tokens=8)
        solve = partial(motes.asolve, lm=lm, reward=Reward(), method=ParticleFilter(4), sampling=sampling)
        await asyncio.gather(solve("one?", seed=0), solve("two?", seed=0))

    timed(main)
    runs = {run for _, run in seen}
    assert len(seen) >= 2
    if shared:
        assert runs == {None}
    else:
        assert None not in runs
        assert len(runs) == 2, "two runs of one seed are two"
