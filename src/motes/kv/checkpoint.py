"""Opening checkpoints, and how much memory their caches may take."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from motes.errors import ConfigurationError
from motes.kv.vocabulary import Vocabulary


def open_checkpoint(
    model_class: Any, path: str, device: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, Vocabulary]:
    """Load a model and its tokenizer; no remote code is ever run.

    Args:
        model_class: a class of transformers with `from_pretrained`.
        path: a folder, or a name that the hub knows.
        device: by default a GPU where there is one.
        dtype: of weights and arithmetic; by default float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ConfigurationError: there is no such checkpoint, it is of another kind, or the dtype does not exist.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    arithmetic = getattr(torch, dtype, None) if dtype else torch.float32 if chosen.type == "cpu" else torch.bfloat16
    if not isinstance(arithmetic, torch.dtype):
        raise ConfigurationError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    path = os.path.expanduser(path)
    if path.startswith((".", "/")) and not os.path.isdir(path):
        raise ConfigurationError(f"there is no folder {path!r}")
    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what it would warn of is checked below
    try:
        model, info = model_class.from_pretrained(path, dtype=arithmetic, output_loading_info=True)
        vocabulary = Vocabulary.load(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot open {path!r}: {str(error).strip().splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigurationError(f"{path!r} is no checkpoint of a {model_class.__name__}: it lacks {lacking}")
    return model.to(chosen).eval().requires_grad_(False), vocabulary


def cache_budget(bytes_per_token: int, device: torch.device, fraction: float = 0.125, at_most: int = 1 << 18) -> int:
    """Tokens whose keys and values fit in a fraction of the memory that is free now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, AttributeError, OSError):
            free = 4 << 30
    return max(1024, min(at_most, int(free * fraction) // bytes_per_token))
