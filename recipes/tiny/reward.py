"""Rollouts of the language model, and the reward model trained on their outcomes (Math-Shepherd, arXiv 2312.08935).

The label of a step is the share of K continuations, sampled from the language model, that reach the right answer. The
continuations are solutions, too: one from each prefix is trained on as well, its own steps labelled by its outcome,
which is the same estimate with K = 1, for free. The exact checker is never consulted: the reward model is to be
imperfect for the reason real ones are.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from motes import Problem, Sampling, Trajectory
from motes.kv.vocabulary import Vocabulary
from motes.models.local import LocalLanguageModel
from motes.rewards.format import QwenFormat
from motes.rewards.prm import Qwen2ForProcessRewardModel
from motes.tasks import Arithmetic, arithmetic
from motes.tasks.arithmetic import LEVELS
from tiny.common import learning_rate, optimizers, round_up, save_atomically
from tiny.quality import auroc

STEP = Sampling(temperature=0.8, max_step_tokens=64, max_tokens=320, max_steps=12)
REST = STEP.replace(delimiter=None, max_step_tokens=320)
TASK = Arithmetic()


async def label(lm: LocalLanguageModel, index: int, k: int) -> dict[str, Any]:
    """Sample a solution of the problem of that index; from each of its prefixes, sample k continuations."""
    level = LEVELS[index % len(LEVELS)]
    rng = random.Random(f"rollouts/{index}")
    story = arithmetic.generate(level, "train", rng)
    trajectory = Trajectory(Problem(story.question))
    while trajectory.finished is None and trajectory.depth < STEP.max_steps:
        (step,) = await lm.extend([trajectory], STEP, [rng.getrandbits(63)])
        trajectory = trajectory.extend(step, "answer" if TASK.answer(step.text) is not None else None)

    async def continuations(node: Trajectory) -> list[str]:
        if node.finished is not None:
            return [""]
        steps = await lm.extend([node] * k, REST, [rng.getrandbits(63) for _ in range(k)])
        return [step.text for step in steps]

    return {
        "index": index,
        "question": story.question,
        "answer": str(story.answer),
        "steps": [step.text for step in trajectory.steps],
        "continuations": [await continuations(node) for node in trajectory.path],
    }


def roll_out(work: Path, problems: int, k: int, shard: int, shards: int) -> None:
    """Label `problems` solutions, one JSON line each. Continues where it stopped."""
    path = work / f"rollouts-{shard}-of-{shards}.jsonl"
    done = {row["index"] for row in _rows(path)}
    todo = [index for index in range(shard, problems, shards) if index not in done]
    lm = LocalLanguageModel.open(str(work / "lm"))
    began = time.monotonic()

    async def run() -> None:
        pending = iter(todo)
        finished = tokens = 0
        with path.open("a") as file:

            async def work_off() -> None:
                nonlocal finished, tokens
                for index in pending:
                    row = await label(lm, index, k)
                    file.write(json.dumps(row) + "\n")
                    finished += 1
                    if finished % 200 == 0:
                        file.flush()
                        elapsed = time.monotonic() - began
                        print(f"{finished}/{len(todo)} in {elapsed:.0f} s", flush=True)

            await asyncio.gather(*(work_off() for _ in range(48)))

    asyncio.run(run())


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut off by an interruption
                continue


@dataclass(frozen=True)
class Example:
    """A solution as the reward model reads it.

    Attributes:
        ids: its tokens; `tags`: where the scores of its labelled steps, the last ones, are read.
        shares: of each labelled step, the share of successes.
        right: of each, whether it and all before are right, by the exact checker: for evaluation only.
    """

    ids: list[int]
    tags: list[int]
    shares: list[float]
    right: list[bool]
    level: int

    @classmethod
    def of(cls, form: QwenFormat, row: dict[str, Any], steps: list[str], shares: list[float]) -> Example:
        problem = Problem(row["question"])
        ids, tags = list(form.prompt(problem)), []
        for i, step in enumerate(steps):
            ids += form.step(step, first=i == 0)
            tags.append(len(ids) - 1)
        right = np.cumprod([TASK.check_step(problem, step) for step in steps]).astype(bool).tolist()
        n = len(shares)
        return cls(ids, tags[-n:], shares, right[-n:], row["index"] % len(LEVELS) + 1)


def examples_of(form: QwenFormat, row: dict[str, Any]) -> list[Example]:
    """The solution of a row, labelled by its continuations; and one continuation of each of its prefixes."""
    steps, continuations = row["steps"], row["continuations"]

    def outcome(prefix: int, rest: str) -> float:
        return float(TASK.answer("".join(steps[:prefix]) + rest) == row["answer"])

    shares = [float(np.mean([outcome(t, rest) for rest in rests])) for t, rests in enumerate(continuations, start=1)]
    examples = [Example.of(form, row, steps, shares)]
    for t, (rest, *_) in enumerate(continuations, start=1):
        if more := re.findall(r".+?(?:\n\n|$)", rest, re.DOTALL):
            examples.append(Example.of(form, row, steps[:t] + more, [outcome(t, rest)] * len(more)))
    return examples


def batches(examples: list[Example], tokens: int, seed: int) -> Iterator[list[Example]]:
    """One epoch, in batches of about `tokens` tokens, of similar lengths, in random order."""
    rng = random.Random(seed)
    ordered = sorted(examples, key=lambda example: (len(example.ids) // 16, rng.random()))
    out: list[list[Example]] = [[]]
    for example in ordered:
        if out[-1] and (len(out[-1]) + 1) * len(example.ids) > tokens:
            out.append([])
        out[-1].append(example)
    rng.shuffle(out)
    yield from out


def tag_logits(model: Qwen2ForProcessRewardModel, batch: list[Example]) -> torch.Tensor:
    """(tags of the batch, 2)"""
    length = round_up(max(len(example.ids) for example in batch), 16)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    for i, example in enumerate(batch):
        ids[i, : len(example.ids)] = torch.tensor(example.ids)
    rows = torch.tensor([i for i, example in enumerate(batch) for _ in example.tags])
    columns = torch.tensor([tag for example in batch for tag in example.tags])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        return model.score(hidden[rows, columns]).float()


@torch.no_grad()
def evaluate(model: Qwen2ForProcessRewardModel, examples: list[Example]) -> str:
    """Held-out loss, and AUROC of steps against the exact checker, overall and per level."""
    scores: dict[int, list[float]] = {level: [] for level in LEVELS}
    right: dict[int, list[bool]] = {level: [] for level in LEVELS}
    losses: list[float] = []
    for batch in batches(examples, 16_384, 0):
        logits = tag_logits(model, batch)
        shares = torch.tensor([share for example in batch for share in example.shares])
        losses.append(cross_entropy(logits, torch.stack([1 - shares, shares], -1)).item())
        values = iter(logits.softmax(-1)[:, 1].tolist())
        for example in batch:
            scores[example.level] += [next(values) for _ in example.tags]
            right[example.level] += example.right
    levels = " ".join(f"L{level} {auroc(scores[level], right[level]):.3f}" for level in LEVELS)
    overall = auroc([*chain(*scores.values())], [*chain(*right.values())])
    return f"held-out loss {np.mean(losses):.4f} AUROC {overall:.3f} ({levels})"


def train(work: Path, epochs: int, tokens: int, lr: float) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary.load(str(work / "lm"))
    form = QwenFormat(vocabulary)
    rows = [row for path in sorted(work.glob("rollouts-*.jsonl")) for row in _rows(path)]
    rows = sorted((row for row in rows if row["steps"]), key=lambda row: row["index"])
    held_out = [examples_of(form, row)[0] for row in rows[:500]]
    examples = [example for row in rows[500:] for example in examples_of(form, row)]
    language = AutoModelForCausalLM.from_pretrained(work / "lm", dtype=torch.float32)
    model = Qwen2ForProcessRewardModel(language.config)
    model.model.load_state_dict(language.model.state_dict())
    model.set_attn_implementation("eager")
    opts = optimizers(model, lr)
    epoch_steps = sum(1 for _ in batches(examples, tokens, 0))
    total = epochs * epoch_steps
    labels = sum(len(example.tags) for example in examples)
    print(len(rows) - 500, "problems,", len(examples), "solutions,", labels, "labels,", total, "steps", flush=True)
    checkpoint, epoch, step, seconds = work / "prm.pt", 0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        epoch, step, seconds = state["epoch"], state["step"], state["seconds"]
    began = time.monotonic()
    while epoch < epochs:
        losses: list[float] = []
        for batch in batches(examples, tokens, epoch):
            shares = torch.tensor([share for example in batch for share in example.shares])
            loss = cross_entropy(tag_logits(model, batch), torch.stack([1 - shares, shares], -1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = learning_rate(step, total, lr)
                opt.step()
                opt.zero_grad(set_to_none=True)
            step += 1
            losses.append(loss.item())
            if step % 100 == 0:
                spent = seconds + time.monotonic() - began
                print(f"step {step} loss {np.mean(losses[-100:]):.4f} {spent:.0f} s", flush=True)
        epoch += 1
        spent = seconds + time.monotonic() - began
        saved = [opt.state_dict() for opt in opts]
        save_atomically(
            {"model": model.state_dict(), "optimizers": saved, "epoch": epoch, "step": step, "seconds": spent},
            checkpoint,
        )
        print(f"epoch {epoch}: {evaluate(model, held_out)}", flush=True)
    model.save_pretrained(work / "prm")
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, work / "prm" / file.name)
