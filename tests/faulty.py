"""A server of the scripted language model that is slow and, at random, fails in one of twelve ways: for load tests, in
a process of its own.

python tests/faulty.py PORT
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx2

from engines import VLLM, talk
from motes import FunctionReward

STALL = 3.0
"""Seconds; whoever asks should have less patience."""
HUGE = 1_000_000
"""Bytes; whoever asks should read fewer."""

FAULTS = {
    "429": 1.0, "500": 1.0, "503": 1.0, "reset": 1.0, "torn": 1.0, "stall": 0.3, "empty": 1.0, "broken JSON": 1.0,
    "a page": 1.0, "a missing answer": 1.0, "huge": 1.0, "bad usage": 1.0,
}  # fmt: skip
"""The kinds of faults, and how often each comes relative to the others. A stall takes long. After bad usage the answer
is sound; after the others there is none."""


class Faulty(VLLM):
    """`POST /faults` with {"rate": …, "seconds": …}: the share of requests for tokens that fail, and up to how long the
    others take. The response is the number of faults so far, by kind."""

    rate, seconds = 0.0, 0.0

    def __init__(self) -> None:
        super().__init__()
        self.faults = Counter(dict.fromkeys(FAULTS, 0))

    def health(self, body: dict[str, Any]) -> Any:
        return {}

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/faults":
            settings = json.loads(request.content)
            self.rate, self.seconds = settings["rate"], settings["seconds"]
            return httpx2.Response(200, json=self.faults)
        response = await super().__call__(request)
        self.requests.clear()
        if not request.url.path.endswith("/completions"):
            return response
        await asyncio.sleep(self.random.uniform(0, self.seconds))
        if self.random.random() >= self.rate:
            return response
        (fault,) = self.random.choices(tuple(FAULTS), tuple(FAULTS.values()))
        self.faults[fault] += 1
        return await spoilt(response, fault)


async def spoilt(response: httpx2.Response, fault: str) -> httpx2.Response:
    """What comes instead of a sound response, which is whole or a stream."""
    match fault:
        case "429" | "500" | "503":
            return httpx2.Response(int(fault), json={"error": {"message": "out of order"}})
        case "reset":
            raise ConnectionResetError
        case "torn":
            return httpx2.Response(200, content=torn(await response.aread()))
        case "stall":
            await asyncio.sleep(STALL)
            return response
        case "empty":
            return httpx2.Response(200, content=b"")
        case "broken JSON":
            return httpx2.Response(200, content=(await response.aread()).replace(b"}", b""))
        case "a page":
            return httpx2.Response(200, html="<html><body>Bad gateway</body></html>")
        case "a missing answer":
            return await changed(response, lose_first)
        case "huge":
            return await changed(response, lambda message: message.update(padding="x" * HUGE))
        case "bad usage":
            usage = {
                "prompt_tokens": -5,
                "completion_tokens": "many",
                "prompt_tokens_details": {"cached_tokens": 1e300},
            }
            return await changed(response, lambda message: message.update(usage=usage))
    raise ValueError(fault)


async def torn(content: bytes) -> AsyncIterator[bytes]:
    """The first half of a body."""
    yield content[: len(content) // 2]
    raise ConnectionResetError


async def changed(response: httpx2.Response, change: Callable[[dict[str, Any]], None]) -> httpx2.Response:
    """The response with a change in its JSON, or in each event of its stream."""
    lines = []
    for line in (await response.aread()).split(b"\n"):
        data = line.removeprefix(b"data: ")
        if data.startswith(b"{"):
            message = json.loads(data)
            change(message)
            line = line.removesuffix(data) + json.dumps(message).encode()
        lines.append(line)
    return httpx2.Response(200, content=b"\n".join(lines))


def lose_first(message: dict[str, Any]) -> None:
    message["choices"] = [choice for choice in message["choices"] if choice["index"] > 0]


def reward() -> FunctionReward:
    """Some number in [0.2, 0.8] for every partial answer."""

    def score(problem: Any, text: str) -> float:
        return 0.2 + 0.6 * random.Random(hashlib.sha256(text.encode()).digest()).random()

    return FunctionReward(score)


async def serve(port: int) -> None:
    server = await asyncio.start_server(partial(talk, Faulty()), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
