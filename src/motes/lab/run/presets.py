"""Presets: files that hold a method and its budget, for `--method @FILE` and the gateway's `motes.toml`:

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
        """Read a preset from a file; a ConfigurationError if there is no such file, or it is not a preset."""
        fields = files.read_toml(path)
        if set(fields) != {"method", "budget"}:
            raise ConfigurationError(f'{path} is not a preset: a preset has two lines, method = "…" and budget = …')
        try:
            return cls(**fields)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from error

    def save(self, path: Path, *comments: str) -> None:
        """Write the preset to a file, below comment lines."""
        lines = [f"# {' '.join(comment.split())}" for comment in comments]
        lines += [f"method = {json.dumps(self.method, ensure_ascii=False)}", f"budget = {self.budget}"]
        files.write_text(path, "\n".join(lines) + "\n")


def preset_of(spec: str, folder: Path = Path()) -> Preset | None:
    """The preset that "@FILE" names; settings that follow, as in `@FILE:beta=2`, override its own. None for any other
    method spec. Relative paths start from `folder`; errors as `Preset.load`."""
    if not spec.startswith("@"):
        return None
    name, colon, settings = spec[1:].partition(":")
    preset = Preset.load(folder / name)
    return replace(preset, method=preset.method + colon + settings)


def expanded(spec: str, folder: Path = Path()) -> str:
    """A method spec; one that names a file is replaced by the spec in the file."""
    preset = preset_of(spec, folder)
    return spec if preset is None else preset.method
