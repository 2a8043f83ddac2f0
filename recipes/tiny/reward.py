"""Rollouts, and the reward model trained on their outcomes (Math-Shepherd, arXiv 2312.08935).

A solution is sampled from the language model. From some of its steps, a stronger model, the completer, continues it
once; the label of a step is whether the continuation reaches the right answer. (With the share of K right continuations
as label, K = 1 for more solutions is more informative at the same cost, as their steps differ.) Math-Shepherd also
completes with a larger model: from a right step of a long solution the language model itself seldom reaches the answer,
and its labels would be nearly all noise. Continuations are training examples, too, with their steps labelled by their
outcome. The exact checker is never used: the reward model is meant to be imperfect for the same reason as real ones.

The reward model is initialised from the reader, which is the completer adapted to the format in which reward models
read: as in the paper, it starts as a better language model than the one that it judges. It is wider, with two more
layers on top. A mistake is usually a token where the reader expected another. So the first new layer is initialised to
compare the expected token with the actual one. Besides the labels, it learns from every token how likely the reader
found it, which costs no rollout. The last layer is initialised to look for the least expected token so far.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Qwen2ForCausalLM

from motes import Problem, Sampling, Trajectory
from motes.lab.measure.reliability import auroc
from motes.models.local import LocalLanguageModel
from motes.rewards.families import QWEN
from motes.rewards.format import Format
from motes.rewards.prm import Qwen2ForProcessRewardModel
from motes.tasks import Arithmetic, arithmetic
from motes.tasks.arithmetic import LEVELS
from motes.vocabulary import Vocabulary
from tiny.common import best_device, choose_attention, learning_rate, optimizers, round_up, save_atomically
from tiny.language import TRAINED_LEVELS, look_back, read_step

STEP = Sampling(temperature=0.8, max_step_tokens=64, max_tokens=768, max_steps=24)
REST = STEP.replace(delimiter=None, max_step_tokens=768)
TASK = Arithmetic()
ROLLED_LEVELS = (*LEVELS, *TRAINED_LEVELS)
"""Levels take turns. Easy ones come twice: they cost a tenth of the long ones."""
PREFIXES = 6
"""Largest number of labelled steps of a solution."""
CONTINUATIONS = 2
"""Largest number of their continuations that are training examples."""
NEW_LAYERS = 2
EXTRA = 48
FAINT, STEADY = 0.1, 15.0
"""Size of the values that the additional dimensions carry past the language model's layers, so small that norms hardly
change; and size of the constant that dominates the norm before the comparison."""
CERTAIN = 0.02
"""The weight of a token that was fully expected."""
EXPECTING = 100
"""Number of steps in which the model learns only from token probabilities, before it also learns from labels."""
SHARPNESS, SHARE = 2.0, 0.3
"""Sharpness of the heads that look for the least expected token, and its initial share of a tag's hidden state."""
HELD_OUT = 400
"""Number of problems whose solutions are not used for training."""


def level_of(index: int) -> int:
    return ROLLED_LEVELS[index % len(ROLLED_LEVELS)]


async def label(lm: LocalLanguageModel, completer: LocalLanguageModel, index: int) -> dict[str, Any]:
    """Sample a solution of the problem with this index, and complete some of its prefixes."""
    rng = random.Random(f"rollouts/{index}")
    story = arithmetic.generate(level_of(index), "train", rng)
    trajectory = Trajectory(Problem(story.question))
    while trajectory.finished is None and trajectory.depth < STEP.max_steps:
        (step,) = await lm.extend([trajectory], STEP, [rng.getrandbits(63)])
        trajectory = trajectory.extend(step, "answer" if TASK.answer(step.text) is not None else None)
    path = [node for node in trajectory.path if node.finished is None]
    nodes = sorted(rng.sample(path, min(PREFIXES, len(path))), key=lambda node: node.depth)
    rests = await completer.extend(nodes, REST, [rng.getrandbits(63) for _ in nodes]) if nodes else []
    return {
        "index": index,
        "question": story.question,
        "answer": str(story.answer),
        "steps": [step.text for step in trajectory.steps],
        "continuations": [[node.depth, rest.text] for node, rest in zip(nodes, rests, strict=True)],
    }


