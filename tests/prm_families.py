"""Tiny checkpoints of every family of process reward models in its real layout, and its published way to be scored.

What is read, and where, is written down here from what each family's authors published, over whole texts and plain
transformers, so that it shares nothing with the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    logging,
)

from checkpoints import SMALL, random_prm, save

logging.disable_progress_bar()  # tests look at what is printed
logging.set_verbosity_error()

CORPUS = [
    "Ben owns 7 pears.\nRosa has 5 more pears than Ben.\n\nHow many pears does Rosa have?\n",
    "Step 1: So 7+5=12 and Rosa has 12 pears.\nStep 2: The answer is \\boxed{12}, the answer is 12.",
    "The first - the second + the third. \n\n\n\nThe answer is 12 + 3 - 4? \n\nThe answer is 12. \n\n\n\n",
] * 4
TAGGED = ["So 7+5=12 and Rosa has 12 pears. ки\nStep 2: The answer is 12. ки + - + -"] * 4
WIDE = {"initializer_range": 0.2, "vocab_size": 640}
"""Large initial weights, so that a score depends strongly on everything that was read."""


# Tokenizers, each of its family's kind

LLAMA_3 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
LLAMA_3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_3_CHAT = """\
{{- bos_token }}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}
{%- if messages[0].role == 'system' %}
    {{- messages[0].content | trim }}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""


