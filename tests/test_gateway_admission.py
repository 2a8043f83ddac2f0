"""The gate: a bound that holds, shares that are fair, limits that are told. No test waits on a clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from motes.gateway.admission import Admission, BusyError, Caller


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())


async def settle() -> None:
    """Let every task go on as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Request:
    """One that stays until it is told to leave."""

    def __init__(self, gate: Admission, caller: Caller, particles: int, started: list[Request]) -> None:
        self.caller, self.particles, self.leave = caller, particles, asyncio.Event()
        self.task = asyncio.create_task(self._go(gate, started))

    async def _go(self, gate: Admission, started: list[Request]) -> None:
        async with gate.enter(self.caller, self.particles):
            started.append(self)
            await self.leave.wait()


def test_the_bound_holds_and_everyone_is_served():
    async def test() -> None:
        chance = random.Random(0)
        gate = Admission(100, 10_000)
        callers = [Caller(str(i), 1000) for i in range(5)]
        started: list[Request] = []
        requests = [Request(gate, chance.choice(callers), chance.randint(1, 100), started) for _ in range(400)]
        while not all(request.task.done() for request in requests):
            await settle()
            inside = [request for request in started if not request.task.done()]
            assert gate.in_flight == sum(request.particles for request in inside) <= 100
            assert inside, "as long as somebody is left, somebody is inside"
            for request in chance.sample(inside, chance.randint(1, len(inside))):
                request.leave.set()
            for request in chance.sample(requests, 5):
                request.task.cancel()
            await settle()
        served = sum(not request.task.cancelled() for request in requests)
        assert 100 < served < 400
        assert (gate.in_flight, gate.in_queue) == (0, 0)
        assert all(caller.present == 0 for caller in callers)

    run(test)


def test_a_caller_of_many_does_not_keep_one_waiting():
    async def test() -> None:
        gate, started = Admission(4, 1000), []
        many, one = Caller("many", 1000), Caller("one", 1000)
        first = [Request(gate, many, 2, started) for _ in range(100)]
        await settle()
        assert started == first[:2]
        last = Request(gate, one, 2, started)
        await settle()
        started[0].leave.set()
        await settle()
        assert started[2] is last, "the next to start, before the 98 others"

    run(test)


def test_callers_get_equal_shares_of_particles_not_of_requests():
    async def test() -> None:
        gate, started = Admission(8, 1000), []
        large, small = Caller("large", 1000), Caller("small", 1000)
        for _ in range(100):
            Request(gate, large, 8, started), Request(gate, small, 1, started)
        while sum(request.caller is small for request in started) < 90:
            await settle()
            for request in started:
                request.leave.set()
        given = {caller: sum(r.particles for r in started if r.caller is caller) for caller in (large, small)}
        assert given[small] >= 90
        assert abs(given[large] - given[small]) <= 2 * 8

    run(test)


def test_who_asked_for_nothing_has_saved_up_nothing():
    """What a caller has been given while it was alone does not count once another comes, nor the other way round."""

    async def test() -> None:
        gate, started = Admission(1, 1000), []
        always, late = Caller("always", 1000), Caller("late", 1000)
        for _ in range(50):
            Request(gate, always, 1, started).leave.set()
            await settle()
        first = [Request(gate, caller, 1, started) for caller in (always, late) for _ in range(20)]
        for _ in first:
            await settle()
            started[-1].leave.set()
        order = [request.caller.name for request in started[50:]]
        assert len(order) == 40
        for count in range(1, 21):
            assert abs(order[:count].count("always") - order[:count].count("late")) <= 1

    run(test)


@pytest.mark.parametrize("gone", [1, 50, 200])
def test_who_left_before_it_started_was_given_nothing(gone):
    """Those who gave up while they waited, and those who were let in and left at once."""

    async def test() -> None:
        gate, started = Admission(4, 1000), []
        impatient, other = Caller("impatient", 1000), Caller("other", 1000)
        holder = Request(gate, Caller("holder", 1), 4, started)
        await settle()
        left = [Request(gate, impatient, 4, started) for _ in range(gone)]
        await settle()
        for request in left[:-1]:
            request.task.cancel()
        await settle()
        assert (gate.in_flight, gate.in_queue, impatient.present) == (4, 1, 1)
        holder.leave.set()
        while gate.in_queue:
            await asyncio.sleep(0)
        assert gate.in_flight == 4
        assert left[-1] not in started, "it was let in and does not know yet"
        left[-1].task.cancel()
        await settle()
        assert left[-1].task.cancelled()
        assert (gate.in_flight, gate.in_queue, impatient.present) == (0, 0, 0)
        held = Request(gate, other, 2, started)
        await settle()
        again = Request(gate, impatient, 4, started)
        await settle()
        for _ in range(5):
            Request(gate, other, 4, started)
        held.leave.set()
        await settle()
        assert started[2] is again

    run(test)


