"""The gateway as it is deployed, a process of its own, before a slow and faulty server, with 200 clients at once.

Every request ends, in the answer that a sound server would have led to or in a clean error; what /metrics counts is
what was sent; memory stays flat; a server that is killed shows in /ready, and so does its return.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

import faulty
import motes
from motes.gateway.answering import visible
from real_servers import Server

HERE = Path(__file__).parent
CLIENTS, QUESTIONS = 200, 10
CLEAN = {429: "busy", 502: "upstream", 504: "deadline"}
HANGS = 100.0
"""Seconds after which a wave of requests counts as hanging; it takes some five."""

CONFIG = """
[models.words]
lm = "http://127.0.0.1:{upstream}/v1#tiny?read_timeout=1&attempts=2&connect_timeout=2"
reward = "faulty:reward"
method = "pf"
methods = ["majority"]
particles = 4
deadline = 30
sampling = {{max_steps = 4, max_step_tokens = 8}}

[limits]
particles = 256
waiting = 160
heartbeat = 0.2
"""


ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def memory_of(server: Server) -> int:
    """Bytes of it that are in memory."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


@pytest.fixture(scope="module")
def upstream() -> Iterator[Server]:
    with Server("faulty", (sys.executable, str(HERE / "faulty.py"), "{port}"), ENVIRONMENT) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream, tmp_path_factory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("gateway") / "motes.toml"
    config.write_text(CONFIG.format(upstream=upstream.port))
    command = (sys.executable, "-m", "motes", "serve", "--config", str(config), "--port", "{port}")
    with Server("gateway-under-load", command, ENVIRONMENT) as server:
        yield server
        assert server.end() == 0, "ended as it was told"


@pytest.fixture
def expected(upstream) -> list[str]:
    """What is answered over a sound server, by question."""
    faults(upstream, 0.0)
    lm = motes.language_model(f"{upstream.root}/v1#tiny")
    sampling = motes.Sampling(max_steps=4, max_step_tokens=8)
    asked = {"lm": lm, "reward": faulty.reward(), "sampling": sampling}
    methods = [motes.ParticleFilter(particles(i)) for i in range(QUESTIONS)]
    results = [motes.solve(question(i), seed=i, method=method, **asked) for i, method in enumerate(methods)]
    return [visible(result, 1)[0].text for result in results]


def faults(upstream: Server, rate: float, seconds: float = 0.0) -> None:
    httpx2.post(f"{upstream.root}/faults", json={"rate": rate, "seconds": seconds})


def question(i: int) -> str:
    return f"What is {i} and {i}?"


def particles(i: int) -> int:
    return 4 if i else 1


@dataclass
class Ended:
    """How a request ended for its client: a status, which an error within a stream has as well."""

    status: int
    text: str = ""
    own: dict[str, Any] = field(default_factory=dict)


async def ask(client: httpx2.AsyncClient, i: int, *, stream: bool, leaves: bool = False) -> Ended:
    number = i % QUESTIONS
    body = {
        "model": "words", "messages": [{"role": "user", "content": question(number)}], "seed": number,
        "stream": stream, "motes": {"particles": particles(number)},
    }  # fmt: skip
    if not stream:
        response = await client.post("/v1/chat/completions", json=body)
        told = response.json()
        if not response.is_success:
            assert told["error"]["code"] == CLEAN[response.status_code]
            assert response.status_code != 429 or int(response.headers["retry-after"]) > 0
            return Ended(response.status_code)
        return Ended(200, told["choices"][0]["message"]["content"], told["motes"])
    ended = Ended(0)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if not response.is_success:
            assert json.loads(await response.aread())["error"]["code"] == CLEAN[response.status_code]
            return Ended(response.status_code)
        async for line in response.aiter_lines():
            if leaves:
                return Ended(499)
            if line == "data: [DONE]":
                return ended
            if not line.startswith("data: "):
                continue
            told = json.loads(line.removeprefix("data: "))
            if "error" in told:
                ended.status = next(status for status, code in CLEAN.items() if code == told["error"]["code"])
                continue
            ended.text += told["choices"][0]["delta"].get("content") or ""
            if "motes" in told:
                ended.own, ended.status = told["motes"], 200
    raise AssertionError("a stream broke off")


def wave(gateway: Server, *, leaving: int = 0) -> list[Ended]:
    """All clients at once, every other one streaming; of these so many leave at the first sign of life."""

    async def test() -> list[Ended]:
        limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=0)
        address = gateway.root
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=HANGS) as client, asyncio.timeout(HANGS):
            stream = [i % 2 == 0 for i in range(CLIENTS)]
            return await asyncio.gather(
                *(ask(client, i, stream=stream[i], leaves=stream[i] and i < 2 * leaving) for i in range(CLIENTS))
            )

    return asyncio.run(test())


