"""The gateway as it is deployed, a process of its own with keys, before a slow and faulty server: 250 clients at once,
and beside them clients that send nothing, or slowly, or too much, or do not read.

Every request ends, in the answer that a sound server would have led to or in a clean error; what /metrics counts is
what was sent; /health answers all the time; memory stays flat, and the log has a line for each request; a server that
is killed shows in /ready, and so does its return.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator

import httpx2
import pytest

import faulty
import motes
from crowd import (
    CHAT,
    CLEAN,
    LEFT,
    MODELS,
    QUESTIONS,
    Ended,
    call,
    counted,
    faulty_server,
    gateway_before,
    particles,
    question,
    set_faults,
    settled,
    statuses,
    unexplained,
    watch_health,
)
from intruders import MAY_BE, Seen, intruders
from motes.gateway.answering import visible
from real_servers import Server

CLIENTS = 250
Case = tuple[str, int]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    with faulty_server() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream, tmp_path_factory) -> Iterator[Server]:
    with gateway_before(upstream, tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="module")
def expected(upstream) -> dict[Case, str]:
    """The answers over a sound server, by model and question."""
    set_faults(upstream, 0.0)
    sampling, answers = motes.Sampling(max_steps=3, max_step_tokens=8), {}
    for model, seeds in zip(MODELS, ("particle", "group"), strict=True):
        lm = motes.language_model(f"{upstream.root}/v1#tiny?seeds={seeds}")
        for i in range(QUESTIONS):
            method = motes.ParticleFilter(particles(i))
            result = motes.solve(question(i), lm=lm, reward=faulty.reward(), sampling=sampling, seed=i, method=method)
            answers[model, i] = visible(result, 1)[0].text
    return answers


def wave(gateway: Server, *, leaving: int = 0, beside: Seen | None = None, clients: int = CLIENTS) -> list[Ended]:
    """How the requests of all clients at once ended. `leaving` of a hundred leave; with `beside` there are intruders,
    too, whose requests it then has."""
    ended: list[Ended] = []

    async def test() -> None:
        async with asyncio.TaskGroup() as group:
            others = [] if beside is None else [group.create_task(one()) for one in intruders(gateway.port, beside)]
            waits: list[float] = []
            others.append(group.create_task(watch_health(gateway.port, waits.append)))
            callers = [call(gateway.port, iter([number]), ended.append, leaving) for number in range(clients)]
            await asyncio.gather(*callers)
            for other in others:
                other.cancel()
        assert waits, "/health has answered"

    asyncio.run(test())
    assert len(ended) == clients
    return ended


def test_a_sound_server_and_every_token_counted(gateway, upstream, expected):
    before = counted(gateway)
    ended = wave(gateway)
    after = settled(gateway, statuses(before).total() + CLIENTS) - before
    assert Counter(one.status for one in ended) == {200: CLIENTS}
    assert [one for one in ended if one.text != expected[one.case]] == []
    assert after["200"] == CLIENTS
    usages = [one.own["usage"] for one in ended]
    assert after["generated"] == sum(usage["generated_tokens"] for usage in usages) > 0
    assert after["prefill"] == sum(usage["computed_prefill_tokens"] for usage in usages)


def test_a_faulty_server_and_intruders(gateway, upstream, expected):
    """Three waves; the first has filled pools and caches. In the last one eight of ten responses of the server fail."""
    memory, seen_in_all = [], Seen()
    begun, faults_before = counted(gateway), set_faults(upstream, 0.0)
    for rate, leaving in ((0.1, 10), (0.1, 10), (0.8, 2)):
        set_faults(upstream, rate, 0.02)
        before, seen = statuses(counted(gateway)), Seen()
        ended = wave(gateway, leaving=leaving, beside=seen)
        # 1) no wrong answer
        whole = [one for one in ended if one.status == 200]
        assert all(one.text for one in whole)
        sound = [one for one in whole if not one.own["dropped"]]
        assert [one for one in sound if one.text != expected[one.case]] == []
        assert rate > 0.5 or len(sound) > CLIENTS / 2
        # 2) no wrong status, and none that is counted wrongly
        seen += Counter(one.status for one in ended)
        after = settled(gateway, (before + seen).total())
        assert unexplained(seen, statuses(after) - before, (*MAY_BE, *CLEAN)) == {}
        memory.append(after["process_resident_memory_bytes"])
        seen_in_all += seen
    # 3) there were all kinds of faults, and of clients
    assert min((set_faults(upstream, 0.0) - faults_before).values()) > 0
    assert {200, 401, 408, 413, 502, LEFT} <= set(seen_in_all)
    assert seen_in_all[401] > 1000
    # 4) nothing is left over, and the log has a line for each request, and few others
    assert max(memory[1:]) - memory[0] < 50e6
    assert after["motes_connections_refused_total"] == begun["motes_connections_refused_total"]
    until = time.monotonic() + 30
    while True:  # a request is counted, then logged, and the last intruders may still be leaving
        lines = [json.loads(line) for line in gateway.log.read_text().rpartition("\n")[0].splitlines()[1:]]
        requests = Counter(line["status"] for line in lines if line.get("endpoint") == CHAT)
        if requests == statuses(counted(gateway)):
            break
        assert time.monotonic() < until, requests - statuses(counted(gateway))
    assert len(lines) - requests.total() <= requests[502] + requests[503] + requests[LEFT]


def test_a_server_that_is_killed_and_returns(gateway, upstream, expected):
    ready = f"{gateway.root}/ready"
    set_faults(upstream, 0.0, 0.05)
    before = statuses(counted(gateway)).total()

    async def test() -> list[Ended]:
        ended: list[Ended] = []
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(call(gateway.port, iter([number]), ended.append))
            while not counted(gateway)["motes_particles_in_flight"]:
                await asyncio.sleep(0)
            upstream.stop()
        return ended

    ended = asyncio.run(test())
    assert {one.status for one in ended} <= {200, 502}
    assert 502 in {one.status for one in ended}
    settled(gateway, before + 40)
    response = httpx2.get(ready)
    missing = {model: ["language model"] for model in MODELS}
    assert (response.status_code, response.json()["missing"]) == (503, missing)
    assert httpx2.get(f"{gateway.root}/health").is_success
    upstream.start()
    upstream.wait()
    until = time.monotonic() + 30
    while not httpx2.get(ready).is_success:
        assert time.monotonic() < until
    ended = wave(gateway, clients=50)
    assert [one for one in ended if one.text != expected[one.case]] == []
