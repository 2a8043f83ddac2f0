"""A method with its budget as a file, which `--method @FILE` and the gateway's `motes.toml` take:

method = "pf:ess_threshold=1.0"
budget = 16
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from motes import files
from motes.arguments import fit_fields
from motes.errors import ConfigurationError, UnreadableFileError
from motes.text import read_text


@dataclass(frozen=True)
class Preset:
    """A method spec and a number of trajectories."""

    method: str
    budget: int

    def __post_init__(self) -> None:
        fit_fields(self)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            ConfigurationError: there is none, or it says something else.
        """
        try:
            told = tomllib.loads(read_text(path))
        except OSError as error:
            raise UnreadableFileError(path, error) from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path} is no TOML: {error}") from error
        if set(told) != {"method", "budget"}:
            raise ConfigurationError(f'{path} is no preset: it has two lines, method = "…" and budget = …')
        try:
            return cls(**told)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error

    def save(self, path: Path, *comments: str) -> None:
        """Write it, below lines of comment."""
        lines = [f"# {' '.join(comment.split())}" for comment in comments]
        lines += [f"method = {json.dumps(self.method, ensure_ascii=False)}", f"budget = {self.budget}"]
        files.write_text(path, "\n".join(lines) + "\n")


def preset_of(spec: str, folder: Path = Path()) -> Preset | None:
    """The preset that "@FILE" names; None of any other method spec.

    Args:
        folder: that a relative path starts from.

    Raises:
        ConfigurationError: see `Preset.load`.
    """
    return Preset.load(folder / spec[1:]) if spec.startswith("@") else None


def expanded(spec: str, folder: Path = Path()) -> str:
    """A method spec, read from its file where it names one; settings behind it, `@FILE:beta=2`, win."""
    name, colon, settings = spec.partition(":")
    preset = preset_of(name, folder)
    return spec if preset is None else preset.method + colon + settings
