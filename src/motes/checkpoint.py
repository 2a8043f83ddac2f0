"""The path and the configuration of a checkpoint, without torch."""

from __future__ import annotations

import os
from typing import Any

from transformers import PretrainedConfig

from motes.errors import ConfigurationError


def existing(path: str) -> str:
    """The path of an existing folder, or a name that the hub may know. A missing folder is a ConfigurationError."""
    path = os.path.expanduser(path)
    if path.startswith((".", "/")) and not os.path.isdir(path):
        raise ConfigurationError(f"there is no folder {path!r}")
    return path


def unreadable(path: str, error: Exception) -> ConfigurationError:
    """The error for a checkpoint that cannot be opened."""
    reason = " ".join(str(error).split()).rstrip(".")
    return ConfigurationError(
        f"cannot open {path!r}: {reason[:300]}. A checkpoint is config.json, model.safetensors and tokenizer.json; "
        "where one is damaged, fetch it again"
    )


def checkpoint_config(path: str) -> dict[str, Any]:
    """A checkpoint's config.json. A checkpoint that is missing or damaged is a ConfigurationError."""
    path = existing(path)
    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(path)[0]
    except Exception as error:
        raise unreadable(path, error) from error
    return config
