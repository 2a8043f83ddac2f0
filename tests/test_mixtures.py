"""What a token is multiplied by in mixtures of experts: the experts that it is sent to, and what all tokens read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from motes.kv.engine import _count_parameters

WIDTH, INNER, LAYERS, ACTIVE = 16, 24, 3, 2
SIZES = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": ACTIVE,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
DEEPSEEK = {"moe_intermediate_size": INNER, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
MIXTURES: dict[str, tuple[Any, Any, str, dict[str, int]]] = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, "num_local_experts", {}),
    "qwen2": (Qwen2MoeConfig, Qwen2MoeForCausalLM, "num_experts", {"moe_intermediate_size": INNER}),
    "qwen3": (Qwen3MoeConfig, Qwen3MoeForCausalLM, "num_experts", {"moe_intermediate_size": INNER, "head_dim": 8}),
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, "num_experts", {}),
    "phi": (PhimoeConfig, PhimoeForCausalLM, "num_local_experts", {}),
    "gpt-oss": (GptOssConfig, GptOssForCausalLM, "num_local_experts", {"head_dim": 8}),
    "deepseek-v2": (DeepseekV2Config, DeepseekV2ForCausalLM, "n_routed_experts", DEEPSEEK),
    "deepseek-v3": (DeepseekV3Config, DeepseekV3ForCausalLM, "n_routed_experts", DEEPSEEK),
}


def mixture(name: str, experts: int) -> Any:
    config, model, field, more = MIXTURES[name]
    with torch.device("meta"):
        return model(config(**SIZES, **more, **{field: experts}))


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_that_a_token_is_not_sent_to_cost_nothing(name: str):
    """A model of more experts costs what one of the active experts alone costs, and the rows of its routers."""
    few, many = mixture(name, ACTIVE), mixture(name, 10)
    routed = LAYERS - (1 if name.startswith("deepseek") else 0)
    row = WIDTH + (1 if name == "gpt-oss" else 0)
    assert _count_parameters(many) == _count_parameters(few) + routed * (10 - ACTIVE) * row
    all_of_few = sum(p.numel() for p in few.parameters()) - few.get_input_embeddings().weight.numel()
    assert _count_parameters(few) == all_of_few
