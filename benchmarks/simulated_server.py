"""How the time of a particle filter grows on servers larger than this machine, with and without each measure taken.

    python benchmarks/simulated_server.py                 # a 1.5B language model and a 7B reward model, a GPU each
    python benchmarks/simulated_server.py --problems 64 --particles 64 --steps 12

This is no measurement, but a model of the hardware: two servers that batch continuously, whose passes take the time
that a roofline gives (the larger of arithmetic and memory traffic, and a constant for scheduling and launching). Time
is virtual: the clock jumps from event to event. What is real is everything on this side: the filter, and the client
that talks OpenAI's format to the language model's server, with its merging, grouping and seeds. The processor's time
of that client is not counted, that of the server's front end is, as a constant a request.

The model of the servers follows vLLM: prompts are computed in chunks beside the sequences that decode, at most
MAX_BATCHED_TOKENS tokens and MAX_ROWS sequences a pass; prefixes are shared in blocks of 16 tokens; memory is not a
limit. An answer has --steps steps of 20 to 100 tokens, 60 on average, so that all settings have the same work.
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
FRONT_END = 0.5e-3  # seconds that the server spends on a request, one after the other

WORDS, STEP_END, END = 1000, 1000, 1001  # ids of words, of "\n\n", of the end of the answer
ANSWERS = range(1002, 1007)


@dataclass(frozen=True)
class Device:
    """What one GPU does in a second: bfloat16 operations and bytes moved, as far as they are reached in practice; and
    the seconds that a pass takes beside them. By default those of an H100."""

    flops: float = 0.5 * 990e12
    bandwidth: float = 0.8 * 3.35e12
    launch: float = 2e-3


@dataclass(frozen=True)
class Weights:
    """A model: how many parameters, and how many bytes the keys and values of a token take."""

    parameters: float
    kv_bytes: float

    def seconds(self, device: Device, tokens: int, attended: int) -> float:
        """Of a pass over so many tokens that attend to so many keys, all together."""
        arithmetic = 2 * self.parameters * tokens / device.flops
        traffic = (2 * self.parameters + self.kv_bytes * attended) / device.bandwidth
        return max(arithmetic, traffic) + device.launch


QWEN_1_5B = Weights(1.5e9, 28 * 2 * 2 * 128 * 2)  # 28 layers, 2 key heads of 128, two bytes
QWEN_7B = Weights(7.6e9, 28 * 2 * 4 * 128 * 2)


@dataclass(eq=False)
class _Sequence:
    """`todo` tokens of the prompt are to be computed, then `left` tokens drawn."""

    length: int
    todo: int
    left: int
    done: asyncio.Future[None]


@dataclass(eq=False)
class Scheduler:
    """Continuous batching: every pass computes pieces of prompts and a token of every sequence that decodes."""

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
        """Wait until the prompt is computed and so many tokens are drawn."""
        known = self._look_up(ids) if self.caches else 0
        known = min(known, len(ids) - 1)  # the last one is computed always
        self.cached += known
        sequence = _Sequence(len(ids), len(ids) - known, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(sequence)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        await sequence.done

    def remember(self, ids: Sequence[int]) -> None:
        """What was drawn is kept, too."""
        if self.caches:
            self._look_up(ids)

    def _look_up(self, ids: Sequence[int]) -> int:
        """Tokens of the longest prefix that is kept; the rest is kept from now on."""
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
                    if not row.todo and row.left:  # the pass that ends a prompt draws the first token
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
    """Answers as vLLM does; what it says is random, how much is as described above."""

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
        drawn = [self._say(ids, body["max_tokens"], chosen) for ids, chosen in children]
        choices = [
            asyncio.create_task(self._draw(index, ids, said))
            for index, ((ids, _), said) in enumerate(zip(children, drawn, strict=True))
        ]
        usage = {
            "prompt_tokens": sum(map(len, prompts)),
            "completion_tokens": sum(map(len, drawn)),
            "prompt_tokens_details": {"cached_tokens": min(self.scheduler.cached - before, sum(map(len, prompts)))},
        }
        if not body.get("stream"):
            return _answer({"choices": list(await asyncio.gather(*choices)), "usage": usage})

        async def events() -> AsyncIterator[bytes]:
            for choice in asyncio.as_completed(choices):
                yield f"data: {json.dumps({'choices': [await choice]})}\n\n".encode()
            yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()

        return httpx2.Response(200, content=events())

    def _say(self, ids: list[int], limit: int, seed: int | None) -> list[int]:
        chance = self.random if seed is None else random.Random(hash((tuple(ids), seed)))
        words = [chance.randrange(WORDS) for _ in range(min(limit, chance.randint(20, 100)) - 2)]
        done = ids.count(STEP_END) + 1 == self.steps
        return [*words, *((chance.choice(ANSWERS), END) if done else (STEP_END,))][:limit]

    async def _draw(self, index: int, ids: list[int], said: list[int]) -> dict[str, Any]:
        await self.scheduler.generate(ids, len(said))
        self.scheduler.remember([*ids, *said])
        return {
            "index": index,
            "text": "".join(map(_text, said)),
            "token_ids": said,
            "finish_reason": "stop" if said[-1] in (STEP_END, END) else "length",
            "stop_reason": "\n\n" if said[-1] == STEP_END else None,
            "logprobs": {"token_logprobs": [0.0] * len(said)},
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
    """A reward model beside it: every step of a solution is to be read; scores are random."""

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
    """What is simulated: so many problems, particles and steps, and the measures that are taken.

    Attributes:
        caches: the language model's server keeps prefixes.
        groups: particles that are alike travel as one prompt; otherwise each is a request of its own, with its seed.
        merges: the prompts of all problems travel together as well.
        together: all problems at once, or one after the other.
        reward_caches: the reward model reads new steps only, or everything each time.
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
    """Seconds, and what the servers did."""
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
    """One line each, and how many times the first one's time it takes."""
    print(f"\n{title:<44}{'seconds':>9}{'ratio':>7}{'requests':>10}{'prefilled':>11}{'generated':>11}{'reward':>11}")
    first: float | None = None
    for name, setting in rows.items():
        found = simulate(setting)
        first = first or found["seconds"]
        counts = "".join(f"{found[key]:>{width}.0f}" for key, width in COLUMNS.items())
        print(f"{name:<44}{found['seconds']:>9.1f}{found['seconds'] / first:>7.1f}{counts}", flush=True)


COLUMNS = {"requests": 10, "prefilled": 11, "generated": 11, "reward tokens": 11}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    base = Setting(args.problems, args.particles, args.steps)
    table(
        "measures",
        {
            "all": base,
            "a request for each particle, seeded": replace(base, merges=False, groups=False),
            "like particles as one, runs apart": replace(base, merges=False),
            "no prefixes kept by the language model": replace(base, caches=False),
            "the reward model reads everything again": replace(base, reward_caches=False),
            "one problem after the other": replace(base, together=False),
            "none of them": Setting(args.problems, args.particles, args.steps, False, False, False, False, False),
        },
    )
    table("problems", {str(n): replace(base, problems=n) for n in (1, 4, 16, 64)})
    table("particles", {str(n): replace(base, particles=n) for n in (1, 4, 16, 64)})
    table("steps", {str(n): replace(base, steps=n) for n in (4, 8, 16, 32)})


if __name__ == "__main__":
    main()
