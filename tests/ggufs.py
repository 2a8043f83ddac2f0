"""GGUF files for tests: of random models, and copies of others with changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel

import to_gguf
from checkpoints import random_language_model, save
from hostile_texts import HOSTILE, mixtures

TYPES = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}


def random_gguf(folder: Path, family: str = "qwen2", quantisation: str = "F32", **changes: object) -> Path:
    """A GGUF file of a random model, beside the folder "checkpoint" with the same model for transformers. Its matrices
    have rows that every quantisation can divide."""
    return written(random_language_model(family, **{"hidden_size": 64, **changes}), folder, quantisation)


def written(model: PreTrainedModel, folder: Path, quantisation: str = "F32") -> Path:
    save(model, folder / "checkpoint")
    target = folder / "model.gguf"
    to_gguf.convert(folder / "checkpoint", target, quantisation)
    return target


def copied(
    source: Path,
    target: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    *,
    dequantised: bool = False,
) -> Path:
    """A copy of a GGUF file.

    Args:
        metadata: other values of keys, and further keys; None leaves a key out.
        tensors: other weights, and further ones; None leaves a tensor out.
        dequantised: whether all weights become float32.
    """
    reader = GGUFReader(source)
    values = {
        key: (field.contents(), field.types[0], field.types[-1])
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    for key, value in (metadata or {}).items():
        item = value[0] if isinstance(value, list) else value
        kind = TYPES.get(type(item), GGUFValueType.UINT32)
        values[key] = (value, GGUFValueType.ARRAY if isinstance(value, list) else kind, kind)
    writer = GGUFWriter(target, values.pop("general.architecture", ("", None, None))[0])
    for key, (value, kind, item_kind) in values.items():
        if value is not None:
            writer.add_key_value(key, value, kind, item_kind if kind is GGUFValueType.ARRAY else None)
    changed = dict(tensors or {})
    for tensor in reader.tensors:
        if tensor.name in changed:
            continue
        if dequantised:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, weights in changed.items():
        if weights is not None:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def with_tokens(
    target: Path,
    kind: str,
    tokens: Sequence[str],
    types: Sequence[int],
    metadata: Mapping[str, Any],
) -> Path:
    """A GGUF file of a tiny random Llama with these tokens, whose weights mean nothing."""
    writer = GGUFWriter(target, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, value in metadata.items():
        item = value[0] if isinstance(value, list) else value
        of_items = TYPES[type(item)]
        if isinstance(value, list):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, of_items)
        else:
            writer.add_key_value(key, value, of_items)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        **{f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_norm": (32,),
        "blk.0.ffn_gate": (64, 32),
        "blk.0.ffn_up": (64, 32),
        "blk.0.ffn_down": (32, 64),
    }
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


SPECIAL = {
    "<unk>": 2,
    "<s>": 3,
    "</s>": 3,
    "<|im_start|>": 3,
    "<|im_end|>": 3,
    "<｜User｜>": 3,
    "<think>": 4,
    "</think>": 4,
}
"""Tokens that both vocabularies below have, and their types."""

WITHOUT_MERGES = "Ġfoobarqux"


@cache
def _learnt(kind: str) -> tuple[list[str], list[str]]:
    """Tokens and merges that go across every boundary between words, so that each shows in the tokens."""
    tokenizer = Tokenizer(models.BPE())
    alphabet = []
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*HOSTILE, *mixtures(1500, seed=1)] * 2
    texts = texts if kind == "gpt2" else [text.replace(" ", "▁").replace("\x00", "") for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, limit_alphabet=400, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


def byte_level(target: Path, rule: str | None, **metadata: Any) -> Path:
    """A file with a byte-level tokenizer that cuts texts into words by this rule."""
    tokens, merges = _learnt("gpt2")
    tokens = [*tokens, WITHOUT_MERGES, "[PAD0]", *(token for token in SPECIAL if token not in tokens)]
    types = [SPECIAL.get(token, 5 if token == "[PAD0]" else 1) for token in tokens]
    named = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}
    ids = {f"tokenizer.ggml.{name}_token_id": tokens.index(token) for name, token in named.items()}
    cut = {} if rule is None else {"tokenizer.ggml.pre": rule}
    return with_tokens(target, "gpt2", tokens, types, {"tokenizer.ggml.merges": merges, **cut, **ids, **metadata})


def sentencepiece(target: Path, **metadata: Any) -> Path:
    """A file with a tokenizer of sentencepiece's kind."""
    others = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    learnt = [token for token in _learnt("llama")[0] if token not in others]
    tokens = [*others, *learnt]
    types = [*SPECIAL.values(), *[6] * 256, *[1] * len(learnt)]
    scores = [0.0] * len(others) + [-float(i) for i in range(len(learnt))]
    ids = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("unknown", "bos", "eos"))}
    return with_tokens(target, "llama", tokens, types, {"tokenizer.ggml.scores": scores, **ids, **metadata})
