"""Opening checkpoints, and how much memory their caches may take."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from motes.checkpoint import existing, unreadable
from motes.errors import ConfigurationError, MissingExtraError
from motes.gguf import find_gguf, open_header, refusal
from motes.kv.gguf import load_gguf
from motes.vocabulary import Vocabulary


def open_checkpoint(
    model_class: Any, path: str, device: str | None = None, dtype: str | None = None
) -> tuple[PreTrainedModel, Vocabulary]:
    """Load a model and its tokenizer; no remote code is ever run.

    Args:
        model_class: a class of transformers with `from_pretrained`.
        path: a folder, a GGUF file, or a name that the hub knows, see `motes.gguf.find_gguf`.
        device: by default a GPU where there is one.
        dtype: of weights and arithmetic; by default float32 on a CPU, bfloat16 on a GPU.

    Raises:
        ConfigurationError: there is no such checkpoint, it is of another kind or damaged, or the device or the dtype
            does not exist.
    """
    chosen = _device(device)
    default = torch.float32 if chosen.type == "cpu" else torch.bfloat16
    arithmetic = getattr(torch, str(dtype), None) if dtype else default
    if not isinstance(arithmetic, torch.dtype) or not arithmetic.is_floating_point:
        raise ConfigurationError(f"unknown dtype {dtype!r}: use float32, bfloat16 or float16")
    gguf = find_gguf(path)
    header = None if gguf is None else open_header(gguf)
    path = existing(path) if header is None else str(header.path)
    try:
        with quiet():  # missing and mismatched weights are errors, see below
            if header is None:
                model, info = model_class.from_pretrained(
                    path, dtype=arithmetic, output_loading_info=True, ignore_mismatched_sizes=True
                )
                vocabulary = Vocabulary.load(path)
            else:
                vocabulary = Vocabulary.of_gguf(header)
                model, info = load_gguf(model_class, header, arithmetic)
            model = model.to(chosen)
    except MissingExtraError:
        raise
    except Exception as error:  # the libraries that read these files have errors without a common base class
        raise (unreadable(path, error) if header is None else refusal(header.path, error)) from error
    for what, names in (("lacks", info["missing_keys"]), ("has another shape of", info["mismatched_keys"])):
        if names:
            some = ", ".join(sorted(name if isinstance(name, str) else name[0] for name in names)[:3])
            raise ConfigurationError(
                f"{path!r} is no checkpoint of a {model_class.__name__} as its config.json says: it {what} {some}. "
                "Check that its files belong together"
            )
    return model.eval().requires_grad_(False), vocabulary


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers shows neither progress nor warnings."""
    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name is None else torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # how torch says that it was built without such a device
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"cannot use device {name!r} ({reason}): use device=cpu, or leave it out") from error
    return device


def cache_budget(bytes_per_token: int, device: torch.device, fraction: float = 0.125, at_most: int = 1 << 18) -> int:
    """The number of tokens whose keys and values fit in a fraction of the memory that is free now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, AttributeError, OSError):
            free = 4 << 30
    return max(1024, min(at_most, int(free * fraction) // bytes_per_token))
