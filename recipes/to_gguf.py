"""Convert a Qwen2 checkpoint with a byte-level BPE, such as the bundled language model, to GGUF for llama.cpp.

    python recipes/to_gguf.py src/motes/bundled/tiny-lm tiny.gguf

Needs the packages gguf and safetensors, which motes does not depend on: run it in an environment of its own. Weights
are written as float32, so that llama.cpp computes the same as other engines. 2026-11-24: the bundled model, 0.3 s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file


def convert(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] != "qwen2":
        raise SystemExit(f"{source} is a {config['model_type']}, not a qwen2: use llama.cpp's own converter")
    writer = gguf.GGUFWriter(target, "qwen2")
    writer.add_name(source.name)
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokens(writer, source, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in load_file(source / "model.safetensors").items():
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise SystemExit(f"the format has no place for {name}")
        writer.add_tensor(renamed, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: gguf.GGUFWriter, source: Path, config: dict) -> None:
    """Write the tokenizer: its tokens, their types, its merges and the chat template."""
    spec = json.loads((source / "tokenizer.json").read_text())
    ordinary = {i: token for token, i in spec["model"]["vocab"].items()}
    added = {token["id"]: token for token in spec["added_tokens"]}
    tokens: list[str] = []
    types: list[gguf.TokenType] = []
    for i in range(config["vocab_size"]):
        if i in added:
            tokens.append(added[i]["content"])
            types.append(gguf.TokenType.CONTROL)
        elif i in ordinary:
            tokens.append(ordinary[i])
            types.append(gguf.TokenType.NORMAL)
        else:  # an id without a token is padding
            tokens.append(f"[PAD{i}]")
            types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((source / "chat_template.jinja").read_text())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