def roll_out(work: Path, problems: int, shard: int, shards: int) -> None:
    """Label `problems` solutions, one JSON line each. Resumes if it was interrupted."""
    path = work / f"rollouts-{shard}-of-{shards}.jsonl"
    done = {row["index"] for row in _rows(path)}
    todo = [index for index in range(shard, problems, shards) if index not in done]
    lm, completer = (LocalLanguageModel.open(str(work / role), dtype="bfloat16") for role in ("lm", "completer"))
    began = time.monotonic()

    async def run() -> None:
        pending = iter(todo)
        finished = tokens = 0
        with path.open("a") as file:

            async def work() -> None:
                nonlocal finished, tokens
                for index in pending:
                    row = await label(lm, completer, index)
                    file.write(json.dumps(row) + "\n")
                    finished += 1
                    if finished % 200 == 0:
                        file.flush()
                        elapsed = time.monotonic() - began
                        print(f"{finished}/{len(todo)} in {elapsed:.0f} s", flush=True)

            await asyncio.gather(*(work() for _ in range(256)))

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
        ids: its tokens.
        solution: the places of the solution's tokens.
        tags: the places at which the scores of its labelled steps are read.
        outcomes: for each labelled step, whether the right answer was reached from it.
        right: for each labelled step, whether it and all steps before it are right, by the exact checker; for
            evaluation only.
    """

    ids: list[int]
    solution: list[int]
    tags: list[int]
    outcomes: list[bool]
    right: list[bool]
    level: int

    @classmethod
    def of(cls, form: Format, row: dict[str, Any], steps: list[str], outcomes: dict[int, bool]) -> Example:
        """The example of a solution whose steps are labelled by `outcomes`: from a step's number, from 1, to its
        outcome."""
        problem = Problem(row["question"])
        ids, solution, tags = list(form.prompt(problem)), [], []
        for number, step in enumerate(steps, start=1):
            lead, words, tag = read_step(form, step, number)
            solution += range(len(ids) + len(lead), len(ids) + len(lead) + len(words))
            ids += [*lead, *words, tag]
            if number in outcomes:
                tags.append(len(ids) - 1)
        right = np.cumprod([TASK.check_step(problem, step) for step in steps]).astype(bool).tolist()
        labelled = [right[number - 1] for number in sorted(outcomes)]
        labels = [outcomes[number] for number in sorted(outcomes)]
        return cls(ids, solution, tags, labels, labelled, level_of(row["index"]))


def examples_of(form: Format, row: dict[str, Any]) -> list[Example]:
    """The solution of a row, labelled by its continuations and its own end; and some of the continuations, each
    labelled by its outcome."""
    steps, continuations = row["steps"], row["continuations"]

    def outcome(depth: int, rest: str) -> bool:
        return bool(TASK.answer("".join(steps[:depth]) + rest) == row["answer"])

    outcomes = {depth: outcome(depth, rest) for depth, rest in continuations}
    examples = [Example.of(form, row, steps, outcomes | {len(steps): outcome(len(steps), "")})]
    for depth, rest in random.Random(row["index"]).sample(continuations, min(len(continuations), CONTINUATIONS)):
        if more := re.findall(r".+?(?:\n\n|$)", rest, re.DOTALL):
            labels = dict.fromkeys(range(depth + 1, depth + len(more) + 1), outcomes[depth])
            examples.append(Example.of(form, row, steps[:depth] + more, labels))
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
    """The hidden states after the first of the new layers, and after the last: (rows, length, hidden size) each."""
    ids = padded([example.ids for example in batch]).to(model.device)
    choose_attention(model, ids.shape[1])
    with torch.autocast(model.device.type, torch.bfloat16):
        out = model.model(ids, use_cache=False, output_hidden_states=True)
    return out.hidden_states[-NEW_LAYERS], out.last_hidden_state


def tag_loss(
    model: Qwen2ForProcessRewardModel, hidden: torch.Tensor, batch: list[Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy against the outcomes, and the logits (tags of the batch, 2)."""
    rows = torch.tensor([i for i, example in enumerate(batch) for _ in example.tags])
    columns = torch.tensor([tag for example in batch for tag in example.tags])
    outcomes = torch.tensor([outcome for example in batch for outcome in example.outcomes]).to(hidden.device)
    logits = model.score(hidden[rows, columns]).float()
    return cross_entropy(logits, outcomes.long()), logits