def counted(gateway: Server) -> Counter[str]:
    """What /metrics has: requests by status, tokens by kind, what is in flight."""
    found: Counter[str] = Counter()
    for line in httpx2.get(f"{gateway.root}/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        for pattern in (
            r'motes_requests_total\{.*status="(\d+)"',
            r'motes_tokens_total\{.*kind="(\w+)"',
            r"(motes_\w+_in_flight|\w+_waiting)$",
        ):
            if hit := re.match(pattern, name):
                found[hit[1]] += int(float(value))
    return found


def settled(gateway: Server, requests: int) -> Counter[str]:
    """The same, once so many requests are counted: of a client that has left this is a moment later."""
    until = time.monotonic() + 30
    while True:
        found = counted(gateway)
        if sum(number for status, number in found.items() if status.isdigit()) == requests:
            return found
        assert time.monotonic() < until, f"{found} of {requests} requests"


def sent(gateway: Server) -> int:
    return sum(number for status, number in counted(gateway).items() if status.isdigit())


def test_a_sound_server_and_every_token_counted(gateway, upstream, expected):
    before = counted(gateway)
    ended = wave(gateway)
    after = counted(gateway) - before
    assert Counter(one.status for one in ended) == {200: CLIENTS}
    assert [one.text for one in ended] == [expected[i % QUESTIONS] for i in range(CLIENTS)]
    assert after["200"] == CLIENTS
    usages = [one.own["usage"] for one in ended]
    assert after["generated"] == sum(usage["generated_tokens"] for usage in usages) > 0
    assert after["prefill"] == sum(usage["computed_prefill_tokens"] for usage in usages)


def test_a_slow_and_faulty_server(gateway, upstream, expected):
    """Three waves; the first has filled pools and caches, from then on memory stays within 8 MB.

    Where eight of ten requests fail, two thirds of all steps do, after two attempts. 19 of those who asked for one
    particle stay: that none of them is left without it has a chance of less than 1e-8.
    """
    memory, statuses = [], Counter()
    for rate, leaving in ((0.15, 0), (0.15, 20), (0.8, 5)):
        faults(upstream, rate, 0.02)
        before = counted(gateway)
        ended = wave(gateway, leaving=leaving)
        after = settled(gateway, sum(before[status] for status in before if status.isdigit()) + CLIENTS) - before
        seen = Counter(str(one.status) for one in ended)
        if leaving:  # who has left may have been answered meanwhile
            assert after["200"] + after["499"] == seen["200"] + seen["499"]
            assert all(after[str(status)] == seen[str(status)] for status in CLEAN)
        else:
            assert {status: number for status, number in after.items() if status.isdigit()} == seen
        whole = [(i, one) for i, one in enumerate(ended) if one.status == 200]
        assert all(one.text for _, one in whole)
        sound = [one.text == expected[i % QUESTIONS] for i, one in whole if not one.own["dropped"]]
        assert all(sound)
        assert rate > 0.5 or len(sound) > CLIENTS / 2
        statuses += seen
        assert (after["motes_particles_in_flight"], after["motes_requests_waiting"]) == (0, 0)
        memory.append(memory_of(gateway))
    assert statuses["502"] > 0, "some had no particle left"
    assert max(memory[1:]) - memory[0] < 8e6


def test_a_server_that_is_killed_and_returns(gateway, upstream, expected):
    ready = f"{gateway.root}/ready"
    faults(upstream, 0.0, 0.05)
    before = sent(gateway)

    async def test() -> list[Ended]:
        address = gateway.root
        async with httpx2.AsyncClient(base_url=address, timeout=HANGS) as client, asyncio.timeout(HANGS):
            tasks = [asyncio.ensure_future(ask(client, i, stream=i % 2 == 0)) for i in range(40)]
            while not counted(gateway)["motes_particles_in_flight"]:
                await asyncio.sleep(0)
            upstream.stop()
            return await asyncio.gather(*tasks)

    ended = asyncio.run(test())
    assert {one.status for one in ended} <= {200, 502}
    assert 502 in {one.status for one in ended}
    settled(gateway, before + 40)
    response = httpx2.get(ready)
    assert (response.status_code, response.json()["missing"]) == (503, {"words": ["language model"]})
    assert httpx2.get(f"{gateway.root}/health").is_success
    upstream.start()
    upstream.wait()
    until = time.monotonic() + 30
    while not httpx2.get(ready).is_success:
        assert time.monotonic() < until
    ended = wave(gateway)
    assert [one.text for one in ended] == [expected[i % QUESTIONS] for i in range(CLIENTS)]
