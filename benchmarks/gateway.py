"""Measure the time that the gateway adds to the engine behind it.

    python benchmarks/gateway.py                       # the bundled models, 64 requests at a time, 8 particles each
    python benchmarks/gateway.py --lm http://127.0.0.1:8000/v1#LM --reward http://127.0.0.1:8001#PRM

It makes the same requests, with the same seeds and the same number in flight, in three ways that take turns. Library
and server run in separate processes:

    library   `motes.asolve`, no HTTP
    gateway   `motes serve` with an HTTP client, whole answers
    stream    the same with streamed answers

The three answers to a request must be equal, letter by letter. It prints requests per second, latency, and the ratios
of gateway to library in the median over rounds. With `--nothing`, the models cost nothing, and the gateway's own time
for a request remains.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx2

import motes
from motes.gateway.answering import Served, open_models, visible
from motes.gateway.config import Config
from motes.gateway.wire import ChatRequest, MotesOptions
from real_servers import Server

CONFIG = """
[models.served]
lm = "{lm}"
reward = "{reward}"
task = "arithmetic"
particles = {particles}
deadline = 600

[limits]
particles = {most}
"""


@dataclass
class Timing:
    """The seconds of all requests together and of each, and their answers."""

    seconds: float
    latencies: list[float]
    answers: list[str]

    def __str__(self) -> str:
        n, sorted_ = len(self.latencies), sorted(self.latencies)
        p95 = sorted_[int(0.95 * (n - 1))]
        return f"{n / self.seconds:10.2f} {statistics.mean(sorted_):10.3f} {sorted_[n // 2]:8.3f} {p95:8.3f}"


async def time_requests(number: int, concurrent: int, answer: Callable[[int], Awaitable[str]]) -> Timing:
    """Make `number` requests, `concurrent` of them at a time."""
    room, latencies, answers = asyncio.Semaphore(concurrent), [0.0] * number, [""] * number

    async def timed(i: int) -> None:
        async with room:
            began = time.perf_counter()
            answers[i] = await answer(i)
            latencies[i] = time.perf_counter() - began

    began = time.perf_counter()
    await asyncio.gather(*map(timed, range(number)))
    return Timing(time.perf_counter() - began, latencies, answers)


def body(i: int) -> dict[str, object]:
    """The JSON of request i, whose seed is i."""
    problems = motes.tasks.Arithmetic().problems()
    question = problems[i % len(problems)].question
    return {"model": "served", "messages": [{"role": "user", "content": question}], "seed": i}


opened: dict[str, Served] = {}


def time_library(config: Path, number: int, concurrent: int) -> Timing:
    """Answer the requests in this process, which keeps its models open."""
    if not opened:
        opened.update(open_models(Config.load(config)))
    served = opened["served"]

    async def answer(i: int) -> str:
        result = await served.parse(ChatRequest(**body(i)), MotesOptions(), strict=False).run()
        return visible(result, 1)[0].text

    return asyncio.run(time_requests(number, concurrent, answer))


def time_gateway(address: str, number: int, concurrent: int, *, stream: bool) -> Timing:
    """Send the requests to the gateway, as clients do."""

    async def test() -> Timing:
        limits = httpx2.Limits(max_connections=concurrent, max_keepalive_connections=concurrent)
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=600) as client:

            async def answer(i: int) -> str:
                if not stream:
                    response = await client.post("/v1/chat/completions", json=body(i))
                    return str(response.raise_for_status().json()["choices"][0]["message"]["content"])
                text = ""
                async with client.stream("POST", "/v1/chat/completions", json={**body(i), "stream": True}) as response:
                    response.raise_for_status()
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
                return text

            return await time_requests(number, concurrent, answer)

    return asyncio.run(test())


def nothing() -> motes.TabularLanguageModel:
    """A language model that costs nothing, whose answers have three steps."""
    step = {"so.\n\n": 0.5, "then.\n\n": 0.5}
    paths = [(), *((a,) for a in step), *((a, b) for a in step for b in step)]
    last = {"\\boxed{1}": 0.5, "\\boxed{2}": 0.5}
    return motes.TabularLanguageModel({path: last if len(path) == 2 else step for path in paths})


def no_reward() -> motes.FunctionReward:
    return motes.FunctionReward(lambda problem, text: 0.25 + 0.5 * (len(text) % 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", default="tiny")
    parser.add_argument("--reward", default="tiny")
    parser.add_argument("--nothing", action="store_true", help="use models that cost nothing")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("-n", "--particles", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.nothing:
        args.lm, args.reward = "gateway:nothing", "gateway:no_reward"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        config = Path(folder) / "motes.toml"
        most = args.particles * args.concurrent
        config.write_text(CONFIG.format(lm=args.lm, reward=args.reward, particles=args.particles, most=most))
        command = (sys.executable, "-m", "motes", "serve", "--config", str(config), "--port", "{port}")
        with Server("gateway-measured", command) as gateway:
            ways: dict[str, Callable[[int], Timing]] = {
                "library": lambda number: pool.submit(time_library, config, number, args.concurrent).result(),
                "gateway": lambda number: time_gateway(gateway.root, number, args.concurrent, stream=False),
                "stream": lambda number: time_gateway(gateway.root, number, args.concurrent, stream=True),
            }
            for way in ways.values():  # warm up
                way(args.concurrent)
            print(f"{args.requests} requests, {args.concurrent} at a time, {args.particles} particles each; seconds")
            print("round  way     requests/s  mean time   median      p95", flush=True)
            timings: dict[str, list[Timing]] = {name: [] for name in ways}
            for number in range(args.rounds):
                for name, way in ways.items():
                    timing = way(args.requests)
                    timings[name].append(timing)
                    print(f"{number + 1:5}  {name:7} {timing}", flush=True)
                    assert timing.answers == timings["library"][0].answers, f"the answers of {name} differ"
    for name in ("gateway", "stream"):
        pairs = list(zip(timings["library"], timings[name], strict=True))
        rate = statistics.median(ours.seconds / theirs.seconds for theirs, ours in pairs)
        wait = statistics.median(
            statistics.mean(ours.latencies) / statistics.mean(theirs.latencies) for theirs, ours in pairs
        )
        own = statistics.median((ours.seconds - theirs.seconds) / args.requests for theirs, ours in pairs)
        print(f"{name} over library: requests/s {1 / rate:.3f}, mean latency {wait:.3f}, {1000 * own:.2f} ms a request")


if __name__ == "__main__":
    main()
