"""GGUF files, llama.cpp's format of models, which hold weights, settings and tokenizer in one file.

transformers reads the weights and the settings (`motes.kv.gguf`), `motes.gguf.tokenizer` the tokenizer.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from motes.errors import ConfigurationError, UnreadableFileError, closest
from motes.gguf.header import DamagedError, Header, UnusableError, is_gguf, read_header

__all__ = ["DamagedError", "Header", "find_gguf", "open_header", "refusal"]

OTHER_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|index\.json)$")
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf\Z", re.IGNORECASE)
"""The end of the name of one part of a model."""
ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.gguf)", re.IGNORECASE)


def find_gguf(path: str) -> Path | None:
    """The GGUF file that a name stands for: the file itself; the only one in a folder without other weights;
    OWNER/NAME/FILE.gguf on the hub, which is downloaded. None for all other names.

    Raises:
        ConfigurationError: there is no such file, a file is none, or there are several.
    """
    local = Path(os.path.expanduser(path))
    if local.is_dir():
        return _only_one(local)
    if os.path.lexists(local):
        try:
            if is_gguf(local):
                return local
        except OSError as error:
            raise UnreadableFileError(local, error) from error
        raise ConfigurationError(f"{path!r} is no GGUF file: name one, or the folder of a checkpoint")
    if not path.lower().endswith(".gguf"):
        return None
    on_hub = ON_HUB.fullmatch(path)
    if on_hub is None or path.startswith((".", "/", "~")) or os.path.isdir(on_hub[1]):
        raise ConfigurationError(f"there is no file {path!r}{_suggestion(local)}")
    if (part := PART.search(path)) and int(part[1]) > 1:  # do not fetch gigabytes that cannot be opened
        raise _part(path, int(part[1]))
    return _download(on_hub[1], on_hub[2])


def _suggestion(missing: Path) -> str:
    """The GGUF file whose name is closest to that of a missing one, as the end of a message."""
    with contextlib.suppress(OSError):
        names = (entry.name for entry in missing.parent.iterdir() if entry.name.lower().endswith(".gguf"))
        if close := closest(missing.name, names):
            return f": did you mean {str(missing.parent / close)!r}?"
    return f": name one in {str(missing.parent.absolute())!r}, or write its whole path"


def _only_one(folder: Path) -> Path | None:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise UnreadableFileError(folder, error) from error
    found = [name for name in names if name.lower().endswith(".gguf")]
    if not found or any(map(OTHER_WEIGHTS.search, names)):
        return None
    if len(found) > 1:
        raise ConfigurationError(
            f"{str(folder)!r} has several GGUF files: name one of them, as in {f'hf:{folder / found[0]}'!r}. "
            f"They are {', '.join(found)}"
        )
    return folder / found[0]


def _download(repository: str, name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, name))
    except Exception as error:  # of the network, of the hub's package, of the file system
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(
            f"there is no file {f'{repository}/{name}'!r} here, and the hub does not give it: {reason}"
        ) from error


def open_header(path: Path) -> Header:
    """Read the header of a GGUF file that holds a language model.

    Raises:
        ConfigurationError: it cannot be read, is damaged, or holds something else.
    """
    try:
        header = read_header(path)
    except OSError as error:
        raise UnreadableFileError(path, error) from error
    except ValueError as error:
        raise refusal(path, error) from error
    kind = header.metadata.get("general.type", "model")
    parts = header.metadata.get("split.count", 1)
    if header.architecture == "clip" or kind == "mmproj":
        raise _other(path, "the part of a model that sees pictures: name the language model's file")
    if kind == "adapter":
        raise _other(path, "an adapter, not a model: merge it into its model (`llama-export-lora`)")
    if isinstance(parts, int) and parts > 1:
        raise _part(path, parts)
    if kind != "model" or not header.tensors:
        raise _other(path, f"no model: its type is {kind!r}, and it has {len(header.tensors)} tensors")
    return header


def _part(path: Path | str, number: int) -> ConfigurationError:
    return _other(path, f"one of {number} parts of a model: join them (`llama-gguf-split --merge`)")


def _other(path: Path | str, what: str) -> ConfigurationError:
    return ConfigurationError(f"{str(path)!r} is {what}")


def refusal(path: Path, error: Exception) -> ConfigurationError:
    """The error for a GGUF file that cannot be opened."""
    reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
    if isinstance(error, UnusableError):
        return ConfigurationError(f"cannot open {str(path)!r}: {reason}")
    if isinstance(error, DamagedError):
        return ConfigurationError(f"cannot open {str(path)!r}: {reason}: fetch the file again")
    return ConfigurationError(
        f"cannot open {str(path)!r}: {reason}. llama.cpp may run it: serve it (`llama-server -m FILE`), and name the "
        "server as the model, 'http://HOST:PORT/v1'"
    )
