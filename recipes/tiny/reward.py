"""Rollouts of the language model, and the reward model trained on their outcomes (Math-Shepherd, arXiv 2312.08935).

The label of a step is the share of K continuations, sampled from the language model, that reach the right answer. The
continuations are solutions, too: one from each prefix is trained on as well, its own steps labelled by its outcome,
which is the same estimate with K = 1, for free. The exact checker is never consulted: the reward model is to be
imperfect for the reason real ones are.

The reward model is the language model with two more layers on top. What the language model expects next is only there
at its last layer, where nothing after it could compare it with what was said; but a mistake is, more often than not, a
token that it half expected to be another. So the first new layer begins by looking one token back, and learns beside
the labels, from every token, how likely the language model found it. That costs no rollout.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Qwen2ForCausalLM

from motes import Problem, Sampling, Trajectory
from motes.lab.reliability import auroc
from motes.models.local import LocalLanguageModel
from motes.rewards.families import QWEN
from motes.rewards.format import Format
from motes.rewards.prm import Qwen2ForProcessRewardModel
from motes.tasks import Arithmetic, arithmetic
from motes.tasks.arithmetic import LEVELS
from motes.vocabulary import Vocabulary
from tiny.common import learning_rate, optimizers, round_up, save_atomically
from tiny.language import chat_prompt, look_back

STEP = Sampling(temperature=0.8, max_step_tokens=64, max_tokens=320, max_steps=12)
REST = STEP.replace(delimiter=None, max_step_tokens=320)
TASK = Arithmetic()
NEW_LAYERS = 2


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
        said: the same text as the language model says it; `same`: where in `ids` and where in `said` the solution's
            tokens are.
        shares: of each labelled step, the share of successes.
        right: of each, whether it and all before are right, by the exact checker: for evaluation only.
    """

    ids: list[int]
    tags: list[int]
    said: list[int]
    same: list[tuple[int, int]]
    shares: list[float]
    right: list[bool]
    level: int

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, form: Format, row: dict[str, Any], steps: list[str], shares: list[float]
    ) -> Example:
        problem = Problem(row["question"])
        ids, tags = list(form.prompt(problem)), []
        said, same = vocabulary.encode(chat_prompt(row["question"])), []
        for number, step in enumerate(steps, start=1):
            read, spoken = form.step(step, number), vocabulary.encode(step)
            lead = len(form.step("", number)) - 1  # "assistant", before the first one
            equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(read[lead:], spoken, strict=False)))
            same += [(len(ids) + lead + j, len(said) + j) for j in range(equal)]
            ids += read
            said += spoken
            tags.append(len(ids) - 1)
        right = np.cumprod([TASK.check_step(problem, step) for step in steps]).astype(bool).tolist()
        n = len(shares)
        return cls(ids, tags[-n:], said, same, shares, right[-n:], row["index"] % len(LEVELS) + 1)


def examples_of(vocabulary: Vocabulary, form: Format, row: dict[str, Any]) -> list[Example]:
    """The solution of a row, labelled by its continuations; and one continuation of each of its prefixes."""
    steps, continuations = row["steps"], row["continuations"]

    def outcome(prefix: int, rest: str) -> float:
        return float(TASK.answer("".join(steps[:prefix]) + rest) == row["answer"])

    shares = [float(np.mean([outcome(t, rest) for rest in rests])) for t, rests in enumerate(continuations, start=1)]
    examples = [Example.of(vocabulary, form, row, steps, shares)]
    for t, (rest, *_) in enumerate(continuations, start=1):
        if more := re.findall(r".+?(?:\n\n|$)", rest, re.DOTALL):
            examples.append(Example.of(vocabulary, form, row, steps[:t] + more, [outcome(t, rest)] * len(more)))
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


