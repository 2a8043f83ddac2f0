"""Several servers of one model: where runs go, and what happens when a server fails."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import motes
import worlds
from motes.concurrency import Origin, working_for
from motes.core import Failure, Step, Usage
from motes.errors import (
    BadResponseError,
    ConfigurationError,
    ContextLengthError,
    RejectedError,
    ServerError,
    UnauthorizedError,
    UnreachableError,
)
from motes.models.fleet import Fleet

QUESTION = "Anna has 3 pens. Ben has 4 more than Anna. How many pens does Ben have?"
Fault = Callable[[], Exception]


def busy(status: int) -> ServerError:
    error = ServerError("busy")
    error.status = status
    return error


class Server(worlds.StoryLanguageModel):
    """A server that can be down, or fail in some way, and keeps what it was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.down, self.fault = name, False, None
        self.asked: list[tuple[motes.Problem, int]] = []
        self.checks = 0
        self.hold: asyncio.Event | None = None
        self.fault: Fault | None
        self.as_failure = False

    async def ready(self) -> None:
        self.checks += 1
        if self.down:
            raise UnreachableError(f"{self.name} is down")

    async def extend(self, trajectories: Any, sampling: Any, seeds: Sequence[int]) -> Any:
        self.asked += [(trajectory.problem, seed) for trajectory, seed in zip(trajectories, seeds, strict=True)]
        if self.hold is not None:
            await self.hold.wait()
        error = UnreachableError(f"{self.name} is down") if self.down else self.fault() if self.fault else None
        if error is not None and self.as_failure:
            return [Failure(error, Usage(failed_generated_tokens=5))] * len(trajectories)
        if error is not None:
            raise error
        return await super().extend(trajectories, sampling, seeds)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Servers:
    """Servers a, b and c, some of which are down when they are opened."""

    def __init__(self, *down: str, names: str = "abc") -> None:
        self.servers = {name: Server(name) for name in names}
        self.opened: list[str] = []
        for name in down:
            self.servers[name].down = True
        self.clock = Clock()
        self.fleet = Fleet(list(names), self.open, clock=self.clock)

    def open(self, name: str) -> Server:
        self.opened.append(name)
        if self.servers[name].down:
            raise UnreachableError(f"{name} is down")
        return self.servers[name]

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    @property
    def used(self) -> str:
        """Names of the servers that were asked for steps since the last look."""
        used = "".join(name for name, server in self.servers.items() if server.asked)
        for server in self.servers.values():
            server.asked.clear()
        return used

    async def step(self, problem: motes.Problem | None = None, number: int = 1) -> list[Step | Failure]:
        trajectory = motes.Trajectory(problem or motes.Problem(QUESTION))
        return await self.fleet.extend([trajectory] * number, motes.Sampling(), range(number))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_run_stays_on_one_server_and_runs_are_spread():
    async def test() -> None:
        servers = Servers()
        problems = [motes.Problem(QUESTION) for _ in range(6)]
        for server in servers.servers.values():
            server.hold = asyncio.Event()
        runs = [asyncio.create_task(servers.step(problem, number=2)) for problem in problems]
        await settle()
        asked = {name: [problem for problem, _ in server.asked] for name, server in servers.servers.items()}
        homes = [{name for name in asked if any(other is p for other in asked[name])} for p in problems]
        assert all(len(home) == 1 for home in homes), "both particles of a run are on one server"
        assert [member.in_flight for member in servers.fleet.members] == [4, 4, 4]
        for server in servers.servers.values():
            server.hold.set()
        await asyncio.gather(*runs)
        assert servers.used == "abc"
        for problem, home in zip(problems, homes, strict=True):
            await servers.step(problem)
            assert {servers.used} == home
        assert [member.in_flight for member in servers.fleet.members] == [0, 0, 0]

    asyncio.run(test())


def test_the_same_steps_as_from_one_server():
    servers = Servers()
    sampling = motes.Sampling()
    trajectories = [motes.Trajectory(motes.Problem(QUESTION)) for _ in range(5)]
    alone = asyncio.run(worlds.StoryLanguageModel().extend(trajectories, sampling, range(5)))
    assert asyncio.run(servers.fleet.extend(trajectories, sampling, range(5))) == alone


