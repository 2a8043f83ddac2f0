"""A gateway under load: its configuration before a faulty server, and the callers that ask it many questions at once.

tests/test_gateway_load.py and soak.py use it, with the clients of intruders.py beside the callers. Clients are
asyncio's streams, one connection for each request: they need less time than a library, and can leave whenever they
like.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from motes.gateway.keys import digest
from real_servers import ROOT, Server

CHAT = "/v1/chat/completions"
KEY, EXPIRED_KEY = "motes-crowd", "motes-of-last-year"
MODELS, QUESTIONS = ("words", "groups"), 10
LEFT = 499
"""The status of a request whose client has left. What the gateway counts for it can be another one: it may have
answered before it noticed."""
HANGS = 100.0
"""Seconds after which a request counts as hanging; it takes some five."""
STATUSES = {"busy": 503, "upstream": 502, "deadline": 504}
"""Statuses by the codes of errors within streams."""
CLEAN = {429: "busy", 502: "upstream", 503: "busy", 504: "deadline"}
"""Codes of errors by the statuses of responses."""

CONFIG = """
[models.words]
lm = "{upstream}"
reward = "faulty:reward"
method = "pf"
particles = 4
deadline = 30
sampling = {{max_steps = 3, max_step_tokens = 8}}

[models.groups]                 # particles share requests, and the server's responses are streams
lm = "{upstream}&seeds=group"
reward = "faulty:reward"
method = "pf"
particles = 4
deadline = 30
sampling = {{max_steps = 3, max_step_tokens = 8}}

[models.long]                   # an answer of 6 MB, for clients that do not read it
lm = "endless:language_model"
method = "majority"
particles = 1

[limits]
particles = 256
waiting = 250
heartbeat = 0.2
head = 2
body = 2
idle = 3

[[keys]]
name = "crowd"
sha256 = "{key}"
concurrency = 1000

[[keys]]
name = "last-year"
sha256 = "{expired_key}"
expires = 2025-12-31
"""


@contextlib.contextmanager
def faulty_server() -> Iterator[Server]:
    """The server behind the gateway, see tests/faulty.py."""
    command = (sys.executable, str(ROOT / "tests" / "faulty.py"), "{port}")
    with Server("faulty", command, _environment()) as server:
        yield server


@contextlib.contextmanager
def gateway_before(upstream: Server, folder: Path) -> Iterator[Server]:
    """A gateway in a process of its own, before that server. At the end it closes as it should."""
    config = folder / "motes.toml"
    options = "read_timeout=1&attempts=2&connect_timeout=2&max_response_bytes=200000"
    address = f"{upstream.root}/v1#tiny?{options}"
    config.write_text(CONFIG.format(upstream=address, key=digest(KEY), expired_key=digest(EXPIRED_KEY)))
    command = (sys.executable, "-m", "motes", "serve", "--config", str(config), "--port", "{port}")
    with Server("gateway-under-load", command, _environment()) as server:
        yield server
        assert server.end() == 0


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path]), "OMP_NUM_THREADS": "1"}


def set_faults(upstream: Server, rate: float, seconds: float = 0.0) -> Counter[str]:
    """Let this share of the server's responses fail, and the others take up to so many seconds. Returns the number of
    faults so far, by kind."""
    body = json.dumps({"rate": rate, "seconds": seconds}).encode()
    with urllib.request.urlopen(f"{upstream.root}/faults", body, timeout=HANGS) as response:
        return Counter(json.load(response))


# One request.


def message(method: str, path: str, body: bytes = b"", key: str | None = None, **headers: str) -> bytes:
    """A request as it is sent. Underscores in names of headers stand for hyphens."""
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {} if key is None else {"Authorization": f"Bearer {key}"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    return "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]).encode() + body


@dataclass
class Response:
    """A response whose head has arrived."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises IncompleteReadError if it breaks off."""
        if "content-length" in self.headers:
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])


async def read_response(reader: asyncio.StreamReader) -> Response:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return Response(int(first.split()[1]), headers, reader)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the gateway, which is closed at the end whatever is still sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.set_write_buffer_limits(0)  # `drain` waits until everything is sent
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


# Callers: each request ends in the answer of a sound server, or in a clean error.


@dataclass
class Ended:
    """How a request ended for its client.

    Attributes:
        number: of the request.
        status: of its response, or of the error within its stream; `LEFT` if the client left.
        own: the field `motes` of an answer.
    """

    number: int
    status: int
    text: str = ""
    own: dict[str, Any] = field(default_factory=dict)

    @property
    def case(self) -> tuple[str, int]:
        return case(self.number)


