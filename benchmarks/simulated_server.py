"""Simulate the time of a particle filter on servers larger than this machine, with and without each optimisation.

    python benchmarks/simulated_server.py                 # a 1.5B language model and a 7B reward model, a GPU each
    python benchmarks/simulated_server.py --problems 64 --particles 64 --steps 12

This is not a measurement but a model of the hardware: two servers with continuous batching, whose passes take the time
of a roofline (the larger of arithmetic and memory traffic, plus a constant for scheduling and launching). Time is
virtual: the clock jumps from event to event. The filter is real, and so is the client that sends requests in OpenAI's
format to the language model's server, with its merging, grouping and seeds. The client's processor time does not count;
the time of the server's front end counts as a constant per request.

The model of the servers follows vLLM. A pass computes chunks of prompts beside the decoding sequences, at most
MAX_BATCHED_TOKENS tokens and MAX_ROWS sequences. Prefixes are shared in blocks of 16 tokens. Memory is unlimited. An
answer has --steps steps of 20 to 100 tokens, 60 on average, so that all settings have the same work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import zlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

import motes
from motes.models.served import HTTPLanguageModel
from virtual_time import timed

MAX_ROWS = 256
MAX_BATCHED_TOKENS = 8192
BLOCK = 16
FRONT_END = 0.5e-3  # seconds of the server's front end per request; requests wait for each other there

WORDS, STEP_END, END = 1000, 1000, 1001  # number of words, whose ids begin at 0; ids of "\n\n" and of the answer's end
ANSWERS = range(1002, 1007)


@dataclass(frozen=True)
class Device:
    """A GPU, by default an H100.

    Attributes:
        flops: bfloat16 operations per second that are reached in practice.
        bandwidth: bytes per second that are reached in practice.
        launch: constant seconds per pass.
    """

    flops: float = 0.5 * 990e12
    bandwidth: float = 0.8 * 3.35e12
    launch: float = 2e-3


@dataclass(frozen=True)
class Weights:
    """The size of a model.

    Attributes:
        parameters: number of parameters.
        kv_bytes: number of bytes of a token's keys and values.
    """

    parameters: float
    kv_bytes: float

    def seconds(self, device: Device, tokens: int, attended: int) -> float:
        """The seconds of a pass over a number of tokens, which attend to a number of keys, all rows together."""
        arithmetic = 2 * self.parameters * tokens / device.flops
        traffic = (2 * self.parameters + self.kv_bytes * attended) / device.bandwidth
        return max(arithmetic, traffic) + device.launch


QWEN_1_5B = Weights(1.5e9, 28 * 2 * 2 * 128 * 2)  # 28 layers, 2 key heads of 128, two bytes
QWEN_7B = Weights(7.6e9, 28 * 2 * 4 * 128 * 2)


@dataclass(eq=False)
class _Sequence:
    """A sequence in the scheduler.

    Attributes:
        length: number of tokens so far.
        todo: number of prompt tokens still to be computed.
        left: number of tokens to be sampled after that.
        done: set when both are zero.
    """

    length: int
    todo: int
    left: int
    done: asyncio.Future[None]


@dataclass(eq=False)
class Scheduler:
    """Continuous batching: every pass computes chunks of prompts, and a token of every decoding sequence."""

    weights: Weights
    device: Device
    caches: bool = True  # whether prefixes are shared
    prefilled: int = 0
    cached: int = 0
    generated: int = 0
    passes: int = 0
    _blocks: set[int] = field(default_factory=set)
    _waiting: deque[_Sequence] = field(default_factory=deque)
    _rows: list[_Sequence] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def generate(self, ids: Sequence[int], tokens: int) -> None:
        """Wait until the prompt is computed and this number of tokens is sampled."""
        known = self._look_up(ids) if self.caches else 0
        known = min(known, len(ids) - 1)  # the last token is always computed
        self.cached += known
        sequence = _Sequence(len(ids), len(ids) - known, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await sequence.done

    def remember(self, ids: Sequence[int]) -> None:
        """Cache a sampled sequence as well."""
        if self.caches:
            self._look_up(ids)

    def _look_up(self, ids: Sequence[int]) -> int:
        """Return the number of tokens of the longest cached prefix, and cache the rest."""
        keys, key = [], 0
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            keys.append(key := hash((key, *ids[end - BLOCK : end])))
        known = next((i for i, key in enumerate(keys) if key not in self._blocks), len(keys))
        self._blocks.update(keys[known:])
        return known * BLOCK

    async def _run(self) -> None:
        while self._waiting or self._rows:
            while self._waiting and len(self._rows) < MAX_ROWS:
                self._rows.append(self._waiting.popleft())
            decoding = [row for row in self._rows if not row.todo]
            budget, tokens, attended = MAX_BATCHED_TOKENS - len(decoding), len(decoding), 0
            attended += sum(row.length for row in decoding)
            for row in self._rows:
                if row.todo and budget:
                    piece = min(row.todo, budget)
                    row.todo -= piece
                    budget -= piece
                    tokens += piece
                    attended += row.length
                    self.prefilled += piece
                    if not row.todo and row.left:  # the pass that completes a prompt samples the first token
                        row.left -= 1
                        row.length += 1
                        self.generated += 1
            for row in decoding:
                row.left -= 1
                row.length += 1
            self.generated += len(decoding)
            self.passes += 1
            await asyncio.sleep(self.weights.seconds(self.device, tokens, attended))
            for row in self._rows:
                if not row.todo and not row.left and not row.done.done():
                    row.done.set_result(None)
            self._rows = [row for row in self._rows if row.todo or row.left]


class LanguageServer(httpx2.AsyncBaseTransport):
    """Responds as vLLM does, with random tokens; the lengths of steps are as described above."""

    def __init__(self, scheduler: Scheduler, steps: int) -> None:
        self.scheduler = scheduler
        self.steps = steps
        self.requests = 0
        self.random = random.Random(0)
        self._front_end: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        async with self._front_end.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            await asyncio.sleep(FRONT_END)
        body = json.loads(await request.aread() or b"{}")
        match request.url.path:
            case "/v1/models":
                return _answer({"data": [{"id": "simulated", "owned_by": "vllm", "max_model_len": 32_768}]})
            case "/version":
                return _answer({"version": "simulated"})
            case "/tokenize":
                text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                return _answer({"tokens": _words(text)})
            case "/v1/completions":
                return await self._complete(body)
        return httpx2.Response(404, json={"error": {"message": "Not Found"}})

    async def _complete(self, body: dict[str, Any]) -> httpx2.Response:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        n, seed = body.get("n", 1), body.get("seed")
        before = self.scheduler.cached
        children = [(ids, None if seed is None else seed + child) for ids in prompts for child in range(n)]
        steps = [self._random_step(ids, body["max_tokens"], child_seed) for ids, child_seed in children]
        choices = [
            asyncio.create_task(self._generate(index, ids, step))
            for index, ((ids, _), step) in enumerate(zip(children, steps, strict=True))
        ]
        usage = {
            "prompt_tokens": sum(map(len, prompts)),
            "completion_tokens": sum(map(len, steps)),
            "prompt_tokens_details": {"cached_tokens": min(self.scheduler.cached - before, sum(map(len, prompts)))},
        }
        if not body.get("stream"):
            return _answer({"choices": list(await asyncio.gather(*choices)), "usage": usage})

        async def events() -> AsyncIterator[bytes]:
            for choice in asyncio.as_completed(choices):
                yield f"data: {json.dumps({'choices': [await choice]})}\n\n".encode()
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()

        return httpx2.Response(200, content=events())

    def _random_step(self, ids: list[int], limit: int, seed: int | None) -> list[int]:
        """The tokens of a step that continues `ids`; without a seed, another one at each call."""
        chance = self.random if seed is None else random.Random(hash((tuple(ids), seed)))
        words = [chance.randrange(WORDS) for _ in range(min(limit, chance.randint(20, 100)) - 2)]
        done = ids.count(STEP_END) + 1 == self.steps
        return [*words, *((chance.choice(ANSWERS), END) if done else (STEP_END,))][:limit]

    async def _generate(self, index: int, ids: list[int], step: list[int]) -> dict[str, Any]:
        """Wait until the scheduler has generated the step. Returns a choice of the response."""
        await self.scheduler.generate(ids, len(step))
        self.scheduler.remember([*ids, *step])
        return {
            "index": index,
            "text": "".join(map(_text, step)),
            "token_ids": step,
            "finish_reason": "stop" if step[-1] in (STEP_END, END) else "length",
            "stop_reason": "\n\n" if step[-1] == STEP_END else None,
            "logprobs": {"token_logprobs": [0.0] * len(step)},
        }


def _words(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % WORDS for word in text.split()]


def _text(token: int) -> str:
    if token in ANSWERS:
        return f"\\boxed{{{token}}}"
    return {STEP_END: "\n\n", END: ""}.get(token, f"{token} ")


def _answer(body: Any) -> httpx2.Response:
    return httpx2.Response(200, json=body)


@dataclass(eq=False)
class RewardServer:
    """A reward model on a server of its own, which reads every step of a solution. Its scores are random."""

    scheduler: Scheduler

    async def score(self, trajectories: Sequence[motes.Trajectory]) -> list[list[float]]:
        async def one(trajectory: motes.Trajectory) -> list[float]:
            ids = _words(trajectory.problem.question)
            for step in trajectory.steps:
                ids += [*step.token_ids, STEP_END]
            await self.scheduler.generate(ids, 0)
            return [random.Random(hash(tuple(step.token_ids))).uniform(0.3, 0.9) for step in trajectory.steps]

        return list(await asyncio.gather(*(one(trajectory) for trajectory in trajectories)))


@dataclass(frozen=True)
class Setting:
    """The numbers of problems, particles and steps to simulate, and the optimisations that are on.

    Attributes:
        caches: the language model's server caches prefixes.
        groups: equal particles share one prompt; otherwise each particle is a separate request, with its own seed.
        merges: a request also merges the prompts of all problems.
        together: all problems run at once; otherwise one after the other.
        reward_caches: the reward model reads only new steps; otherwise everything each time.
    """

    problems: int = 32
    particles: int = 32
    steps: int = 8
    caches: bool = True
    groups: bool = True
    merges: bool = True
    together: bool = True
    reward_caches: bool = True


def simulate(setting: Setting) -> dict[str, float]:
    """Simulate a setting. Returns the seconds, and the servers' counts of requests and tokens."""
    language = Scheduler(QWEN_1_5B, Device(), setting.caches)
    judging = Scheduler(QWEN_7B, Device(), setting.reward_caches)
    server = LanguageServer(language, setting.steps)
    lm = HTTPLanguageModel.open(
        "http://simulated/v1",
        seeds="none" if setting.merges else "group" if setting.groups else "particle",
        max_concurrency=1 << 16,
        transport=server,
    )
    chance = random.Random(0)
    questions = [" ".join(str(chance.randrange(WORDS)) for _ in range(150)) for _ in range(setting.problems)]
    method = motes.ParticleFilter(setting.particles)
    sampling = motes.Sampling(max_step_tokens=128, max_tokens=1 << 14, max_steps=64)
    before = server.requests, language.prefilled, language.generated

    async def solve(question: str) -> None:
        await motes.asolve(question, lm=lm, reward=RewardServer(judging), method=method, sampling=sampling)

    async def everything() -> None:
        if setting.together:
            await asyncio.gather(*map(solve, questions))
        else:
            for question in questions:
                await solve(question)

    _, seconds = timed(everything)
    return {
        "seconds": seconds,
        "requests": server.requests - before[0],
        "prefilled": language.prefilled - before[1],
        "generated": language.generated - before[2],
        "reward tokens": judging.prefilled,
    }


