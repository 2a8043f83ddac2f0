"""The code that both trainings share: batches, optimisers, their schedule, checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

CONTEXT = 1024


def best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(work: Path) -> Tokenizer:
    return Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))


@dataclass(frozen=True)
class Batch:
    ids: torch.Tensor  # (B, L)
    labels: torch.Tensor  # (B, L), the token to predict at each place, or IGNORED


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, norms, biases (and a reward head)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    matrix_ids = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in matrix_ids]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, total: int, peak: float) -> float:
    """Warm up over 100 steps, fall linearly to zero."""
    return peak * min((step + 1) / 100, (total - step) / total)


def choose_attention(model: PreTrainedModel, length: int) -> None:
    """Choose the faster attention for rows of this length. On one core, a forward and backward pass of 8,192 tokens
    takes 1.0 s with eager attention and 1.3 s with sdpa in rows of 128, 4.1 s and 1.7 s in rows of 576."""
    model.set_attn_implementation("eager" if length < 256 else "sdpa")


def save_atomically(state: object, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
