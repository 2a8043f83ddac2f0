"""The local engine against a bare decode loop, and against the straightforward way.

    python benchmarks/engine.py                        # the bundled models, 1 and 16 problems, 16, 64, 256 particles
    python benchmarks/engine.py --model hf:PATH --particles 64 --problems 1

For each number of particles and problems, side by side in one run:

    motes   tokens per second of a particle filter (resampling every step, plain function as reward), orchestration
            and all
    bare    tokens per second of a loop that only decodes: the same model and attention, pass by pass the same rows at
            the same lengths as the filter had, and nothing else: no requests, no delimiters, no prompts, no prefixes
    steady  the same, had the batch been full all the time, all rows of the mean length: what a filter loses beside it
            that it does not lose beside `bare` is the end of rounds, when few particles are left
    naive   tokens per second of `transformers.generate`, called once per particle and step with the whole prefix, on
            a sample of the steps that the filter took; in the same dtype on the same device

The ratios are what to read; absolute speeds are the machine's. Then the same filter with the bundled reward model:
reward tokens computed per token generated, and the peak of the process's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
import zlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import motes
from motes.kv import Runner
from motes.models.local import LocalLanguageModel
from motes.models.sampler import Sampler, uniforms
from motes.opening import _local_path
from motes.tasks import Arithmetic

METHOD = motes.ParticleFilter


async def run_filters(
    lm: motes.LanguageModel, reward: motes.RewardModel, problems: list[motes.Problem], particles: int, seed: int
) -> tuple[list[motes.Result], float]:
    """Run one filter per problem, all at once; results and seconds."""
    began = time.perf_counter()
    results = await asyncio.gather(
        *(
            motes.asolve(
                problem, lm=lm, reward=reward, method=METHOD(particles, ess_threshold=1.0), task=Arithmetic(), seed=seed
            )
            for problem in problems
        )
    )
    return list(results), time.perf_counter() - began


Passes = list[list[int]]
"""For each forward pass that decodes, the length of each row."""


def recorded(lm: LocalLanguageModel) -> Passes:
    """A list that grows by every pass that the model makes from now on."""
    passes: Passes = []
    decode = lm._decode

    def recording() -> None:
        passes.append(list(lm._runner.workspace.lengths))
        decode()

    lm._decode = recording  # type: ignore[method-assign]
    return passes


def bare(lm: LocalLanguageModel, passes: Passes) -> float:
    """Tokens per second of these passes alone."""
    runner, sampling = Runner(lm._runner.body, lm.tree.pool), motes.Sampling()  # a workspace of its own
    runner.workspace.reserve(max(map(len, passes)), 1 + max(map(max, passes)))
    torch.set_num_threads(lm._num_threads)
    seconds = 0.0
    with torch.inference_mode():
        for lengths in passes:
            rows = len(lengths)
            runner.workspace.lengths = list(lengths)
            token, seeds = torch.ones(rows, 1, dtype=torch.long), np.arange(rows, dtype=np.uint64)
            sampler = Sampler([sampling] * rows, runner.device)
            began = time.perf_counter()
            hidden = runner.forward(0, token)
            sampler(lm._head(hidden[:, -1]), uniforms(seeds, np.zeros(rows, dtype=np.int64)))[0].cpu()
            seconds += time.perf_counter() - began
    return sum(map(len, passes)) / seconds


def steady(rows: int, passes: Passes) -> Passes:
    """As many tokens in full batches of rows that are all of the mean length."""
    lengths = [length for each in passes for length in each]
    return [[round(float(np.mean(lengths)))] * rows] * max(1, len(lengths) // rows)


def naive(lm: LocalLanguageModel, path: str, results: list[motes.Result], sample: int) -> float:
    """Tokens per second of one `generate` call per particle and step, over a sample of the steps taken."""
    torch.set_num_threads(lm._num_threads)
    keys = lm.tree.pool.data
    model = AutoModelForCausalLM.from_pretrained(path, dtype=keys.dtype).to(keys.device).eval()
    steps = [
        node
        for result in results
        for record in result.records
        for node, old in zip(record.trajectories, record.ancestors, strict=True)
        if node.step is not None and old >= 0
    ]
    chosen = np.random.default_rng(0).choice(len(steps), size=min(sample, len(steps)), replace=False)
    tokens, began = 0, time.perf_counter()
    for i in chosen:
        parent = steps[i].parent
        ids = lm.vocabulary.encode(lm.vocabulary.tokenizer.decode(lm._ids(parent)[0]))
        out = model.generate(
            torch.tensor([ids], device=model.device),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=model.device),
            do_sample=True,
            temperature=0.8,
            max_new_tokens=lm.context_length - len(ids),
            stop_strings=["\n\n"],
            tokenizer=lm.vocabulary.tokenizer,
        )
        tokens += out.shape[1] - len(ids)
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reward", default="tiny")
    parser.add_argument("--particles", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--problems", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs of motes and of bare")
    args = parser.parse_args()
    lm = motes.language_model(args.model)
    assert isinstance(lm, LocalLanguageModel)
    reward = motes.FunctionReward(lambda problem, text: (zlib.crc32(text.encode()) % 89 + 5) / 100)
    test = Arithmetic().problems()
    problems = [problem for problem in test if problem.id is not None and "/4-" in problem.id]
    asyncio.run(run_filters(lm, reward, problems[:1], 16, 0))  # warm up
    passes = recorded(lm)
    ratios = ("motes/bare", "motes/steady", "motes/naive")
    print("problems particles    motes     bare   steady    naive", *(f"{ratio:>13}" for ratio in ratios))
    results: list[motes.Result] = []
    for count in args.problems:
        for particles in args.particles:
            best = np.zeros(3)
            for repeat in range(args.repeats):
                passes.clear()
                results, seconds = asyncio.run(run_filters(lm, reward, problems[:count], particles, repeat))
                done, rows = list(passes), min(lm.max_batch_size, count * particles)
                speed = sum(result.usage.generated_tokens for result in results) / seconds
                best = np.maximum(best, [speed, bare(lm, done), bare(lm, steady(rows, done))])
            speeds = [*best, naive(lm, _local_path(args.model.partition("?")[0], "lm"), results, 24)]
            shown = " ".join(f"{speed:8.0f}" for speed in speeds)
            print(f"{count:8} {particles:9} {shown}", *(f"{best[0] / speed:13.2f}" for speed in speeds[1:]), flush=True)
    prm = motes.reward_model(args.reward)
    for particles in args.particles:
        results, seconds = asyncio.run(run_filters(lm, prm, problems[: args.problems[-1]], particles, 0))
        usage = sum((result.usage for result in results), motes.Usage())
        print(
            f"with the reward model, {args.problems[-1]} problems x {particles}: "
            f"{usage.generated_tokens / seconds:.0f} tokens/s, reward tokens computed per token generated "
            f"{usage.reward_tokens / usage.generated_tokens:.2f} "
            f"({(usage.reward_tokens + usage.reward_tokens_cached) / usage.generated_tokens:.1f} without its cache)"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory {peak:.0f} MiB, keys and values of {lm.tree.num_tokens} tokens kept")


if __name__ == "__main__":
    main()