def padded(rows: list[list[int]]) -> torch.Tensor:
    ids = torch.zeros(len(rows), round_up(max(map(len, rows)), 16), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def hidden_states(model: Qwen2ForProcessRewardModel, batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """After the first of the new layers, and after the last: (rows, length, hidden size) each."""
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(padded([example.ids for example in batch]), use_cache=False, output_hidden_states=True)
    return out.hidden_states[-NEW_LAYERS], out.last_hidden_state


def tag_loss(
    model: Qwen2ForProcessRewardModel, hidden: torch.Tensor, batch: list[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy against the shares of success, and the logits (tags of the batch, 2)."""
    rows = torch.tensor([i for i, example in enumerate(batch) for _ in example.tags])
    columns = torch.tensor([tag for example in batch for tag in example.tags])
    shares = torch.tensor([share for example in batch for share in example.shares])
    logits = model.score(hidden[rows, columns]).float()
    return cross_entropy(logits, torch.stack([1 - shares, shares], -1)), logits


def token_loss(language: Qwen2ForCausalLM, head: nn.Module, hidden: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    """Cross-entropy against the probability that the language model gave to each token of the solutions."""
    rows = torch.tensor([i for i, example in enumerate(batch) for _ in example.same])
    read, spoken = torch.tensor([pair for example in batch for pair in example.same]).unbind(-1)
    said = padded([example.said for example in batch])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = language(said, use_cache=False).logits[rows, spoken - 1].float()
    likely = logits.softmax(-1).gather(-1, said[rows, spoken, None])[:, 0]
    return binary_cross_entropy_with_logits(head(hidden[rows, read].float())[:, 0], likely)


def from_language_model(language: Qwen2ForCausalLM) -> Qwen2ForProcessRewardModel:
    """The language model and new layers on top, the first of which begins with heads that look one token back."""
    config = copy.deepcopy(language.config)
    config.num_hidden_layers += NEW_LAYERS
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    model = Qwen2ForProcessRewardModel(config)
    model.model.load_state_dict(language.model.state_dict(), strict=False)
    first = model.model.layers[language.config.num_hidden_layers]
    first.input_layernorm.load_state_dict(model.model.norm.state_dict())
    torch.nn.init.ones_(model.model.norm.weight)
    look_back(model.model, language.config.num_hidden_layers, (1, 1, 1, 1))
    return model


@torch.no_grad()
def evaluate(model: Qwen2ForProcessRewardModel, examples: list[Example]) -> str:
    """Held-out loss, and AUROC of steps against the exact checker, overall and per level."""
    scores: dict[int, list[float]] = {level: [] for level in LEVELS}
    right: dict[int, list[bool]] = {level: [] for level in LEVELS}
    losses: list[float] = []
    for batch in batches(examples, 16_384, 0):
        loss, logits = tag_loss(model, hidden_states(model, batch)[1], batch)
        losses.append(loss.item())
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
    form = Format(QWEN, vocabulary)
    rows = [row for path in sorted(work.glob("rollouts-*.jsonl")) for row in _rows(path)]
    rows = sorted((row for row in rows if row["steps"]), key=lambda row: row["index"])
    held_out = [examples_of(vocabulary, form, row)[0] for row in rows[:500]]
    examples = [example for row in rows[500:] for example in examples_of(vocabulary, form, row)]
    language = Qwen2ForCausalLM.from_pretrained(work / "lm", dtype=torch.float32)
    language.set_attn_implementation("eager")
    model = from_language_model(language)
    model.set_attn_implementation("eager")
    head = nn.Sequential(nn.RMSNorm(language.config.hidden_size), nn.Linear(language.config.hidden_size, 1))
    trained = nn.ModuleList([model, head])
    opts = optimizers(trained, lr)
    total = sum(1 for epoch in range(epochs) for _ in batches(examples, tokens, epoch))
    labels = sum(len(example.tags) for example in examples)
    print(len(rows) - 500, "problems,", len(examples), "solutions,", labels, "labels,", total, "steps", flush=True)
    checkpoint, done, seconds = work / "prm.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        trained.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        done, seconds = state["step"], state["seconds"]
    began = time.monotonic()
    losses: list[tuple[float, float]] = []
    todo = chain.from_iterable(batches(examples, tokens, epoch) for epoch in range(epochs))
    for step, batch in enumerate(islice(todo, done, None), start=done + 1):
        compared, hidden = hidden_states(model, batch)
        loss, _ = tag_loss(model, hidden, batch)
        tokens_loss = token_loss(language, head, compared, batch)
        (loss + tokens_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step - 1, total, lr)
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append((loss.item(), tokens_loss.item()))
        spent = seconds + time.monotonic() - began
        if step % 100 == 0:
            steps, words = np.mean(losses[-100:], 0)
            print(f"step {step} loss {steps:.4f}, of tokens {words:.4f} {spent:.0f} s", flush=True)
        if step % 500 == 0 or step == total:
            saved = [opt.state_dict() for opt in opts]
            save_atomically(
                {"model": trained.state_dict(), "optimizers": saved, "step": step, "seconds": spent}, checkpoint
            )
            print(f"step {step}: {evaluate(model, held_out)}", flush=True)
    model.save_pretrained(work / "prm")
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, work / "prm" / file.name)
