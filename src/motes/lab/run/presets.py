"""A method with its budget as a file, which `--method @FILE` and the gateway's `motes.toml` take:

method = "pf:ess_threshold=1.0"
budget = 16
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from motes import files
from motes.arguments import fit_fields
from motes.errors import ConfigurationError


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
        told = files.read_toml(path)
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
    """The preset that "@FILE" names, with the settings behind it, which win: `@FILE:beta=2`. None of any other method
    spec.

    Args:
        folder: that a relative path starts from.

    Raises:
        ConfigurationError: see `Preset.load`.
    """
    if not spec.startswith("@"):
        return None
    name, colon, settings = spec[1:].partition(":")
    preset = Preset.load(folder / name)
    return replace(preset, method=preset.method + colon + settings)


def expanded(spec: str, folder: Path = Path()) -> str:
    """A method spec, read from its file where it names one."""
    preset = preset_of(spec, folder)
    return spec if preset is None else preset.method