def token_loss(reader: Qwen2ForCausalLM, head: nn.Module, hidden: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    """Cross-entropy against the reader's probability of each token of the solutions; all other tokens count as
    expected."""
    rows = torch.tensor([i for i, example in enumerate(batch) for _ in example.solution])
    columns = torch.tensor([place for example in batch for place in example.solution])
    ids = padded([example.ids for example in batch]).to(hidden.device)
    choose_attention(reader, ids.shape[1])
    with torch.no_grad(), torch.autocast(hidden.device.type, torch.bfloat16):
        shares = reader(ids, use_cache=False).logits[rows, columns - 1].float().softmax(-1)
    likely, weights = torch.ones_like(hidden[..., 0]), torch.full_like(hidden[..., 0], CERTAIN)
    likely[rows, columns] = shares.gather(-1, ids[rows, columns, None])[:, 0]
    weights[rows, columns] = CERTAIN + 1 - likely[rows, columns]
    loss = binary_cross_entropy_with_logits(head(hidden.float())[..., 0], likely, reduction="none")
    return (loss * weights).sum() / weights.sum()


@torch.no_grad()
def look_for_the_unexpected(model: Qwen2ForProcessRewardModel, head: nn.Sequential, batch: list[Example]) -> None:
    """Initialise the last layer and the reward head to score a step by the least expected token so far.

    With random weights a tag sees the mean of some hundred tokens, of which one is wrong, and does not find that one
    in a thousand steps. So every head of the last layer attends to the token with the lowest probability according to
    `head`, writes it along one direction, and the reward head reads this direction.
    """
    compared, _ = hidden_states(model, batch)
    size = float(compared.square().mean().sqrt())
    norm, linear = head
    towards, offset = norm.weight * linear.weight[0], linear.bias[0]
    direction = nn.functional.normalize(torch.randn(len(towards)), dim=0).to(towards.device)
    layer, config = model.model.layers[-1], model.config
    layer.input_layernorm.weight.fill_(1.0)
    attention, dim = layer.self_attn, config.hidden_size // config.num_attention_heads
    slow = dim // 2 - 1  # the dimension that rotates least with the distance
    for q in range(config.num_attention_heads):
        attention.q_proj.weight[q * dim : (q + 1) * dim] *= 0.1
        attention.q_proj.bias[q * dim + slow] = SHARPNESS * dim**0.5
        attention.o_proj.weight[:, q * dim] = direction * SHARE * size / config.num_attention_heads
    for k in range(config.num_key_value_heads):
        for projection, place in ((attention.k_proj, k * dim + slow), (attention.v_proj, k * dim)):
            projection.weight[place] = -towards
            projection.bias[place] = -offset
    first, last = model.score[0], model.score[2]
    first.weight[:2] = torch.stack([direction, -direction])
    first.bias[:2] = 0.0
    last.weight[:, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).to(last.weight.device)


@torch.no_grad()
def from_language_model(
    language: Qwen2ForCausalLM, tokens: torch.Tensor
) -> tuple[Qwen2ForProcessRewardModel, nn.Sequential]:
    """The language model, wider, with two layers on top, of which the first is initialised to compute how likely the
    language model found each token.

    The expected next token is known only at the language model's last layer, where the actual token is no longer known:
    the layers have transformed it into the next expectation. So `EXTRA` additional dimensions carry each token (its
    embedding's principal components) past the layers, which do not touch them: widened like this, the layers compute
    the same as before. The first new layer has heads that look one token back: they copy the expectation into as many
    dimensions again. Its MLP multiplies the two: silu(a)·b − silu(−a)·b = a·b.

    Args:
        tokens: (n,) token ids of typical text.

    Returns:
        the model, and the head that computes, from the first new layer, how likely a token was.
    """
    old, config = language.config, copy.deepcopy(language.config)
    width, dim = old.hidden_size, old.hidden_size // old.num_attention_heads
    config.hidden_size = width + 2 * EXTRA
    config.num_attention_heads = config.hidden_size // dim
    config.num_hidden_layers += NEW_LAYERS
    config.layer_types = ["full_attention"] * config.num_hidden_layers
    model = Qwen2ForProcessRewardModel(config)
    actual, expected = slice(width, width + EXTRA), slice(width + EXTRA, width + 2 * EXTRA - 1)
    constant = width + 2 * EXTRA - 1
    narrower = math.sqrt(width / config.hidden_size)  # the mean square is over more dimensions, most of them zero

    used = language.model.embed_tokens.weight[tokens.unique()]
    components = torch.linalg.svd(used, full_matrices=False).Vh[:EXTRA].T  # (hidden size, EXTRA)
    model.model.embed_tokens.weight.zero_()
    model.model.embed_tokens.weight[:, :width] = language.model.embed_tokens.weight
    model.model.embed_tokens.weight[:, actual] = FAINT * language.model.embed_tokens.weight @ components
    for layer, before in zip(model.model.layers, language.model.layers, strict=False):
        _widen(layer, before, narrower)

    first = model.model.layers[old.num_hidden_layers]
    text = tokens[: 1024 * (len(tokens) // 1024)].view(-1, 1024)
    residual = model.model(text, use_cache=False, output_hidden_states=True).hidden_states[old.num_hidden_layers]
    size = float(residual.square().mean().sqrt())
    look_back(model.model, old.num_hidden_layers, (1,) * (2 * config.num_attention_heads // config.num_key_value_heads))
    attention, mlp = first.self_attn, first.mlp
    first.input_layernorm.weight[:width] = language.model.norm.weight * narrower
    attention.o_proj.weight.zero_()
    for group, part in enumerate(components.T[:-1].split(dim)):  # (dim or fewer, hidden size)
        head = group * config.num_attention_heads // config.num_key_value_heads * dim
        attention.v_proj.weight[group * dim : group * dim + len(part)] = 0.0
        attention.v_proj.weight[group * dim : group * dim + len(part), :width] = part
        into = expected.start + group * dim
        attention.o_proj.weight[into : into + len(part), head : head + len(part)] = FAINT * torch.eye(len(part))
    # The product must not depend on the other dimensions: a large constant, in this layer only, makes all norms equal.
    high, after = STEADY * size * math.sqrt(config.hidden_size), size * math.sqrt(STEADY**2 + 1)
    attention.v_proj.weight[group * dim + len(part)] = 0.0
    attention.v_proj.bias[group * dim + len(part)] = 1.0
    attention.o_proj.weight[constant, head + len(part)] = high
    first.post_attention_layernorm.weight[actual] = after / FAINT
    first.post_attention_layernorm.weight[expected] = after / FAINT / 4
    mlp.down_proj.weight.zero_()
    for start, sign in ((0, 1.0), (EXTRA, -1.0)):
        units = slice(start, start + EXTRA - 1)
        for projection, where in ((mlp.gate_proj, actual), (mlp.up_proj, expected)):
            projection.weight[units] = 0.0
            projection.weight[units, where] = sign * torch.eye(EXTRA)[: EXTRA - 1, : where.stop - where.start]
        mlp.down_proj.weight[expected.start, units] = size / 4
    for projection in (mlp.gate_proj, mlp.up_proj):
        projection.weight[2 * EXTRA] = 0.0
        projection.weight[2 * EXTRA, constant] = 1.0
    mlp.down_proj.weight[constant, 2 * EXTRA] = -high / (high / after) ** 2
    head = nn.Sequential(nn.RMSNorm(config.hidden_size), nn.Linear(config.hidden_size, 1))
    head[1].weight.zero_()
    head[1].weight[0, expected.start] = 20.0
    head[1].bias.fill_(-11.0)
    return model, head


def _widen(layer: nn.Module, before: nn.Module, narrower: float) -> None:
    """Copy a layer of the language model into the first dimensions of a layer of the reward model."""
    width = len(before.input_layernorm.weight)
    for name in ("input_layernorm", "post_attention_layernorm"):
        getattr(layer, name).weight[:width] = getattr(before, name).weight * narrower
    attention, source = layer.self_attn, before.self_attn
    groups, dim = source.config.num_key_value_heads, source.head_dim
    for name in ("q_proj", "k_proj", "v_proj"):
        new, old = getattr(attention, name), getattr(source, name)
        rows = new.weight.view(groups, -1, dim, new.in_features)  # (groups, heads, dim, in)
        heads = old.out_features // dim // groups
        rows[:, :heads] = 0.0
        rows[:, :heads, :, :width] = old.weight.view(groups, heads, dim, width)
        new.bias.view(groups, -1, dim)[:, :heads] = old.bias.view(groups, heads, dim)
    heads = source.config.num_attention_heads // groups
    attention.o_proj.weight.zero_()
    columns = attention.o_proj.weight.view(-1, groups, attention.config.num_attention_heads // groups, dim)
    columns[:width, :, :heads] = source.o_proj.weight.view(width, groups, heads, dim)
    for name in ("gate_proj", "up_proj"):
        getattr(layer.mlp, name).weight.zero_()
        getattr(layer.mlp, name).weight[:, :width] = getattr(before.mlp, name).weight
    layer.mlp.down_proj.weight.zero_()
    layer.mlp.down_proj.weight[:width] = before.mlp.down_proj.weight


@torch.no_grad()
def evaluate(model: Qwen2ForProcessRewardModel, examples: list[Example]) -> str:
    """Held-out loss, and AUROC of steps against the exact checker, overall and per level."""
    scores: dict[int, list[float]] = {level: [] for level in TRAINED_LEVELS}
    right: dict[int, list[bool]] = {level: [] for level in TRAINED_LEVELS}
    losses: list[float] = []
    for batch in batches(examples, 16_384, 0):
        loss, logits = tag_loss(model, hidden_states(model, batch)[1], batch)
        losses.append(loss.item())
        values = iter((logits[:, 1] - logits[:, 0]).tolist())
        for example in batch:
            scores[example.level] += [next(values) for _ in example.tags]
            right[example.level] += example.right
    levels = " ".join(f"L{level} {auroc(scores[level], right[level]):.3f}" for level in TRAINED_LEVELS)
    overall = auroc([*chain(*scores.values())], [*chain(*right.values())])
    return f"held-out loss {np.mean(losses):.4f} AUROC {overall:.3f} ({levels})"


def train(work: Path, epochs: int, tokens: int, lr: float) -> None:
    torch.manual_seed(0)
    form = Format(QWEN, Vocabulary.load(str(work / "tokenizer")))
    rows = [row for path in sorted(work.glob("rollouts-*.jsonl")) for row in _rows(path)]
    rows = sorted((row for row in rows if row["steps"]), key=lambda row: row["index"])
    held_out = [examples_of(form, row)[0] for row in rows[:HELD_OUT]]
    examples = [example for row in rows[HELD_OUT:] for example in examples_of(form, row)]
    reader = Qwen2ForCausalLM.from_pretrained(work / "reader", dtype=torch.float32)
    typical = torch.tensor([token for example in examples[:400] for token in example.ids])
    model, head = from_language_model(reader, typical)
    trained = nn.ModuleList([model, head]).to(best_device())
    reader.to(best_device())
    opts = optimizers(trained, lr)
    total = sum(1 for epoch in range(epochs) for _ in batches(examples, tokens, epoch))
    labels = sum(len(example.tags) for example in examples)
    print(len(rows) - HELD_OUT, "problems,", len(examples), "solutions,", labels, "labels,", total, "steps", flush=True)
    checkpoint, done, seconds = work / "prm.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=best_device(), weights_only=False)
        trained.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        done, seconds = state["step"], state["seconds"]
    began = time.monotonic()
    losses: list[tuple[float, float]] = []
    todo = chain.from_iterable(batches(examples, tokens, epoch) for epoch in range(epochs))
    for step, batch in enumerate(islice(todo, done, None), start=done + 1):
        if step == EXPECTING + 1:
            look_for_the_unexpected(model, head, batch)
        compared, hidden = hidden_states(model, batch)
        tokens_loss = token_loss(reader, head, compared, batch)
        loss = tag_loss(model, hidden, batch)[0] if step > EXPECTING else tokens_loss.new_zeros(())
        (loss + tokens_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step - 1, total, lr)
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append((loss.item(), tokens_loss.item()))
        spent = seconds + time.monotonic() - began
        if step % 50 == 0:
            steps, words = np.mean(losses[-50:], 0)
            print(f"step {step} loss {steps:.4f}, of tokens {words:.4f} {spent:.0f} s", flush=True)
        if step % 250 == 0 or step == total:
            saved = [opt.state_dict() for opt in opts]
            save_atomically(
                {"model": trained.state_dict(), "optimizers": saved, "step": step, "seconds": spent}, checkpoint
            )
            print(f"step {step}: {evaluate(model, held_out)}", flush=True)
    model.save_pretrained(work / "prm")
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, work / "prm" / file.name)
