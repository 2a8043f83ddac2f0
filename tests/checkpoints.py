"""Tiny randomly initialised checkpoints, in the real layouts of the families that the local engine runs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from motes import bundled
from motes.models.local import LocalLanguageModel
from motes.rewards.layouts import Qwen2ForProcessRewardModel
from motes.rewards.prm import LocalPRM
from motes.vocabulary import Vocabulary

TOKENIZER = str(bundled.path("lm"))
END, TAG = (AutoTokenizer.from_pretrained(TOKENIZER).convert_tokens_to_ids(t) for t in ("<|im_end|>", "<extra_0>"))

SMALL = {
    "vocab_size": 576,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
}


def vocabulary() -> Vocabulary:
    return Vocabulary.load(TOKENIZER)


def random_language_model(family: str = "qwen2", seed: int = 0, **changes: object) -> PreTrainedModel:
    """Large initial weights, so that what it says depends strongly on everything it has seen."""
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    return model_class(config_class(**{**SMALL, **own, **changes}, initializer_range=0.2)).eval()


def local(family: str = "qwen2", **options: object) -> LocalLanguageModel:
    return LocalLanguageModel(random_language_model(family), vocabulary(), **options)


def random_prm(seed: int = 0, **changes: object) -> Qwen2ForProcessRewardModel:
    torch.manual_seed(seed)
    return Qwen2ForProcessRewardModel(Qwen2Config(**{**SMALL, **changes}, initializer_range=0.2)).eval()


def local_prm(**options: object) -> LocalPRM:
    return LocalPRM(random_prm(), vocabulary(), **options)


def save(model: PreTrainedModel, folder: Path) -> str:
    """A folder as users have them."""
    model.save_pretrained(folder)
    vocabulary().tokenizer.save_pretrained(folder)
    return str(folder)