@pytest.mark.parametrize("held", [0.1, 0.25, 0.5, 1.0, 3.0])
def test_a_request_that_is_cancelled_counts_for_the_time_that_it_held_its_room(held: float):
    """One caller leaves each of its requests after a part of the usual second, and starts so many more."""

    async def test() -> None:
        clock = Clock()
        gate, started = Admission(4, 1000, clock), []
        impatient, patient = Caller("impatient", 1000), Caller("patient", 1000)
        for _ in range(400):
            Request(gate, impatient, 4, started), Request(gate, patient, 4, started)
        await settle()
        while sum(request.caller is patient for request in started) < 30:
            request = started[-1]
            clock.now += held if request.caller is impatient else 1.0
            request.task.cancel() if request.caller is impatient else request.leave.set()
            await settle()
        ratio = sum(request.caller is impatient for request in started) / 30
        assert ratio == pytest.approx(max(1, 1 / held), rel=0.1)

    run(test)


def test_who_comes_first_is_let_in_first():
    """Where nothing else decides."""

    async def test() -> None:
        gate, started = Admission(1, 1000), []
        callers = [Caller(str(i), 1) for i in range(20)]
        holder = Request(gate, Caller("holder", 1), 1, started)
        await settle()
        requests = [Request(gate, caller, 1, started) for caller in callers]
        for _ in range(21):
            await settle()
            started[-1].leave.set()
        assert started == [holder, *requests]

    run(test)


def test_small_ones_do_not_overtake_a_large_one_for_ever():
    async def test() -> None:
        gate, started = Admission(8, 1000), []
        caller = Caller("a", 1000)
        holder = Request(gate, caller, 1, started)
        await settle()
        large = Request(gate, caller, 8, started)
        small = [Request(gate, caller, 1, started) for _ in range(5)]
        await settle()
        assert started == [holder]
        holder.leave.set()
        await settle()
        assert started == [holder, large]
        large.leave.set()
        await settle()
        assert started == [holder, large, *small]

    run(test)


def test_one_that_leaves_the_queue_lets_the_next_one_in():
    async def test() -> None:
        gate, started = Admission(2, 1000), []
        caller = Caller("a", 1000)
        Request(gate, caller, 1, started)
        await settle()
        blocking, next_one = Request(gate, caller, 2, started), Request(gate, caller, 1, started)
        await settle()
        assert len(started) == 1
        blocking.task.cancel()
        await settle()
        assert started[1:] == [next_one]
        assert (gate.in_flight, gate.in_queue, caller.present) == (2, 0, 2)

    run(test)


def test_who_is_turned_away_is_told_when_to_come_back():
    async def test() -> None:
        clock = Clock()
        gate, started = Admission(1, 2, clock), []
        caller = Caller("a", 1000)
        requests = [Request(gate, caller, 1, started) for _ in range(3)]
        await settle()
        assert (gate.in_flight, gate.in_queue) == (1, 2)
        with pytest.raises(BusyError, match="2 requests are waiting already") as caught:
            async with gate.enter(caller, 1):
                pass
        assert caught.value.retry_after == pytest.approx(3.0), "a second each, as long as nothing is known"
        assert caller.present == 3
        clock.now = 100.0
        requests[0].leave.set()
        await settle()
        Request(gate, caller, 1, started)
        await settle()
        with pytest.raises(BusyError) as caught:
            async with gate.enter(caller, 1):
                pass
        assert caught.value.retry_after > 30

    run(test)


def test_requests_at_once():
    async def test() -> None:
        gate, started = Admission(10, 10), []
        caller, other = Caller("a", 2), Caller("b", 2)
        held = [Request(gate, caller, 1, started) for _ in range(2)]
        await settle()
        with pytest.raises(BusyError, match="more than 2 requests at once"):
            async with gate.enter(caller, 1):
                pass
        async with gate.enter(other, 1):
            assert gate.in_flight == 3
        held[0].leave.set()
        await settle()
        async with gate.enter(caller, 1):
            assert gate.in_flight == 2

    run(test)


def test_closing_turns_the_waiting_away_and_lets_the_others_finish():
    async def test() -> None:
        gate, started = Admission(1, 10), []
        caller = Caller("a", 10)
        inside, waiting = Request(gate, caller, 1, started), Request(gate, caller, 1, started)
        await settle()
        closing = asyncio.create_task(gate.close(1e6))
        await settle()
        with pytest.raises(BusyError, match="shutting down") as caught:
            await waiting.task
        assert caught.value.unavailable
        with pytest.raises(BusyError, match="shutting down"):
            async with gate.enter(caller, 1):
                pass
        assert not closing.done()
        inside.leave.set()
        assert await closing
        assert (gate.in_flight, gate.in_queue, caller.present) == (0, 0, 0)

    run(test)


def test_closing_does_not_wait_for_ever():
    async def test() -> None:
        gate, started = Admission(1, 10), []
        inside = Request(gate, Caller("a", 10), 1, started)
        await settle()
        assert not await gate.close(0.0)
        inside.task.cancel()
        await settle()
        assert await gate.close(0.0)

    run(test)