def table(title: str, rows: dict[str, Setting]) -> None:
    """Simulate and print the settings, a line each; `ratio` is the time divided by that of the first one."""
    print(f"\n{title:<44}{'seconds':>9}{'ratio':>7}{'requests':>10}{'prefilled':>11}{'generated':>11}{'reward':>11}")
    first: float | None = None
    for name, setting in rows.items():
        result = simulate(setting)
        first = first or result["seconds"]
        counts = "".join(f"{result[key]:>{width}.0f}" for key, width in COLUMNS.items())
        print(f"{name:<44}{result['seconds']:>9.1f}{result['seconds'] / first:>7.1f}{counts}", flush=True)


COLUMNS = {"requests": 10, "prefilled": 11, "generated": 11, "reward tokens": 11}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    base = Setting(args.problems, args.particles, args.steps)
    table(
        "optimisations",
        {
            "all": base,
            "a request per particle, with its seed": replace(base, merges=False, groups=False),
            "equal particles merged, problems not": replace(base, merges=False),
            "no prefix cache of the language model": replace(base, caches=False),
            "the reward model reads everything again": replace(base, reward_caches=False),
            "one problem after the other": replace(base, together=False),
            "none": Setting(args.problems, args.particles, args.steps, False, False, False, False, False),
        },
    )
    table("problems", {str(n): replace(base, problems=n) for n in (1, 4, 16, 64)})
    table("particles", {str(n): replace(base, particles=n) for n in (1, 4, 16, 64)})
    table("steps", {str(n): replace(base, steps=n) for n in (4, 8, 16, 32)})


if __name__ == "__main__":
    main()