FAULTS: dict[str, Fault] = {
    "unreachable": lambda: UnreachableError("gone"), "500": lambda: busy(500),
    "nonsense": lambda: BadResponseError("?"), "key": lambda: UnauthorizedError("wrong key"),
}  # fmt: skip


@pytest.mark.parametrize("as_failure", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_is_replaced_and_left_alone(fault: str, as_failure: bool):
    async def test() -> None:
        servers = Servers()
        problem = motes.Problem(QUESTION)
        await servers.step(problem)
        first = servers.used
        servers[first].fault, servers[first].as_failure = FAULTS[fault], as_failure
        steps = await servers.step(problem, number=3)
        assert all(isinstance(step, Step) for step in steps)
        used = servers.used
        assert len(used) == 2
        assert first in used
        wasted = [step.usage.failed_generated_tokens for step in steps if isinstance(step, Step) and step.usage]
        assert wasted == [5] * 3 * as_failure or not as_failure
        second = used.replace(first, "")
        await servers.step(problem)
        assert servers.used == second, "the run stays where it went"
        for _ in range(6):
            await servers.step()
        assert first not in servers.used

    asyncio.run(test())


def test_requests_that_fail_together_count_once():
    """Eight particles in flight on a server that dies do not make its first check wait for half a minute."""

    async def test() -> None:
        servers = Servers(names="ab")
        problem = motes.Problem(QUESTION)
        await servers.step(problem)
        servers["a"].down = True
        servers["a"].hold = asyncio.Event()
        together = [asyncio.create_task(servers.step(problem, number=2)) for _ in range(4)]
        await settle()
        servers["a"].hold.set()
        await asyncio.gather(*together)
        assert servers.fleet.members[0].failures == 1
        servers.clock.now += 1
        await servers.step(problem)
        await settle()
        assert servers["a"].checks == 1

    asyncio.run(test())


def test_a_server_comes_back_when_it_answers_a_check():
    async def test() -> None:
        servers = Servers(names="ab")
        servers["a"].down = True
        await servers.step()
        assert servers.used == "ab"
        for pause, checks in ((0.5, 0), (0.5, 1), (1.5, 1), (0.5, 2), (3.9, 2), (0.1, 3)):  # after 1, 2 and 4 seconds
            servers.clock.now += pause
            await servers.step()
            await settle()
            assert servers["a"].checks == checks
            assert servers.used == "b"
        servers["a"].down = False
        servers.clock.now += 8
        await servers.step()
        await settle()
        assert servers.used == "b", "it is checked before it is used"
        problem = motes.Problem(QUESTION)
        await servers.step(problem)
        assert servers.used == "a"

    asyncio.run(test())


def test_a_server_that_answers_checks_but_does_no_work_is_checked_less_and_less():
    async def test() -> None:
        servers = Servers(names="ab")
        servers["a"].fault = FAULTS["500"]
        checks = []
        for second in range(40):
            servers.clock.now = second
            await servers.step()
            await settle()
            checks.append(servers["a"].checks)
        assert 4 <= checks[-1] <= 6
        servers["a"].fault = None
        servers.clock.now += 60
        for _ in range(3):
            await servers.step()
            await settle()
        assert servers.fleet.members[0].failures == 0

    asyncio.run(test())


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_passed_over_and_not_ejected(status: int):
    async def test() -> None:
        servers = Servers(names="ab")
        servers["a"].fault = lambda: busy(status)
        assert isinstance((await servers.step())[0], Step)
        assert servers.used == "ab"
        servers["a"].fault = None
        await servers.step()
        assert servers.used == "a"

    asyncio.run(test())


@pytest.mark.parametrize("error", [RejectedError("no"), ContextLengthError("too long")])
def test_what_would_fail_anywhere_is_not_tried_elsewhere(error: Exception):
    async def test() -> None:
        servers = Servers()
        servers["a"].fault, servers["a"].as_failure = lambda: error, True
        (outcome,) = await servers.step()
        assert isinstance(outcome, Failure)
        assert outcome.error is error
        assert servers.used == "a"
        assert servers.fleet.members[0].is_healthy

    asyncio.run(test())


def test_if_all_fail_the_last_error_counts():
    async def test() -> None:
        servers = Servers()
        for server in servers.servers.values():
            server.down = True
        (outcome,) = await servers.step()
        assert isinstance(outcome, Failure)
        assert servers.used == "abc"
        (outcome,) = await servers.step()
        assert servers.used == "abc", "all are ejected: each is tried"
        with pytest.raises(UnreachableError, match="a is down"):
            await servers.fleet.ready()
        servers["b"].down = False
        assert isinstance((await servers.step())[0], Step)
        await servers.fleet.ready()

    asyncio.run(test())


def test_it_starts_though_a_server_is_down():
    async def test() -> None:
        servers = Servers("a")
        assert servers.opened == ["a", "b", "c"]
        for _ in range(4):
            await servers.step()
        assert servers.used == "b", "of two that have nothing to do, the first"
        servers["a"].down = False
        servers.clock.now += 1
        await servers.step()
        assert servers.fleet.members[0].check is not None
        await servers.fleet.members[0].check
        await servers.step()
        assert "a" in servers.used

    asyncio.run(test())


def test_fleets_that_cannot_be():
    with pytest.raises(UnreachableError, match="a is down"):
        Servers(*"abc")
    with pytest.raises(ConfigurationError, match="at least one"):
        Fleet([], Server)
    with pytest.raises(ConfigurationError, match="names one twice"):
        Fleet(["a", "a"], Server)


def test_a_list_of_addresses_is_a_fleet(monkeypatch: pytest.MonkeyPatch):
    opened: list[tuple[str, dict[str, Any]]] = []

    def open_one(path: str, logprobs: int = 0, **connection: Any) -> Server:
        opened.append((path, {"logprobs": logprobs, **connection}))
        return Server(path)

    monkeypatch.setattr("motes.models.served.HTTPLanguageModel.open", open_one)
    lm = motes.language_model(["http://a/v1#m?attempts=5", "http://b/v1#m"], logprobs=1)
    assert isinstance(lm, Fleet)
    assert opened == [
        ("http://a/v1#m", {"attempts": 5, "logprobs": 1}), ("http://b/v1#m", {"attempts": 2, "logprobs": 1}),
    ]  # fmt: skip
    for faulty in ("http://b/v1#m?attemps=5", "http://name:secret@b/v1#m"):
        with pytest.raises(ConfigurationError, match=r"attemps|a key does not belong into an address"):
            motes.language_model(["http://a/v1#m", faulty])
    with pytest.raises(ConfigurationError, match="a list of language models names servers"):
        motes.language_model(["http://a/v1#m", "tiny"])
    with pytest.raises(ConfigurationError, match="lm must be a text"):
        motes.language_model([3])  # type: ignore[list-item]


class Drawing(Server):
    async def draw_turn(self, fields: Any, sampling: Any, seed: int) -> str:
        self.asked.append((fields, seed))
        if self.down:
            raise UnreachableError(f"{self.name} is down")
        return self.name


def test_whole_turns_stay_together_and_move_when_their_server_fails():
    async def test() -> None:
        servers = {name: Drawing(name) for name in "ab"}
        fleet = Fleet(list("ab"), servers.__getitem__, clock=Clock())
        fields = {"messages": []}
        assert {await fleet.draw_turn(fields, motes.Sampling(), seed) for seed in range(5)} == {"a"}
        servers["a"].down = True
        assert {await fleet.draw_turn(fields, motes.Sampling(), seed) for seed in range(5)} == {"b"}
        assert len(servers["a"].asked) == 6
        servers["b"].down = True
        with pytest.raises(UnreachableError):
            await fleet.draw_turn(fields, motes.Sampling(), 0)

    with working_for(Origin(run="a run")):
        asyncio.run(test())


def test_a_fleet_is_ready_as_soon_as_one_server_answers():
    async def test() -> None:
        servers = Servers()
        never = asyncio.Event()

        async def hang() -> None:
            await never.wait()

        servers["a"].ready = hang  # type: ignore[method-assign]
        servers["b"].down = True
        await asyncio.wait_for(servers.fleet.ready(), 60)
        assert servers["c"].checks == 1
        del servers["a"].ready
        servers["a"].down = servers["c"].down = True
        with pytest.raises(UnreachableError, match="a is down"):
            await servers.fleet.ready()

    asyncio.run(test())


REFUSALS: dict[str, Callable[[], Exception]] = {
    "key": lambda: UnauthorizedError("wrong key"),
    "model": lambda: ConfigurationError("the server has no such model"),
    "nonsense": lambda: BadResponseError("?"),
    "own code": lambda: ZeroDivisionError(),
}


@pytest.mark.parametrize("fault", ["key", "model", "nonsense"])
@pytest.mark.parametrize("name", "ab")
def test_it_starts_though_a_server_refuses(fault: str, name: str, caplog: pytest.LogCaptureFixture):
    servers = {"a": Server("a"), "b": Server("b")}

    def open(spec: str) -> Server:
        if spec == name:
            raise REFUSALS[fault]()
        return servers[spec]

    fleet = Fleet(list("ab"), open)
    assert [member.is_healthy for member in fleet.members] == [member.name != name for member in fleet.members]
    assert caplog.messages[0].endswith(f": {REFUSALS[fault]()}"), "the reason is in the log: it quotes no conversation"


@pytest.mark.parametrize("is_opened", [False, True])
@pytest.mark.parametrize("fault", REFUSALS)
def test_a_check_that_fails_for_any_reason_is_repeated_less_and_less(fault: str, is_opened: bool):
    """Whether it opens the model or asks the server, with a step a second."""

    async def test() -> None:
        checks: list[float] = []
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        servers = Servers(*("" if is_opened else "a"), names="ab")

        def fail(*args: Any) -> Any:
            checks.append(servers.clock.now)
            raise REFUSALS[fault]()

        async def ready() -> None:
            fail()

        (a, _) = servers.fleet.members
        a.open, servers["a"].ready = fail, ready  # type: ignore[method-assign]
        servers["a"].down = True
        for second in range(40):
            servers.clock.now = second
            for _ in range(3):
                await servers.step()
                if a.check is not None:
                    await asyncio.wait([a.check])
        assert checks == [1, 3, 7, 15, 31]
        a.check = None
        gc.collect()
        await settle()
        assert not errors

    asyncio.run(test())


def test_there_is_one_check_at_a_time_and_one_that_is_cancelled_is_made_again():
    """As when its event loop ends."""
    servers = Servers(names="ab")
    begun = []

    async def hang() -> None:
        begun.append("check")
        await asyncio.Event().wait()

    servers["a"].ready = hang  # type: ignore[method-assign]
    servers["a"].down = True

    async def test() -> None:
        for _ in range(3):
            await servers.step()
            await settle()

    asyncio.run(test())
    assert not begun
    servers.clock.now = 1
    asyncio.run(test())
    assert begun == ["check"]
    asyncio.run(test())
    assert begun == ["check", "check"]


def test_the_log_says_when_a_server_is_ejected_and_used_again(caplog: pytest.LogCaptureFixture):
    """Once each, not with each request or check."""

    async def test() -> None:
        servers = Servers("b")
        (late,) = caplog.messages
        assert late == "the server b is not used until it answers a check: UnreachableError: b is down"
        caplog.clear()
        servers["a"].fault = lambda: BadResponseError("quotes a conversation")
        for second in range(10):
            servers.clock.now = second
            servers["a"].down = second < 9
            await asyncio.gather(*(servers.step() for _ in range(4)))
            for member in servers.fleet.members:
                if member.check is not None:
                    await asyncio.wait([member.check])
        assert caplog.messages == ["the server a is not used until it answers a check: UnreachableError: a is down"]
        caplog.clear()
        servers["a"].down = servers["b"].down = False
        servers["a"].fault = None
        servers.clock.now = 60
        for _ in range(3):
            await servers.step()
            for member in servers.fleet.members:
                if member.check is not None:
                    await asyncio.wait([member.check])
        assert sorted(caplog.messages) == ["the server a is used again", "the server b is used again"]
        caplog.clear()
        servers["a"].fault = lambda: BadResponseError("quotes a conversation")
        for _ in range(3):
            await servers.step()
        assert caplog.messages == ["the server a is not used until it answers a check: BadResponseError"]

    with caplog.at_level("INFO", "motes"):
        asyncio.run(test())


def test_the_log_says_that_a_server_works_though_all_are_ejected(caplog: pytest.LogCaptureFixture):
    async def test() -> None:
        servers = Servers(names="a")
        servers["a"].down = True
        await servers.step()
        servers["a"].down = False
        await servers.step()

    with caplog.at_level("INFO", "motes"):
        asyncio.run(test())
    assert caplog.messages[1:] == ["the server a is used again"]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("http://a:8000/v1#m?api_key=secret&attempts=3", "http://a:8000/v1#m"),
        ("http://a/v1?api_key=secret#m", "http://a/v1"),
        ("http://user:secret@a/v1#m", "http://…@a/v1#m"),
        ("http://user:sec/secret@a/v1#m", "http://…@a/v1#m"),
        ("http://user:sec#secret@a/v1#m", "http://…@a/v1#m"),
    ],
)
def test_no_message_has_a_key(spec: str, name: str, caplog: pytest.LogCaptureFixture):
    def open(spec: str) -> Server:
        raise UnreachableError("down")

    with pytest.raises(UnreachableError):
        Fleet([spec], open)
    assert caplog.messages == [f"the server {name} is not used until it answers a check: UnreachableError: down"]
    assert repr(Fleet([spec], Server)) == f"Fleet({name})"


