"""A server of the scripted language model that is slow and, at random, fails: for load tests, in a process of its own.

python tests/faulty.py PORT
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx2

from engines import VLLM, talk
from motes import FunctionReward

STALL = 3.0
"""Seconds; whoever asks should have less patience."""


class Faulty(VLLM):
    """`POST /faults` with {"rate": …, "seconds": …}: the share of requests for tokens that fail, and up to how long the
    others take."""

    rate, seconds = 0.0, 0.0
    generated = 0

    def health(self, body: dict[str, Any]) -> Any:
        return {}

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/faults":
            told = json.loads(request.content)
            self.rate, self.seconds, before = told["rate"], told["seconds"], self.generated
            return httpx2.Response(200, json={"generated": before})
        response = await super().__call__(request)
        self.requests.clear()
        if not request.url.path.endswith("/completions"):
            return response
        await asyncio.sleep(self.random.uniform(0, self.seconds))
        if self.random.random() >= self.rate:
            return response
        (fault,) = self.random.choices(("error", "stall", "reset", "torn"), (4, 1, 4, 4))  # a stall takes long
        match fault:
            case "error":
                return httpx2.Response(500, json={"error": {"message": "out of order"}})
            case "stall":
                await asyncio.sleep(STALL)
                return response
            case "reset":
                raise ConnectionResetError
        return httpx2.Response(200, content=torn(response))


async def torn(response: httpx2.Response) -> AsyncIterator[bytes]:
    """The first half of an answer."""
    content = await response.aread()
    yield content[: len(content) // 2]
    raise ConnectionResetError


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
