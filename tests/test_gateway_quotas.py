"""Quotas: what they admit, when they admit again, and what responses say about them. No test waits for a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import gateways
from motes.errors import ConfigurationError
from motes.gateway.config import Config
from motes.gateway.errors import BusyError, QuotaError
from motes.gateway.keys import Key, digest
from motes.gateway.quotas import DAY, Counter, LocalCounters, Quotas, duration

NOON = 20_000 * DAY + DAY / 2


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def quotas(clock: Clock, **amounts: int) -> Quotas:
    return Quotas("a", Key(name="a", sha256=(digest("x"),), **amounts).quotas(), clock=clock)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())


async def take(quotas: Quotas, particles: int = 1, tokens: int = 0) -> None:
    async with quotas.reserved(particles):
        pass
    quotas.charge(tokens)
    await quotas.headers()  # all charges are counted now


async def refused(quotas: Quotas, match: str, particles: int = 1) -> float:
    with pytest.raises(QuotaError, match=match) as caught:
        await take(quotas, particles)
    assert (caught.value.code, caught.value.unavailable) == ("rate_limit_exceeded", False)
    return caught.value.retry_after


def test_requests_a_minute_come_back_evenly():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, requests_per_minute=30)
        for _ in range(30):
            await take(own)
        assert await refused(own, r"more than 30 requests a minute \(requests_per_minute\)") == pytest.approx(2.0)
        clock.now += 2.0
        await take(own)
        assert await refused(own, "requests_per_minute") == pytest.approx(2.0)
        clock.now += 1e6
        for _ in range(30):
            await take(own)
        await refused(own, "requests_per_minute")

    run(test)


@pytest.mark.parametrize("rate", [1, 7, 59, 60, 61, 1003])
def test_after_the_time_to_wait_there_is_one_more(rate):
    """Whatever rounding does; and not before."""

    async def test() -> None:
        clock = Clock(1_790_000_000.123)
        own = quotas(clock, requests_per_minute=rate)
        counter = Counter("a/requests_per_minute", rate / 60, 0)
        await own._counters.add({counter: rate}, clock.now)
        for _ in range(20):
            seconds = await refused(own, "requests_per_minute")
            clock.now += seconds * 0.9
            await refused(own, "requests_per_minute")
            clock.now += seconds * 0.1
            await take(own)

    run(test)


def test_tokens_are_charged_afterwards_and_waited_for():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, tokens_per_minute=600)
        await take(own, tokens=599)
        await take(own, tokens=601)
        assert await refused(own, r"more than 600 tokens a minute \(tokens_per_minute\)") == pytest.approx(60.1)
        clock.now += 60.0
        assert await refused(own, "tokens_per_minute") == pytest.approx(0.1)
        clock.now += 0.1
        await take(own)

    run(test)


def test_a_client_that_leaves_does_not_cancel_the_charges_of_others():
    class Slow(LocalCounters):
        def __init__(self) -> None:
            super().__init__()
            self.begun, self.free = asyncio.Event(), asyncio.Event()

        async def add(self, amounts: Mapping[Counter, float], now: float) -> Sequence[float]:
            self.begun.set()
            await self.free.wait()
            return await super().add(amounts, now)

    async def test() -> None:
        key, counters = Key(name="a", sha256=(digest("x"),), tokens_per_minute=1000), Slow()
        own = Quotas("a", key.quotas(), counters, Clock())
        own.charge(500)
        await counters.begun.wait()
        leaving = asyncio.create_task(own.headers())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled()
        counters.free.set()
        assert (await own.headers())["x-ratelimit-remaining-tokens"] == "500"

    run(test)


def test_a_day_ends_at_midnight():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, tokens_per_day=100, particles_per_day=50)
        await take(own, 10, tokens=99)
        clock.now += DAY / 2 - 1
        await take(own, 10, tokens=1)
        assert await refused(own, r"more than 100 tokens a day \(tokens_per_day\)") == pytest.approx(1.0)
        clock.now += 1
        await take(own, 50)
        assert await refused(own, r"more than 50 particles a day \(particles_per_day\)") == pytest.approx(DAY)

    run(test)


def test_particles_have_to_be_left_for_the_whole_request():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, particles_per_minute=60)
        await take(own, 40)
        assert await refused(own, r"more than 60 particles a minute", 30) == pytest.approx(10.0)
        await take(own, 20)
        clock.now += 59.0
        assert await refused(own, r"more than 60 particles a minute", 200) == pytest.approx(1.0), "more than all"
        clock.now += 1.0
        await take(own, 200)
        assert await refused(own, "particles") == pytest.approx(141.0), "it has used what comes back in 140 seconds"

    run(test)


def test_a_refused_request_takes_nothing_from_any_quota():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, requests_per_minute=2, particles_per_minute=10, tokens_per_minute=10)
        for _ in range(5):
            await refused(own, "particles", 11) if _ else await take(own, 1)
        state = await own.headers()
        assert state["x-ratelimit-remaining-requests"] == "1"
        assert state["x-ratelimit-remaining-particles"] == "9"

    run(test)


def test_the_longest_wait_is_named():
    async def test() -> None:
        own = quotas(Clock(), requests_per_minute=1, tokens_per_day=5)
        await take(own, tokens=5)
        assert await refused(own, "tokens_per_day") == pytest.approx(DAY / 2)

    run(test)


@pytest.mark.parametrize("error", [BusyError("full", 1.0), asyncio.CancelledError(), TimeoutError()])
def test_a_request_that_does_not_start_gives_back_what_it_took(error):
    async def test() -> None:
        own = quotas(Clock(), requests_per_minute=2, particles_per_day=10)

        async def fail() -> None:
            async with own.reserved(4):
                assert (await own.headers())["x-ratelimit-remaining-particles"] == "6"
                raise error

        with pytest.raises(type(error)):
            await fail()
        state = await own.headers()
        assert (state["x-ratelimit-remaining-requests"], state["x-ratelimit-remaining-particles"]) == ("2", "10")

    run(test)


def test_without_quotas_there_is_nothing_to_say():
    async def test() -> None:
        own = quotas(Clock())
        for _ in range(100):
            await take(own, 1000, tokens=10**9)
        assert await own.headers() == {}

    run(test)


def test_headers_describe_the_quota_of_which_less_remains():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, requests_per_minute=60, tokens_per_minute=600, tokens_per_day=1000)
        assert await own.headers() == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "60",
            "x-ratelimit-reset-requests": "0s",
            "x-ratelimit-limit-tokens": "600",
            "x-ratelimit-remaining-tokens": "600",
            "x-ratelimit-reset-tokens": "0s",
        }
        await take(own, tokens=900)
        state = await own.headers()
        assert state["x-ratelimit-remaining-requests"] == "59"
        assert state["x-ratelimit-reset-requests"] == "1s"
        assert state["x-ratelimit-limit-tokens"] == "600"
        assert state["x-ratelimit-remaining-tokens"] == "0", "not less than nothing"
        assert state["x-ratelimit-reset-tokens"] == "1m30s"
        clock.now += 90
        state = await own.headers()
        assert state["x-ratelimit-limit-tokens"] == "1000"
        assert state["x-ratelimit-remaining-tokens"] == "100"
        assert state["x-ratelimit-reset-tokens"] == "11h58m30s"

    run(test)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.25, "250ms"), (1, "1s"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s"),
        (3600, "1h0m0s"), (86_399.1, "24h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_openais(seconds, text):
    assert duration(seconds) == text


def test_a_clock_that_is_set_back_gives_nothing_away():
    async def test() -> None:
        clock = Clock()
        own = quotas(clock, requests_per_minute=1)
        await take(own)
        clock.now -= 3600
        assert await refused(own, "requests") == pytest.approx(60)
        clock.now += 30
        assert await refused(own, "requests") == pytest.approx(30)

    run(test)


def test_a_storage_that_fails_loses_a_charge_and_no_run(caplog):
    class Broken(LocalCounters):
        async def add(self, amounts: Mapping[Counter, float], now: float) -> Sequence[float]:
            if any(amounts.values()):
                raise ConnectionError("gone")
            return await super().add(amounts, now)

    async def test() -> None:
        own = Quotas("a", Key(name="a", sha256=(digest("x"),), tokens_per_day=10).quotas(), Broken(), Clock())
        own.charge(4)
        assert (await own.headers())["x-ratelimit-remaining-tokens"] == "10"

    run(test)
    assert caplog.messages == ["tokens were not counted"]


def test_a_file_says_quotas():
    told = {"name": "a", "sha256": digest("x"), "requests_per_minute": 1, "tokens_per_minute": 2, "tokens_per_day": 3,
            "particles_per_minute": 4, "particles_per_day": 5}  # fmt: skip
    (key,) = gateways.config(keys=[told]).keys
    assert {quota.name: quota.amount for quota in key.quotas()} == {
        name: value for name, value in told.items() if "_per_" in name
    }
    for value in (0, -1, True, 1.5, "7", 10**13):
        with pytest.raises(ConfigurationError, match=r"keys\.0\.tokens_per_day"):
            Config.bundled(keys=[{**told, "tokens_per_day": value}])


# ------------------------------------------------------------------------------------------------------- of the gateway

CHAT = "/v1/chat/completions"
BODY = {"model": "story", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
KEYS = [
    {"name": "rich", "sha256": digest("rich")},
    {"name": "tokens", "sha256": digest("tokens"), "tokens_per_day": 20, "requests_per_minute": 100},
    {"name": "particles", "sha256": digest("particles"), "particles_per_day": 20},
]


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(keys=KEYS)) as client:
        yield client


def ask(client: httpx2.Client, key: str, **fields: object) -> httpx2.Response:
    return client.post(CHAT, json={**BODY, **fields}, headers={"Authorization": f"Bearer {key}"})


def limits(response: httpx2.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in response.headers.items() if name.startswith(prefix)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_charges_the_tokens_of_a_run(client, stream):
    answer = ask(client, "tokens", stream=stream)
    assert answer.status_code == 200
    state = limits(answer)
    assert (state["limit-requests"], state["remaining-requests"], state["limit-tokens"]) == ("100", "99", "20")
    assert int(state["remaining-tokens"]) == (20 if stream else 0), "the headers of a stream come before its tokens"
    refusal = ask(client, "tokens", stream=stream)
    assert refusal.status_code == 429
    told = refusal.json()["error"]
    assert (told["type"], told["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert told["message"] == "more than 20 tokens a day (tokens_per_day)"
    assert 0 < int(refusal.headers["retry-after"]) <= DAY
    assert limits(refusal)["remaining-tokens"] == "0"
    assert limits(refusal)["remaining-requests"] == "99", "it takes no request"
    assert ask(client, "rich").status_code == 200
    assert limits(ask(client, "rich")) == {}


def test_a_gateway_charges_as_many_tokens_as_it_reports(client):
    usage = ask(client, "tokens").json()["motes"]["usage"]
    families = text_string_to_metric_families(client.get("/metrics").text)
    counted = {
        (sample.labels["caller"], sample.labels["kind"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "motes_tokens_total" and sample.labels["role"] == "language model"
    }
    assert counted["tokens", "needed"] == usage["generated_tokens"] + usage["prefill_tokens"]
    caller, _ = client.gateway.callers.identify("Bearer tokens")
    ((_, charged, _),) = [value for key, value in caller.quotas._counters._values.items() if "tokens_per_day" in key]
    assert charged == counted["tokens", "needed"]


def test_a_gateway_charges_particles_that_start(client):
    assert limits(ask(client, "particles"))["remaining-particles"] == "12"
    refusal = ask(client, "particles", motes={"particles": 13})
    assert (refusal.status_code, limits(refusal)["remaining-particles"]) == (429, "12")
    assert ask(client, "particles", motes={"particles": 1000}).status_code == 400
    assert limits(ask(client, "particles", motes={"particles": 12}))["remaining-particles"] == "0"


def test_a_request_without_room_gives_back_its_particles():
    told = gateways.config(keys=KEYS, limits={"particles": 32, "waiting": 0})
    lm = gateways.Stepwise()
    with (
        gateways.over(lm, told) as client,
        client.stream(
            "POST",
            CHAT,
            json={**BODY, "stream": True, "motes": {"particles": 32}},
            headers={"Authorization": "Bearer rich"},
        ) as answer,
    ):
        assert lm.waits.wait(10)
        refusal = ask(client, "particles")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (429, "busy")
        assert limits(refusal)["remaining-particles"] == "20"
        lm.let_go()
        answer.read()
