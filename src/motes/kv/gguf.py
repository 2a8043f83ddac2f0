"""Loading a language model from a GGUF file by transformers' own reader, which dequantises the weights.

transformers leaves out what it does not know: settings of the architecture, and tensors. The model would then compute
something else, and nothing would show it. So this module applies what it can, and refuses the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from motes.errors import MissingExtraError
from motes.gguf import DamagedError, Header
from motes.gguf.tokenizer import end_token_ids

FREQUENCIES = "rope_freqs.weight"
"""A tensor by which the frequencies of the rotary embedding are divided, as in Llama 3.1 and later."""

FIELDS = {
    "context_length": ("max_position_embeddings",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "expert_used_count": ("num_experts_per_tok",),
}
"""Settings of GGUF files, and the names that transformers' configurations have for them."""

IN_SHAPES = {
    *("block_count", "embedding_length", "feed_forward_length", "vocab_size", "attention.value_length"),
    *("expert_count", "expert_feed_forward_length"),
}
"""Settings that need no check: a wrong one gives weights of another shape or number."""

NEUTRAL = {"rope.scaling.type": "none", "expert_used_count": 0, "attention.causal": True}
"""Settings with the values that change nothing."""

WITHOUT_EFFECT = {"rope.scaling.finetuned", "tensor_data_layout"}

SCALING = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
"""The settings "rope.scaling.…" of the types "linear" and "yarn", and their names in transformers."""


def load_gguf(model_class: Any, header: Header, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model, and transformers' report of the weights that are missing or do not fit.

    Args:
        model_class: a class of transformers with `from_pretrained`.
        header: of the file.

    Raises:
        MissingExtraError: a package that transformers needs for this is not installed.
        ValueError: the model needs something that transformers leaves out; a DamagedError if the file is damaged.
        Exception: any other error of the libraries that read the file.
    """
    if not all(map(importlib.util.find_spec, ("gguf", "accelerate"))):
        raise MissingExtraError(f"the GGUF file {str(header.path)!r}", "gguf")
    require_readable(header)
    require_memory(header, dtype)
    # The absolute path: transformers prefers a file of that name in the working directory.
    source = {"pretrained_model_name_or_path": str(header.path.parent), "gguf_file": str(header.path.absolute())}
    with _without_progress():
        config = AutoConfig.from_pretrained(**source)
        apply_settings(config, header)
        model, info = model_class.from_pretrained(
            **source, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if not info["missing_keys"] and not info["mismatched_keys"]:
        _require_all_weights(model, header)
        _apply_frequencies(model, header)
    model.name_or_path = str(header.path)
    model.config._commit_hash = _revision(header.path)
    model.generation_config.eos_token_id = end_token_ids(header)
    return model, info


def _revision(path: Path) -> str | None:
    """The commit of a file in the hub's cache."""
    match = re.search(r"/snapshots/([0-9a-f]{40})/", path.absolute().as_posix())
    return match[1] if match else None


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """Hide the progress bar of transformers' reader, which its settings do not hide."""
    try:
        reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
        shown = reader.tqdm
    except (ImportError, AttributeError):  # another version, with another bar or none
        yield
        return
    reader.tqdm = partial(shown, disable=True)
    try:
        yield
    finally:
        reader.tqdm = shown


def require_readable(header: Header) -> None:
    """Check that the quantisations are known, and that no weights are cut off."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for tensor in header.tensors:
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type)]
        except (ValueError, KeyError) as error:
            raise ValueError(f"the tensor {tensor.name!r} has the unknown quantisation {tensor.type}") from error
        if tensor.start + tensor.num_elements // block * size > header.size:
            raise DamagedError(f"it is damaged: it ends before the weights of {tensor.name!r} do")


def require_memory(header: Header, dtype: torch.dtype) -> None:
    """Check that the weights fit in the machine's memory once they are dequantised: files are several times smaller."""
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, AttributeError, OSError):
        return
    needed = sum(tensor.num_elements for tensor in header.tensors) * dtype.itemsize
    if needed > there:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"its weights take {needed / 1e9:.0f} GB as {name}, and this machine has {there / 1e9:.0f} GB")


def apply_settings(config: PretrainedConfig, header: Header) -> None:
    """Complete the configuration that transformers has made of the file's settings.

    Raises:
        ValueError: there is a setting that it cannot express.
    """
    settings = {key: value for key, value in header.settings.items() if NEUTRAL.get(key) != value}
    settings = {key: value for key, value in settings.items() if key not in IN_SHAPES | WITHOUT_EFFECT}
    if (rope := getattr(config, "rope_parameters", None)) is not None:
        config.rope_parameters = rope | _rope(settings)
    if (head_dim := settings.get("attention.key_length")) is not None:
        config.head_dim = head_dim
    rotated = settings.pop("rope.dimension_count", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    partial_factor = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    if rotated is not None and rotated != int(head_dim * partial_factor):
        settings["rope.dimension_count"] = rotated
    for key, value in settings.items():
        known = [getattr(config, field) for field in FIELDS.get(key, ()) if getattr(config, field, None) is not None]
        if not known or not _equal(known[0], value):
            raise ValueError(f"transformers does not apply its setting {header.architecture}.{key} = {value!r}")


def _rope(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of the rotary embedding, and translate them for transformers."""
    rope = {"rope_theta": settings.pop("rope.freq_base", 10_000.0)}
    if settings.get("rope.scaling.type") in ("linear", "yarn"):
        rope["rope_type"] = settings.pop("rope.scaling.type")
        for key, name in SCALING.items():
            if (value := settings.pop(f"rope.scaling.{key}", None)) is not None:
                rope[name] = value
    return rope


def _equal(first: Any, second: Any) -> bool:
    are_numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
    return math.isclose(first, second, rel_tol=1e-6) if are_numbers else bool(first == second)


def _require_all_weights(model: PreTrainedModel, header: Header) -> None:
    """Check that the model has a parameter for each weight of the file."""
    used = sum(parameter.numel() for parameter in model.parameters())
    there = sum(tensor.num_elements for tensor in header.tensors if tensor.name != FREQUENCIES)
    if used != there:
        raise ValueError(f"transformers makes a {type(model).__name__} of {used:,} of its {there:,} weights")


def _apply_frequencies(model: PreTrainedModel, header: Header) -> None:
    """Divide the frequencies of the rotary embedding as the file says."""
    tensor = next((tensor for tensor in header.tensors if tensor.name == FREQUENCIES), None)
    if tensor is None:
        return
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    frequencies = getattr(rotary, "inv_freq", None)
    if tensor.type != 0 or frequencies is None or tensor.shape != tuple(frequencies.shape):
        raise ValueError(f"transformers does not apply its tensor {FREQUENCIES}")
    divisors = np.fromfile(header.path, "<f4", tensor.num_elements, offset=tensor.start)
    for name in ("inv_freq", "original_inv_freq"):
        if hasattr(rotary, name):
            getattr(rotary, name).div_(torch.from_numpy(divisors))