def byte_level(pattern: str, special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def llama_3() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(LLAMA_3, LLAMA_3_TOKENS)
    begin = LLAMA_3_TOKENS[0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token="<|eot_id|>", chat_template=LLAMA_3_CHAT
    )


def qwen() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(LLAMA_3.replace("{1,3}", ""), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|im_end|>")


def mistral() -> PreTrainedTokenizerFast:
    """Sentencepiece's kind, with a space before every text."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(CORPUS + TAGGED, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    words = [word for word in learnt["vocab"] if word != "\n"]
    special = ["<unk>", "<s>", "</s>"]
    vocab = {word: i for i, word in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    merges = [tuple(pair) for pair in learnt["merges"] if "\n" not in "".join(pair)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


# Checkpoints, in the layout that each family is published in


def language_model(model_class: Any, config_class: Any, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return model_class(config_class(**{**SMALL, **WIDE, **changes})).eval()


def write_qwen(folder: Path) -> None:
    save(random_prm(), folder)
    remote_code(folder, "AutoModel", "Qwen2ForProcessRewardModel")


def write_rlhflow(folder: Path) -> None:
    language_model(LlamaForCausalLM, LlamaConfig).save_pretrained(folder)
    llama_3().save_pretrained(folder)


def write_math_shepherd(folder: Path) -> None:
    """Its weights are pickled."""
    model = language_model(MistralForCausalLM, MistralConfig, sliding_window=4096)
    model.config.architectures = ["MistralForCausalLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    mistral().save_pretrained(folder)


def write_skywork(folder: Path) -> None:
    """A language model with a value head beside its own."""
    model = language_model(Qwen2ForCausalLM, Qwen2Config)
    weight, bias = torch.randn(1, SMALL["hidden_size"]) / 4, torch.randn(1)
    model.config.architectures = ["Qwen2ForPrmModel"]
    model.config.save_pretrained(folder)
    tensors = {**model.state_dict(), "v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    qwen().save_pretrained(folder)
    remote_code(folder, "AutoModel", "Qwen2ForPrmModel")


def write_versaprm(folder: Path) -> None:
    language_model(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True).save_pretrained(folder)
    llama_3().save_pretrained(folder)


def remote_code(folder: Path, auto_class: str, name: str) -> None:
    """Code beside the weights, as published, that must never run."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {auto_class: f"modeling_theirs.{name}"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_theirs.py").write_text('raise SystemExit("remote code ran")\n')


# What is published: the tokens of a whole answer, where its steps are scored, and how


def read_qwen(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    text = (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{'<extra_0>'.join(steps)}<extra_0>"
    )
    return at_every(tokenizer.convert_tokens_to_ids("<extra_0>"), tokenizer.encode(text))


def read_rlhflow(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """The conversation so far is read anew for each step, at the third token from its end."""
    conversation: list[dict[str, str]] = []
    at = []
    ids: list[int] = []
    for i, step in enumerate(steps):
        conversation += [
            {"role": "user", "content": f"{question} {step}" if i == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
        ids = tokenizer.apply_chat_template(conversation, return_dict=False)
        at.append(len(ids) - 3)
    return ids, at


def read_math_shepherd(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    text = "\n".join(f"Step {i}: {step} ки" for i, step in enumerate(steps, 1))
    return at_every(tokenizer.encode("ки")[-1], tokenizer.encode(f"{question} {text}"))


def read_skywork(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    ids, at = tokenizer.encode(f"{tokenizer.bos_token}{question}\n"), []
    for step in steps:
        for line in step.split("\n"):
            ids += [*tokenizer.encode(line), tokenizer.encode("\n")[-1]]
        at.append(len(ids) - 1)
    return ids, at


def read_versaprm(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    text = f"{question} \n\n" + "".join(f"{step} \n\n\n\n" for step in steps)
    (tag,) = tokenizer.encode(" \n\n\n\n", add_special_tokens=False)
    return at_every(tag, tokenizer.encode(text))


def at_every(tag: int, ids: list[int]) -> tuple[list[int], list[int]]:
    return ids, [i for i, token in enumerate(ids) if token == tag]


@torch.no_grad()
def pair(folder: Path, tokenizer: Any, ids: list[int]) -> Tensor:
    body = Qwen2Model.from_pretrained(folder)
    hidden = body(torch.tensor([ids])).last_hidden_state[0]
    w = load_file(folder / "model.safetensors")
    logits = (hidden @ w["score.0.weight"].T + w["score.0.bias"]).relu() @ w["score.2.weight"].T + w["score.2.bias"]
    return logits.softmax(-1)[:, 1]


@torch.no_grad()
def value(folder: Path, tokenizer: Any, ids: list[int]) -> Tensor:
    body = Qwen2ForCausalLM.from_pretrained(folder)
    hidden = body(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    w = load_file(folder / "model.safetensors")
    return (hidden @ w["v_head.summary.weight"].T + w["v_head.summary.bias"])[:, 0].sigmoid()


def next_token(verdicts: str) -> Callable[[Path, Any, list[int]], Tensor]:
    """Of `verdicts`, what the last two tokens are: good, bad."""

    @torch.no_grad()
    def score(folder: Path, tokenizer: Any, ids: list[int]) -> Tensor:
        candidates = [tokenizer.encode(verdict)[-1] for verdict in verdicts.split(",")]
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0]
        return logits[:, candidates].softmax(-1)[:, 0]

    return score


@dataclass(frozen=True)
class Published:
    """A family as its authors published it.

    Attributes:
        checkpoint: what it is called.
        write: makes a small one in a folder.
        read: (tokenizer, question, steps) → the tokens of the whole answer, and the position of each step's score.
        score: (folder, tokenizer, tokens) → (n,) what the score would be at each position.
    """

    checkpoint: str
    write: Callable[[Path], None]
    read: Callable[[Any, str, Sequence[str]], tuple[list[int], list[int]]]
    score: Callable[[Path, Any, list[int]], Tensor]

    def scores(self, folder: Path, question: str, steps: Sequence[str], shift: int = 0) -> list[float]:
        """Of each step; `shift` positions from where they belong."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids, at = self.read(tokenizer, question, steps)
        assert len(at) == len(steps)
        everywhere = self.score(folder, tokenizer, ids)
        return [everywhere[i + shift].item() for i in at if i + shift < len(ids)]


PUBLISHED = {
    "qwen": Published("Qwen2.5-Math-PRM-7B", write_qwen, read_qwen, pair),
    "rlhflow": Published("Llama3.1-8B-PRM-Deepseek-Data", write_rlhflow, read_rlhflow, next_token("+,-")),
    "math-shepherd": Published(
        "math-shepherd-mistral-7b-prm", write_math_shepherd, read_math_shepherd, next_token("+,-")
    ),
    "skywork": Published("Skywork-o1-Open-PRM-Qwen-2.5-1.5B", write_skywork, read_skywork, value),
    "versaprm": Published("VersaPRM", write_versaprm, read_versaprm, next_token("+,-")),
}
