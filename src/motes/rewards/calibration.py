"""Maps from scores to probabilities: monotone, fitted to labelled answers, kept in small files, used by their names."""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from motes import files
from motes.core import Trajectory
from motes.errors import ConfigurationError
from motes.protocols import RewardModel
from motes.rewards.mapped import MappedReward
from motes.text import json_line, parse_json, read_text

T = TypeVar("T")

FORMAT = "motes calibration 1"

LOADERS: dict[str, Callable[[str], object]] = {}
"""The functions that load files of these formats, which a new file may replace. Each module adds its own."""


@dataclass(frozen=True)
class Calibration:
    """A map from scores to probabilities, both in [0, 1], that never inverts an order.

        f(r) = (1 − slope) · g(r) + slope · r

    g interpolates `probabilities` at `scores` linearly and is constant beyond the outer ones. An isotonic regression
    has plateaus: all scores on one would become equal, and their ranking would be lost. With slope > 0 f is strictly
    increasing, at the price of probabilities that are off by at most `slope`.

    Args:
        scores: (K,) K ≥ 1, strictly increasing.
        probabilities: (K,) not decreasing.
        slope: in [0, 1].
        provenance: the data to which it was fitted, as values that JSON can hold.

    Raises:
        ConfigurationError: a number is out of range or order.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    slope: float = 0.01
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise ConfigurationError(f"a calibration's {message}")

        numbers = (*self.scores, *self.probabilities, self.slope)
        require(all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in numbers), "numbers must lie in [0, 1]")
        require(len(self.scores) == len(self.probabilities) >= 1, "scores need a probability each, and one at least")
        require(all(a < b for a, b in pairwise(self.scores)), "scores must be strictly increasing")
        require(all(a <= b for a, b in pairwise(self.probabilities)), "probabilities must not decrease")

    def __call__(self, score: float) -> float:
        """The probability for a score in [0, 1]."""
        i = bisect_left(self.scores, score)
        if i == 0:
            level = self.probabilities[0]
        elif i == len(self.scores):
            level = self.probabilities[-1]
        else:
            (x0, x1), (y0, y1) = self.scores[i - 1 : i + 1], self.probabilities[i - 1 : i + 1]
            level = y0 + (y1 - y0) * ((score - x0) / (x1 - x0))
            level = min(max(level, y0), y1)  # rounding must not invert an order
        return min(1.0, (1 - self.slope) * level + self.slope * score)

    @classmethod
    def load(cls, name: str) -> Calibration:
        """Load a calibration by its name or file, see `path_of`.

        Raises:
            ConfigurationError: there is none, or the file is damaged.
        """
        return load_fitted(name, FORMAT, "calibration", cls._of_content)

    @classmethod
    def _of_content(cls, content: dict[str, Any]) -> Calibration:
        return cls(tuple(content.pop("scores")), tuple(content.pop("probabilities")), content.pop("slope"), content)

    def save(self, name: str) -> Path:
        """Write the calibration under a name or into a file, and return the file. It replaces one that is there.

        Raises:
            ConfigurationError: it cannot be written, or something other than a calibration is there.
        """
        content = {"slope": self.slope, "scores": self.scores, "probabilities": self.probabilities}
        return save_fitted(name, FORMAT, self.provenance, content)


LOADERS[FORMAT] = Calibration.load


def load_fitted(name: str, form: str, noun: str, make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the content of a file that `motes calibrate` has written, see `path_of`.

    Raises:
        ConfigurationError: there is none, it cannot be read, does not have this form, or is damaged.
    """
    path = path_of(name)
    if not path.exists():
        raise ConfigurationError(
            f"there is no {noun} {name!r} ({path}): `motes calibrate` makes one; a file's name ends in .json"
        )
    content = _read(path)
    if not isinstance(content, dict) or content.get("format") != form:
        raise ConfigurationError(f"{path} is no {noun}: it does not say {form!r}")
    try:
        return make(content)
    except (KeyError, TypeError, ConfigurationError) as error:
        raise ConfigurationError(f"{path} is damaged ({error}): make it anew with `motes calibrate`") from error


def _read(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def save_fitted(name: str, form: str, provenance: Mapping[str, Any], content: Mapping[str, Any]) -> Path:
    """Write a file of that name and form, which `load_fitted` reads, and return it. Errors: see `Calibration.save`."""
    path = place_for(name)
    about = {key: value for key, value in provenance.items() if key != "format"}
    # One line for each key, also for lists of numbers, so that people can read the file.
    lines = [f"  {json_line(key)}: {json_line(value)}" for key, value in {"format": form, **about, **content}.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    return path


def path_of(name: str) -> Path:
    """The file of a calibration: `name` itself if it ends in .json or has a directory before it; otherwise a file among
    the user's calibrations, in the directory that the environment variable MOTES_HOME names, by default ~/.motes.
    Raises ConfigurationError if `name` can be neither."""
    if name.endswith(".json") or "/" in name or os.sep in name:
        return Path(name).expanduser()
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigurationError(f"{name!r} cannot name a calibration: use letters, digits, '-', '_' and '.'")
    home = os.environ.get("MOTES_HOME")
    return (Path(home) if home else Path.home() / ".motes") / "calibrations" / f"{name}.json"


def place_for(name: str) -> Path:
    """The file for a new calibration or mixture of that name. Raises ConfigurationError if it cannot have that name, or
    if something else is there."""
    path = path_of(name)
    if path.exists():
        content = _read(path)
        form = content.get("format") if isinstance(content, dict) else None
        if form not in LOADERS:
            raise ConfigurationError(f"{path} is no calibration: choose another name, it would be lost")
        LOADERS[form](str(path))
    return path


@dataclass(frozen=True, eq=False)
class CalibratedReward(MappedReward):
    """A reward model with a calibration that turns its scores into probabilities.

    If `reward` scores finished answers only, its neutral scores of others stay as they are.
    """

    reward: RewardModel
    calibration: Calibration

    def change(self, node: Trajectory, score: float) -> float:
        if math.isnan(score) or (self.outcome and node.finished is None):
            return score
        return self.calibration(score)
