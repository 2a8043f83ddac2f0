"""Tokenizer and language model."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from motes import Problem
from motes.rewards.families import QWEN
from motes.rewards.format import Format
from motes.tasks import arithmetic
from motes.tasks.arithmetic import LEVELS, LONG_LEVELS, MORE_NAMES, NAMES, Computation, Fact, RelationKind, Story
from motes.vocabulary import Vocabulary
from tiny.common import (
    CONTEXT,
    Batch,
    best_device,
    choose_attention,
    learning_rate,
    load_tokenizer,
    optimizers,
    round_up,
    save_atomically,
)

# Qwen2's own pre-tokenizer: loaders that recognise `model_type: qwen2` use this pattern, so it must be this one. It
# splits numbers into single digits and lets "." and "\n\n" share a token, as the real models' vocabularies do.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 576  # the task's own words saturate below
DETOURS = 0.15
TRAINED_LEVELS = tuple(range(1, LONG_LEVELS[-1] + 1))


def chat_prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def build_tokenizer(work: Path) -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    texts = []
    for _ in range(20_000):
        story = arithmetic.generate(rng.choice(TRAINED_LEVELS), "train", rng)
        texts.append(f"system\n{QWEN.system}\nuser\n{story.question}\nassistant\n{story.solution}")
        texts.append("How many does each have?")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(work / "tokenizer")
    sample = tokenizer.encode(chat_prompt(story.question) + story.solution)
    print(tokenizer.get_vocab_size(), "tokens;", sample.tokens)


def model_config(tokenizer: Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )


@torch.no_grad()
def look_back(model: Qwen2Model, layer: int, offsets: Sequence[int]) -> None:
    """Initialise the first heads of a layer as heads that look so many tokens back: queries and keys are constant, and
    only the rotation distinguishes places."""
    config, attention = model.config, model.layers[layer].self_attn
    dim = config.hidden_size // config.num_attention_heads
    groups = config.num_attention_heads // config.num_key_value_heads
    pairs, strength = 6, 6.0  # number of rotations, the fastest ones, and the sharpness of their choice
    frequencies = model.rotary_emb.inv_freq[:pairs]
    for head, offset in enumerate(offsets):
        q, k = slice(head * dim, (head + 1) * dim), slice(head // groups * dim, (head // groups + 1) * dim)
        attention.q_proj.weight[q] *= 0.1
        attention.k_proj.weight[k] *= 0.1
        attention.k_proj.bias[k] = torch.cat([torch.full((pairs,), strength), torch.zeros(dim - pairs)])
        query = torch.zeros(2, dim // 2)
        query[0, :pairs] = strength * torch.cos(-offset * frequencies)
        query[1, :pairs] = strength * torch.sin(-offset * frequencies)
        attention.q_proj.bias[q] = query.flatten()


@torch.no_grad()
def initialize(model: Qwen2ForCausalLM) -> None:
    """Initialise the model such that attention can already look things up (mimetic initialisation, arXiv 2305.09828).

    To assign numbers to their owners, a model needs two attention layers that are useful only together: one carries a
    name to the number a few tokens later, the other matches names. From random weights the pair does not form in tens
    of millions of tokens: the model learns which numbers occur, and guesses. So four heads of the first layer are
    initialised to look 1, 2, 3 and 4 tokens back and write what they see to the same place; and in the other layers
    queries are initialised equal to keys, so that like attends to like. Then 200 steps suffice. All weights are
    trained.
    """
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    groups = config.num_attention_heads // config.num_key_value_heads
    first, *others = (layer.self_attn for layer in model.model.layers)
    offsets = (1, 2, 3, 4)
    look_back(model.model, 0, offsets)
    for head in range(len(offsets)):
        q, k = slice(head * dim, (head + 1) * dim), slice(head // groups * dim, (head // groups + 1) * dim)
        first.v_proj.weight[k] = first.v_proj.weight[:dim]
        first.o_proj.weight[:, q] = first.o_proj.weight[:, :dim]
    for attention in others:
        keys = torch.randn_like(attention.k_proj.weight) * 0.7 * config.hidden_size**-0.5
        attention.k_proj.weight.copy_(keys)
        queries = keys.view(-1, dim, config.hidden_size).repeat_interleave(groups, 0).flatten(0, 1)
        attention.q_proj.weight.copy_(queries + 0.02 * torch.randn_like(queries))


IGNORED = -100
Tokens = tuple[list[int], list[int]]
"""A text's tokens, and its labels: at each place the same token, or `IGNORED` if it is not to be predicted."""