def test_new_runs_of_turns_go_to_the_server_with_the_least_work():
    """Even if the fields of their requests have the address in memory that those of an earlier run had."""

    async def test() -> None:
        servers = {name: Drawing(name) for name in "ab"}
        fleet = Fleet(list("ab"), servers.__getitem__, clock=Clock())

        async def run(number: int) -> str:
            with working_for(Origin(run=f"run {number}")):
                return await fleet.draw_turn({"messages": []}, motes.Sampling(), 0)

        assert [await run(number) for number in range(5)] == ["a"] * 5
        fleet.members[0].in_flight = 8
        assert [await run(number) for number in range(5, 10)] == ["b"] * 5
        assert [await run(number) for number in range(5)] == ["a"] * 5, "earlier runs stay"
        fields: dict[str, Any] = {"messages": []}
        assert await fleet.draw_turn(fields, motes.Sampling(), 0) == "b", "outside a run"
        fleet.members[1].in_flight = 9
        assert await fleet.draw_turn(fields, motes.Sampling(), 0) == "a", "outside a run"

    asyncio.run(test())


def test_the_memory_for_runs_of_turns_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("motes.models.fleet.MAX_HOMES", 3)

    async def test() -> None:
        fleet = Fleet(list("ab"), Drawing)
        for number in range(10):
            with working_for(Origin(run=str(number))):
                await fleet.draw_turn({}, motes.Sampling(), 0)
            await fleet.draw_turn({}, motes.Sampling(), 0)
        assert list(fleet._homes_of_turns) == ["7", "8", "9"]

    asyncio.run(test())


def test_traits_are_those_that_all_have():
    servers = Servers()
    assert motes.protocols.LanguageModelTraits(servers.fleet).continues_prefixes
    servers["b"].continues_prefixes = False  # type: ignore[attr-defined]
    assert not motes.protocols.LanguageModelTraits(servers.fleet).continues_prefixes
    assert repr(servers.fleet) == "Fleet(a, b, c)"


def test_a_filter_over_a_fleet_loses_nothing_when_a_server_dies():
    """In the middle of a run; the answer is that of one server that never failed."""
    servers = Servers(names="ab")

    def kill(run: Any, record: Any) -> None:
        servers["a"].down = True

    options: dict[str, Any] = {"reward": worlds.reward_model(), "method": motes.ParticleFilter(8), "seed": 3}
    result = motes.solve(QUESTION, lm=servers.fleet, observe=kill, **options)
    alone = motes.solve(QUESTION, lm=worlds.language_model(), **options)
    assert (result.answer, result.text) == (alone.answer, alone.text)
    assert not result.dropped
    assert servers.used == "ab"
