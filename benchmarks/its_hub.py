"""Compare particle filters of motes and of its_hub 1.2.0, its best known predecessor, on the same servers in one run.

    make bench-its-hub                                          # sets everything up; 32 particles, 32 problems
    make bench-its-hub ARGS='--particles 8 --problems 8'

Both use one vLLM server with the bundled language model and one with the bundled reward model (`/pooling`, which has no
prefix cache), at temperature 0.8, without seeds, on the same machine:

    its_hub, one by one     `infer` on one problem after the other, as its documentation and its own benchmark do
    its_hub, all at once    `ainfer` on all problems together: the best that it can do
    motes, same algorithm   `ParticleFilter.paper`: its_hub's settings (softmax over logits of the last score, the whole
                            answer read as one step, multinomial resampling after every step, the largest score wins)
    motes, default          `ParticleFilter`

Seconds are the time of the runs, without imports, opening models and starting servers. Requests and tokens are the
servers' own counts (/metrics); their caches are emptied before each run. Prefilled tokens are computed ones only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import motes
import real_servers
from motes.tasks import Arithmetic
from real_servers import Server

ITS_HUB_ENV = "MOTES_ITS_HUB_ENV", ".venv-its-hub"
PEER = Path(__file__).parent / "peers" / "its_hub_filter.py"
TASK = Arithmetic()

Run = Callable[[], tuple[float, list[str]]]
"""Solves all problems. Returns the seconds and the text of each answer."""


@dataclass(frozen=True)
class Cost:
    """The cost of a run, with tokens and requests as the servers count them; `right`: the number of right answers."""

    seconds: float
    requests: float
    prefilled: float
    generated: float
    reward_requests: float
    reward_tokens: float
    right: int


@dataclass(frozen=True)
class Servers:
    lm: Server
    reward: Server

    def counts(self) -> list[float]:
        """The servers' counts so far, in the order of `Cost`, from `requests` to `reward_tokens`."""
        lm, reward = metrics(self.lm), metrics(self.reward)
        return [
            total(lm, r'http_requests_total\{.*method="POST"'),
            total(lm, r'vllm:prompt_tokens_by_source_total\{.*source="local_compute"'),
            total(lm, r"vllm:generation_tokens_total\{"),
            total(reward, r'http_requests_total\{.*method="POST"'),
            total(reward, r"vllm:prompt_tokens_total\{"),
        ]

    def measure(self, run: Run, problems: Sequence[motes.Problem]) -> Cost:
        for server in (self.lm, self.reward):
            request = urllib.request.Request(f"{server.root}/reset_prefix_cache", method="POST")
            urllib.request.urlopen(request, timeout=60).close()
        before = self.counts()
        seconds, texts = run()
        spent = [after - earlier for earlier, after in zip(before, self.counts(), strict=True)]
        answers = [(problem, TASK.answer(text)) for problem, text in zip(problems, texts, strict=True)]
        right = sum(answer is not None and TASK.grade(problem, answer) for problem, answer in answers)
        return Cost(seconds, *spent, right)


def metrics(server: Server) -> str:
    with urllib.request.urlopen(f"{server.root}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def total(metrics: str, pattern: str) -> float:
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if re.match(pattern, line))


def its_hub(servers: Servers, problems: Sequence[motes.Problem], particles: int, *, together: bool) -> Run:
    job = {
        "lm": f"{servers.lm.root}/v1",
        "lm_name": "tiny-lm",
        "reward": servers.reward.root,
        "reward_name": "tiny-prm",
        "questions": [problem.question for problem in problems],
        "particles": particles,
        "together": together,
    }

    def run() -> tuple[float, list[str]]:
        command = [real_servers.python(*ITS_HUB_ENV), "-W", "ignore", str(PEER)]
        done = subprocess.run(command, input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
        answer = json.loads(done.stdout)
        return answer["seconds"], answer["texts"]

    return run


def ours(servers: Servers, problems: Sequence[motes.Problem], method: motes.ParticleFilter, prefix: str) -> Run:
    lm = motes.language_model(f"{servers.lm.root}/v1", seeds="none")
    reward = motes.reward_model(servers.reward.root, prefix=prefix)

    async def solve(problem: motes.Problem) -> str:
        return (await motes.asolve(problem, lm=lm, reward=reward, method=method, task=TASK)).text

    async def all_at_once() -> list[str]:
        return list(await asyncio.gather(*map(solve, problems)))

    def run() -> tuple[float, list[str]]:
        began = time.perf_counter()
        texts = asyncio.run(all_at_once())
        return time.perf_counter() - began, texts

    return run


def table(costs: dict[str, Cost]) -> str:
    """A row for each run, then the ratios of its_hub's costs to those of motes."""
    names = [name for name in Cost.__dataclass_fields__ if name != "right"]
    rows = [f"{'':<24}" + "".join(f"{name.replace('_', ' '):>17}" for name in (*names, "right"))]
    for name, cost in costs.items():
        rows.append(f"{name:<24}{cost.seconds:>17.1f}" + "".join(f"{getattr(cost, n):>17,.0f}" for n in names[1:]))
        rows[-1] += f"{cost.right:>17}"
    for mine in [name for name in costs if name.startswith("motes")]:
        for theirs in [name for name in costs if name.startswith("its_hub")]:
            ratios = [getattr(costs[theirs], name) / max(1e-9, getattr(costs[mine], name)) for name in names]
            rows.append(f"{theirs} / {mine}: " + ", ".join(f"{n} {r:.2f}" for n, r in zip(names, ratios, strict=True)))
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--problems", type=int, default=32)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the servers are stopped
    problems = TASK.problems()[: args.problems]
    costs: dict[str, Cost] = {}
    with real_servers.vllm_generator() as lm, real_servers.vllm_pooling() as reward:
        servers = Servers(lm, reward)
        runs = {
            "motes, same algorithm": ours(servers, problems, motes.ParticleFilter.paper(args.particles), "whole"),
            "motes, default": ours(servers, problems, motes.ParticleFilter(args.particles), "steps"),
            "its_hub, all at once": its_hub(servers, problems, args.particles, together=True),
            "its_hub, one by one": its_hub(servers, problems, args.particles, together=False),
        }
        for name, run in runs.items():
            costs[name] = servers.measure(run, problems)
            print(name, costs[name], flush=True)
    print(f"\n{args.particles} particles, {args.problems} problems\n{table(costs)}")


if __name__ == "__main__":
    main()
