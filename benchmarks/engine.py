"""Measure the speed of the local engine beside a bare decode loop and beside `transformers.generate`.

    python benchmarks/engine.py                        # the bundled models, 1 and 16 problems, 16, 64, 256 particles
    python benchmarks/engine.py --model hf:PATH --particles 64 --problems 1

For each number of particles and problems, it measures tokens per second of four programs in one run:

    motes   a particle filter that resamples at every step, with a plain function as the reward model
    bare    a loop that only decodes: the same model and attention, and pass by pass the same rows at the same lengths
            as in the filter, but no requests, delimiters, prompts or prefixes
    steady  the same loop with a batch that is always full and rows that all have the mean length. Beside it, the filter
            also loses the time at the end of rounds, when few particles are left
    naive   `transformers.generate`, called once per particle and step with the whole prefix, for a sample of the
            filter's steps; same dtype, same device

Read the ratios: absolute speeds depend on the machine. Then the same filter runs with the bundled reward model, for the
number of reward tokens computed per generated token, and for the peak memory of the process.
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
from motes.opening.models import local_path
from motes.tasks import Arithmetic

METHOD = motes.ParticleFilter


async def run_filters(
    lm: motes.LanguageModel, reward: motes.RewardModel, problems: list[motes.Problem], particles: int, seed: int
) -> tuple[list[motes.Result], float]:
    """Run one filter per problem, all at once. Returns the results and the seconds."""
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
"""For each decoding pass, the length of each row."""


def record_passes(lm: LocalLanguageModel) -> Passes:
    """Return a list to which the model adds each decoding pass that it makes from now on."""
    passes: Passes = []
    decode = lm._decode

    def recording() -> None:
        passes.append(list(lm._runner.workspace.lengths))
        decode()

    lm._decode = recording  # type: ignore[method-assign]
    return passes


def bare_speed(lm: LocalLanguageModel, passes: Passes) -> float:
    """Make these passes and nothing else. Returns tokens per second."""
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


def steady_passes(rows: int, passes: Passes) -> Passes:
    """As many tokens as in `passes`, in full batches of `rows` rows that all have the mean length."""
    lengths = [length for each in passes for length in each]
    return [[round(float(np.mean(lengths)))] * rows] * max(1, len(lengths) // rows)


def naive_speed(lm: LocalLanguageModel, path: str, results: list[motes.Result], sample: int) -> float:
    """Call `transformers.generate` for a random sample of the results' steps. Returns tokens per second."""
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
    parser.add_argument(
        "--repeats", type=int, default=3, help="number of runs of motes, bare and steady, of which the best counts"
    )
    args = parser.parse_args()
    lm = motes.language_model(args.model)
    assert isinstance(lm, LocalLanguageModel)
    reward = motes.FunctionReward(lambda problem, text: (zlib.crc32(text.encode()) % 89 + 5) / 100)
    test = Arithmetic().problems()
    problems = [problem for problem in test if problem.id is not None and "/4-" in problem.id]
    asyncio.run(run_filters(lm, reward, problems[:1], 16, 0))  # warm up
    passes = record_passes(lm)
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
                best = np.maximum(best, [speed, bare_speed(lm, done), bare_speed(lm, steady_passes(rows, done))])
            speeds = [*best, naive_speed(lm, local_path(args.model.partition("?")[0], "lm"), results, 24)]
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
