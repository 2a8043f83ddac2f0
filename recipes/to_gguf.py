"""Convert a checkpoint with a byte-level BPE, such as the bundled language model, to GGUF for llama.cpp.

    python recipes/to_gguf.py src/motes/bundled/tiny-lm tiny.gguf           # folder, file
    python recipes/to_gguf.py src/motes/bundled/tiny-lm tiny.gguf Q8_0      # … and a quantisation

Takes Llama, Mistral, Qwen2 and Qwen3 with one file of weights; for others, use llama.cpp's own converter. Needs the
packages gguf and safetensors (extra `gguf`). Weights are written as float32, so that llama.cpp computes the same as
other engines, or in another type that the package gguf can write (F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, …).
2026-11-24: the bundled model, 0.3 s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""By the model_type of a config.json."""


def convert(source: Path, target: Path, quantisation: str = "F32", rule: str = "qwen2") -> None:
    """Convert a folder to a file.

    Args:
        quantisation: the type of the matrices whose rows it can divide into blocks; all other weights are float32.
        rule: llama.cpp's name for the rule by which the tokenizer cuts texts into words.
    """
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] not in ARCHITECTURES:
        raise SystemExit(f"{source} is a {config['model_type']}: use llama.cpp's own converter")
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(source.name)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokens(writer, source, config, rule)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, values in load_file(source / "model.safetensors").items():
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise SystemExit(f"the format has no place for {name}")
        if architecture is gguf.MODEL_ARCH.LLAMA:  # whose rotary embedding pairs neighbours, not halves
            values = _interleave(values, renamed, heads, config["num_key_value_heads"])
        _add_tensor(writer, renamed, values.astype(np.float32), gguf.GGMLQuantizationType[quantisation])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(values: np.ndarray, name: str, heads: int, key_heads: int) -> np.ndarray:
    """The rows of queries and keys in the order of llama.cpp: within a head, those of both halves by turns."""
    count = {"attn_q": heads, "attn_k": key_heads}.get(name.split(".")[-2])
    if count is None:
        return values
    return values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if kind is gguf.GGMLQuantizationType.F32 or values.ndim < 2 or values.shape[-1] % block:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _add_tokens(writer: gguf.GGUFWriter, source: Path, config: dict, rule: str) -> None:
    """Write the tokenizer: its tokens, their types, its merges and the chat template."""
    spec = json.loads((source / "tokenizer.json").read_text())
    ordinary = {i: token for token, i in spec["model"]["vocab"].items()}
    added = {token["id"]: token for token in spec["added_tokens"]}
    tokens: list[str] = []
    types: list[gguf.TokenType] = []
    for i in range(config["vocab_size"]):
        if i in added:
            tokens.append(added[i]["content"])
            types.append(gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED)
        elif i in ordinary:
            tokens.append(ordinary[i])
            types.append(gguf.TokenType.NORMAL)
        else:  # an id without a token is padding
            tokens.append(f"[PAD{i}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    if config["pad_token_id"] is not None:
        writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((source / "chat_template.jinja").read_text())


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