def after(tokenizer: Tokenizer, question: str, text: str) -> Tokens:
    """The prompt for a question, followed by a text."""
    prompt, rest = (tokenizer.encode(part).ids for part in (chat_prompt(question), text + "<|im_end|>"))
    return prompt + rest, [IGNORED] * len(prompt) + rest


def encode(tokenizer: Tokenizer, story: Story, solution: str) -> Tokens:
    return after(tokenizer, story.question, solution)


class Slips:
    """Arithmetic with human mistakes, such as a forgotten carry: (left, operator, right) → result.

    The carry of a sum or product, the borrow of a difference, or the remainder of a division in the tens is forgotten
    with a probability that depends on the digits: some sums are hard, and everybody who gets them wrong makes the same
    mistake (Brown and Burton, "Diagnostic models for procedural bugs in basic mathematical skills", 1978). In addition,
    any result may be off by one. At temperature 0.8, at which the model is sampled, the probabilities below become 0.8,
    0.29 and 0.09.
    """

    HARD, EASY = 0.75, 0.33
    OFF_BY_ONE = 0.14

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def __call__(self, left: int, operator: str, right: int) -> int:
        result, forgotten = self._results(left, operator, right)
        hard = zlib.crc32(f"{operator}{left % 10},{right % 10}".encode()) % 4 == 0
        if forgotten not in (0, result) and self.rng.random() < (self.HARD if hard else self.EASY):
            return forgotten
        if self.rng.random() < self.OFF_BY_ONE:
            return max(1, result + self.rng.choice((-1, 1)))
        return result

    @staticmethod
    def _results(left: int, operator: str, right: int) -> tuple[int, int]:
        """The result, rounded down and at least 1 in case of wrong operands; and the one with the carry forgotten."""
        tens, units = divmod(left, 10)
        match operator:
            case "+":
                return left + right, left + right - (10 if units + right % 10 >= 10 else 0)
            case "-":
                result = max(1, left - right)
                return result, result + (10 if units < right % 10 and left > right else 0)
            case "*":
                return left * right, left * right - (units * right // 10 * 10 if tens else 0)
            case _:
                return max(1, left // right), tens // right * 10 + units // right


def example(
    tokenizer: Tokenizer, form: Format | None, level: int, rng: random.Random, compute: Computation | None = None
) -> Tokens:
    """A training example. Some solutions derive more than they need, so that the model can recover from a detour.

    Args:
        form: the format in which a reward model reads; None: the chat format.
    """
    story = arithmetic.generate(level, "train", rng)
    steps = story.work_out(order_of(story, rng), compute)
    if form is None:
        return encode(tokenizer, story, "\n\n".join(steps))
    ids = list(form.prompt(Problem(story.question)))
    labels = [IGNORED] * len(ids)
    for number, step in enumerate(steps, start=1):
        lead, words, tag = read_step(form, step, number)
        ids += [*lead, *words, tag]
        labels += [*[IGNORED] * len(lead), *words, IGNORED]
    return ids, labels


def read_step(form: Format, step: str, number: int) -> tuple[list[int], list[int], int]:
    """A step as a reward model reads it: the tokens before its text, those of its text, and the tag."""
    tokens = form.step(step, number)
    lead = len(form.step("", number)) - 1
    return tokens[:lead], tokens[lead:-1], tokens[-1]


def order_of(story: Story, rng: random.Random, detours: float = DETOURS) -> Sequence[Fact]:
    """The facts in the order of derivation: as in the story if it is a long one, otherwise with detours."""
    return story.detour(rng, detours) if story.level <= LEVELS[-1] else story.in_order


def collate(rows: list[Tokens], length: int) -> Batch:
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (tokens, predicted) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, : len(tokens) - 1] = torch.tensor(predicted[1:])
    return Batch(ids, labels)


def recitation(tokenizer: Tokenizer, rng: random.Random, people: int, relations: float = 0.6) -> Tokens:
    """An exercise: recite, for several people in any order, the number or the relation that the question states for
    each. A problem needs the owner of a number, or a relation between people, only a few times; here every fact is
    needed.

    Args:
        relations: the share of exercises about relations; the others are about numbers.
    """
    names = rng.sample(NAMES if people <= 7 else [*NAMES, *MORE_NAMES], rng.randint(2, people))
    tell_relations = rng.random() < relations
    owning = rng.randint(1, len(names) - 1) if tell_relations else rng.randint(2, len(names))
    owners = [Fact(name, "base", rng.randint(2, 20)) for name in names[:owning]]
    others = [_any_relation(name, rng.sample(names[:i], min(2, i)), rng) for i, name in enumerate(names) if i >= owning]
    facts = " ".join(fact.sentence for fact in rng.sample(owners + others, len(names)))
    question = f"Some friends collect {rng.choice(arithmetic.ITEMS)}. {facts} How many does each have?"
    if tell_relations:
        answer = "\n\n".join(f"Now {fact.sentence}" for fact in rng.sample(others, len(others)))
    else:
        numbers = " and".join(f" {fact.person}'s {fact.number}" for fact in rng.sample(owners, len(owners)))
        answer = f"Together{numbers}."
    return after(tokenizer, question, answer)


def _any_relation(person: str, sources: list[str], rng: random.Random) -> Fact:
    """A random relation of a person to others. Its result does not matter."""
    kinds: tuple[RelationKind, ...] = (
        "more",
        "fewer",
        "times",
        "half",
        "share",
        *(("sum",) if len(sources) > 1 else ()),
    )
    kind = rng.choice(kinds)
    number = {"more": (2, 12), "fewer": (2, 12), "times": (2, 4), "share": (3, 5)}.get(kind, (0, 0))
    return Fact(person, kind, rng.randint(*number), tuple(sources if kind == "sum" else sources[:1]))


NUMBERS, RECITING, WIDENING = 300, 600, 300
"""Numbers of steps: with recitations of numbers only; with recitations only; and then until all levels are included."""


def curriculum(step: int) -> list[float]:
    """Weights of recitations and of levels 1 … 14: only recitations until they are learnt, first of numbers; then
    single operations, then all levels."""
    if step < RECITING:
        return [1.0, *[0.0] * len(TRAINED_LEVELS)]
    ramp = min(1.0, (step - RECITING) / WIDENING)
    return [(1 - ramp) * math.exp(-i) + ramp * weight for i, weight in enumerate((2.0, *[1.0] * len(TRAINED_LEVELS)))]


Role = Literal["completer", "lm", "reader"]
"""The completer is trained from scratch, the others from the completer: the bundled language model learns slips; the
reader, from which the reward model is initialised, learns the format in which reward models read."""


def training_batches(tokenizer: Tokenizer, form: Format | None, tokens: int, step: int, role: Role) -> Iterator[Batch]:
    """Endless batches of about `tokens` tokens, sorted by length within a window. A window is seeded by its step."""
    while True:
        rng = random.Random(f"{role}/{step}")
        compute = Slips(rng) if role == "lm" else None
        relations = 0.6 if step >= NUMBERS else 0.0
        if step < NUMBERS // 2:
            people = 4
        elif step < RECITING:
            people = 7
        else:
            people = 16
        kinds = rng.choices(
            (None, *TRAINED_LEVELS),
            curriculum(step if role == "completer" else RECITING + WIDENING),
            k=32 * tokens // 256,
        )
        rows = [
            recitation(tokenizer, rng, people, relations)
            if level is None
            else example(tokenizer, form, level, rng, compute)
            for level in kinds
        ]
        rows.sort(key=lambda row: len(row[0]))
        batches: list[Batch] = []
        while rows:
            length = round_up(len(rows[-1][0]), 32)
            size = tokens // length
            batches.append(collate(rows[-size:], length))
            is_full = len(rows) >= size
            rows = rows[:-size]
            if not is_full:
                batches.pop()  # a last, short batch would weigh its few rows as much as a full one
        rng.shuffle(batches)
        yield from batches
        step += len(batches)


@torch.no_grad()
def validate(model: Qwen2ForCausalLM, tokenizer: Tokenizer) -> str:
    """The share of digits that are recited correctly; for each level, the loss per token, and the probability that a
    sample at temperature 0.8 / greedy decoding follows the reference."""
    rng = random.Random(0)
    batch = collate([recitation(tokenizer, rng, 16) for _ in range(64)], CONTEXT // 2)
    digits = torch.isin(batch.labels, torch.tensor([tokenizer.token_to_id(digit) for digit in "0123456789"]))
    recited = (model(batch.ids.to(model.device)).logits.argmax(-1).cpu() == batch.labels)[digits].float().mean().item()
    out = [f"recited {recited:.1%}"]
    for level in (*LEVELS, *LONG_LEVELS[::2]):
        stream = arithmetic.stories(level, "validation", 0)
        rows = [
            encode(tokenizer, story, "\n\n".join(story.work_out(order_of(story, rng, 0.0))))
            for story in islice(stream, 64)
        ]
        batch = collate(rows, round_up(max(len(row[0]) for row in rows), 32))
        logits = model(batch.ids.to(model.device)).logits.float().cpu()
        used = batch.labels != IGNORED
        target = batch.labels.clamp_min(0).unsqueeze(-1)
        logp = logits.log_softmax(-1).gather(-1, target).squeeze(-1)
        sampled = (logits / 0.8).log_softmax(-1).gather(-1, target).squeeze(-1)
        loss = -logp[used].mean().item()
        chance = (sampled * used).sum(-1).exp().mean().item()
        greedy = ((logits.argmax(-1) == batch.labels) | ~used).all(-1).float().mean().item()
        out.append(f"L{level} {loss:.3f} {chance:.0%}/{greedy:.0%}")
    return "  ".join(out)


def train(work: Path, role: Role, total: int, tokens: int, lr: float) -> None:
    """Train a language model, or resume its training.

    Args:
        total: number of steps.
        tokens: number of tokens per step.
    """
    torch.manual_seed(0)
    tokenizer = load_tokenizer(work)
    form = Format(QWEN, Vocabulary.load(str(work / "tokenizer"))) if role == "reader" else None
    if role != "completer":
        model = Qwen2ForCausalLM.from_pretrained(work / "completer", dtype=torch.float32)
    else:
        model = Qwen2ForCausalLM(model_config(tokenizer))
        initialize(model)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    model.to(best_device())
    opts = optimizers(model, lr)
    checkpoint = work / f"{role}.pt"
    step = 0
    seconds = 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=best_device(), weights_only=False)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        step, seconds = state["step"], state["seconds"]
        print("continuing at step", step, flush=True)

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        choose_attention(model, ids.shape[1])
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(ids.to(model.device), use_cache=False).logits
        return cross_entropy(logits.float().flatten(0, 1), labels.to(model.device).flatten(), ignore_index=IGNORED)

    batches = training_batches(tokenizer, form, tokens, step, role)
    began = time.monotonic()
    window: list[float] = []
    done_tokens = 0
    while step < total:
        batch = next(batches)
        loss = loss_of(batch.ids, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step, total, lr)
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        window.append(loss.item())
        done_tokens += batch.ids.numel()
        if step % 50 == 0:
            elapsed = time.monotonic() - began
            mean = sum(window) / len(window)
            print(
                f"step {step} loss {mean:.4f} {done_tokens / elapsed:.0f} tok/s {seconds + elapsed:.0f} s", flush=True
            )
            window.clear()
        if step % 250 == 0 or step == total:
            now = time.monotonic()
            saved = [opt.state_dict() for opt in opts]
            state = {"model": model.state_dict(), "optimizers": saved, "step": step, "seconds": seconds + now - began}
            save_atomically(state, checkpoint)
            print(f"step {step}: {validate(model, tokenizer)}", flush=True)
    model.save_pretrained(work / role)
    for file in (work / "tokenizer").iterdir():
        shutil.copy(file, work / role / file.name)
    spent = round(seconds + time.monotonic() - began)
    (work / role / "training.json").write_text(json.dumps({"steps": step, "tokens_a_step": tokens, "seconds": spent}))
