"""The path and the configuration of a checkpoint, without torch."""

from __future__ import annotations

import os
from typing import Any

from transformers import PretrainedConfig

from motes.errors import ConfigurationError
from motes.gguf import find_gguf, open_header


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
        f"where one is damaged, fetch it again{_hint(path)}"
    )


def _hint(path: str) -> str:
    """What else may be wrong with a name: repositories of GGUF files hold several models."""
    is_of_ggufs = "gguf" in path.lower() and not os.path.isdir(path)
    return f". Of a repository of GGUF files, name one: 'hf:{path.partition(':')[0]}/FILE.gguf'" if is_of_ggufs else ""


def checkpoint_config(path: str) -> dict[str, Any]:
    """A checkpoint's config.json; of a GGUF file, its architecture and its names.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged.
    """
    if (gguf := find_gguf(path)) is not None:
        header = open_header(gguf)
        names = [gguf.stem, *str(header.metadata.get("general.name", "")).replace("/", " ").split()]
        return {"architectures": [header.architecture], "_name_or_path": "-".join(names)}
    path = existing(path)
    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(path)[0]
    except Exception as error:
        raise unreadable(path, error) from error
    return config