def case(number: int) -> tuple[str, int]:
    """The model and the question of a request."""
    return MODELS[number // QUESTIONS % len(MODELS)], number % QUESTIONS


def question(number: int) -> str:
    return f"What is {number} and {number}?"


def particles(number: int) -> int:
    """Those of a question. The first has a single one, so that an answer fails where one particle does."""
    return 4 if number else 1


async def ask(port: int, number: int, leaves_after: float | None = None) -> Ended:
    """Ask a question, for a stream if `number` is even, and leave after some seconds if it is not answered by then.

    Raises:
        AssertionError: the response is not one that the gateway should give.
        TimeoutError: there is none, the request hangs.
    """
    model, which = case(number)
    stream = number % 2 == 0
    fields = {"model": model, "seed": which, "stream": stream, "motes": {"particles": particles(which)}}
    body = json.dumps({"messages": [{"role": "user", "content": question(which)}], **fields}).encode()
    async with asyncio.timeout(HANGS), connected(port) as (reader, writer):
        writer.write(message("POST", CHAT, body, KEY, Connection="close"))
        try:
            async with asyncio.timeout(leaves_after):
                response = await read_response(reader)
                if stream and response.status == 200:
                    return await _read_stream(number, response)
                return _read_whole(number, response, json.loads(await response.body()))
        except TimeoutError:
            if leaves_after is None:
                raise
            return Ended(number, LEFT)


def _read_whole(number: int, response: Response, value: dict[str, Any]) -> Ended:
    if response.status == 200:
        return Ended(number, 200, value["choices"][0]["message"]["content"], value["motes"])
    assert value["error"]["code"] == CLEAN.get(response.status), value
    assert response.status not in (429, 503) or int(response.headers["retry-after"]) > 0
    return Ended(number, response.status)


async def _read_stream(number: int, response: Response) -> Ended:
    ended, rest, is_done = Ended(number, 0), b"", False
    async for piece in response.pieces():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            is_done = is_done or line == b"data: [DONE]"
            if not line.startswith(b"data: {"):
                continue
            value = json.loads(line.removeprefix(b"data: "))
            if "error" in value:
                ended.status = STATUSES[value["error"]["code"]]
                continue
            ended.text += value["choices"][0]["delta"].get("content") or ""
            if "motes" in value:
                ended.own, ended.status = value["motes"], 200
    assert is_done, "a stream broke off"
    assert ended.status, "a stream has neither an answer nor an error"
    return ended


async def call(port: int, numbers: Iterator[int], ended: Callable[[Ended], None], leaving: int = 0) -> None:
    """Ask one question after the other, until there are no more. Of a hundred callers so many leave, after up to two
    seconds."""
    for number in numbers:
        is_leaving = 37 * number % 100 < leaving  # both of streams and of others
        ended(await ask(port, number, (number % 11) / 5 if is_leaving else None))


async def watch_health(port: int, answered: Callable[[float], None], pause: float = 0.1) -> None:
    """Ask for /health again and again; `answered` gets the seconds that each response took.

    Raises:
        AssertionError: it is not healthy, or does not answer.
    """
    while True:
        began = time.perf_counter()
        async with asyncio.timeout(HANGS), connected(port) as (reader, writer):
            writer.write(message("GET", "/health", Connection="close"))
            response = await read_response(reader)
            assert (response.status, await response.body()) == (200, b'{"status":"ok"}')
        answered(time.perf_counter() - began)
        await asyncio.sleep(pause)


# What the gateway counts.


def counted(gateway: Server) -> Counter[str]:
    """What /metrics has: requests by status, tokens by kind, and the numbers of the present."""
    with urllib.request.urlopen(f"{gateway.root}/metrics", timeout=HANGS) as response:
        lines = response.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        name, _, value = line.rpartition(" ")
        for pattern in (
            r'motes_requests_total\{.*status="(\d+)"',
            r'motes_tokens_total\{.*kind="(\w+)"',
            r"(motes_\w+_in_flight|motes_requests_waiting|motes_connections|motes_connections_refused_total"
            r"|process_open_fds|process_resident_memory_bytes)$",
        ):
            if match := re.match(pattern, name):
                found[match[1]] += int(float(value))
    return found


def statuses(counts: Counter[str]) -> Counter[int]:
    """Those of all requests."""
    return Counter({int(status): number for status, number in counts.items() if status.isdigit()})


def settled(gateway: Server, requests: int) -> Counter[str]:
    """What is counted, once so many requests are, and nothing is left of them: neither particles nor connections. Of a
    client that has left this is later."""
    until = time.monotonic() + HANGS
    while True:
        counts = counted(gateway)
        present = [
            counts[name] for name in ("motes_particles_in_flight", "motes_requests_waiting", "motes_connections")
        ]
        if statuses(counts).total() >= requests and present == [0, 0, 1]:  # the connection of this request
            return counts
        assert time.monotonic() < until, f"of {requests} requests: {counts}"
        time.sleep(0.05)


def unexplained(seen: Counter[int], after: Counter[int], may_be: Iterable[int]) -> dict[int, int]:
    """Differences between the statuses that clients have seen and those that the gateway has counted; a request whose
    client has left may have any status in `may_be`."""
    differences = {status: after[status] - seen[status] for status in {*seen, *after} - {LEFT}}
    wrong = {status: n for status, n in differences.items() if n < 0 or (n > 0 and status not in may_be)}
    if (missing := seen.total() - after.total()) != 0:
        wrong[LEFT] = -missing
    return wrong
