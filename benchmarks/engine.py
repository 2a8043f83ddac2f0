"""The local engine against a bare decode loop, and against the straightforward way.

    python benchmarks/engine.py                        # the bundled models, 1 and 16 problems, 16, 64, 256 particles
    python benchmarks/engine.py --model hf:PATH --particles 64 --problems 1

For each number of particles and problems, side by side in one run:

    motes   tokens per second of a particle filter (resampling every step, plain function as reward), orchestration
            and all
    bare    tokens per second of a loop that only decodes: the same model and attention, the same batch size and mean
            lengths, no requests, no delimiters, no seeds
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
from motes.api import _local_path
from motes.kv import Runner
from motes.models.local import LocalLanguageModel
from motes.models.sampler import Sampler, uniforms
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


def bare(lm: LocalLanguageModel, rows: int, length: int, tokens: int, total: int) -> float:
    """Seconds of decoding `total` tokens, `rows` at a time: from a prefix of `length`, `tokens` each."""
    runner, sampling = Runner(lm._runner.body, lm.tree.pool), motes.Sampling()  # a workspace of its own
    seeds = np.arange(rows, dtype=np.uint64)
    sampler = Sampler([sampling] * rows, runner.device)
    seconds, done = 0.0, 0
    torch.set_num_threads(lm._num_threads)
    with torch.inference_mode():
        while done < total:
            runner.workspace.clear()
            runner.workspace.reserve(rows, length + tokens)
            runner.workspace.lengths = [length] * rows
            token = torch.ones(rows, dtype=torch.long)
            began = time.perf_counter()
            for t in range(tokens):
                hidden = runner.forward(0, token[:, None])
                token, _, _ = sampler(lm._head(hidden[:, -1]), uniforms(seeds, np.full(rows, t)))
                token = token.cpu()
            seconds += time.perf_counter() - began
            done += rows * tokens
    return seconds * total / done


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


def mean_shape(results: list[motes.Result], lm: LocalLanguageModel) -> tuple[int, int]:
    """Mean length of a prefix when a step begins, and mean tokens of a step."""
    lengths, tokens = [], []
    for result in results:
        prompt = len(lm.vocabulary.prompt(result.problem))
        for record in result.records:
            for node in record.trajectories:
                if node.step is not None and node.parent is not None:
                    lengths.append(prompt + node.parent.num_tokens)
                    tokens.append(len(node.step.token_ids))
    return round(float(np.mean(lengths))), round(float(np.mean(tokens)))


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
    print(
        f"{'problems':>8} {'particles':>9} {'motes':>9} {'bare':>9} {'naive':>9} {'motes/bare':>11} {'motes/naive':>12}"
    )
    results: list[motes.Result] = []
    for count in args.problems:
        for particles in args.particles:
            best = best_bare = 0.0
            for repeat in range(args.repeats):
                results, seconds = asyncio.run(run_filters(lm, reward, problems[:count], particles, repeat))
                total = sum(result.usage.generated_tokens for result in results)
                best = max(best, total / seconds)
                length, tokens = mean_shape(results, lm)
                rows = min(lm.max_batch_size, count * particles)
                best_bare = max(best_bare, total / bare(lm, rows, length, tokens, total))
            slow = naive(lm, _local_path(args.model.partition("?")[0], "lm"), results, 24)
            print(
                f"{count:>8} {particles:>9} {best:>9.0f} {best_bare:>9.0f} {slow:>9.0f} "
                f"{best / best_bare:>11.2f} {best / slow:>12.1f}",
                flush=True,
            )
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
