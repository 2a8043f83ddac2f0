"""The cost of tokens in FLOPs.

    FLOPs = 2 · parameters · computed tokens

One forward pass of a transformer does one multiply-add, which is two operations, per parameter and token (Kaplan et
al. 2020, "Scaling laws for neural language models", arXiv 2001.08361, section 2.1: C_forward ≈ 2N + 2 · layers ·
context · width per token). The second term, for attention, which grows with the length of the context, is left out
here. Tokens from a cache cost nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from motes import files
from motes.core import Usage
from motes.lab.run.appending import writing
from motes.lab.run.damage import Damaged, parse_json, read_json, refuse
from motes.lab.run.rules import is_count

MODELS = "models.json"


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of the language model and of the reward model; None if unknown."""

    lm: int | None = None
    reward: int | None = None

    @classmethod
    def of(cls, lm: object, reward: object) -> Sizes:
        """The sizes that the models state as `num_parameters`."""
        sizes = (getattr(model, "num_parameters", None) for model in (lm, reward))
        return cls(*(size if isinstance(size, int) and size > 0 else None for size in sizes))

    @classmethod
    def read(cls, directory: Path, damaged: Damaged = refuse) -> Sizes:
        """The sizes in an evaluation's directory; unknown if it recorded none.

        Args:
            damaged: called if the file is damaged, and the sizes are then unknown; by default a RunDirectoryError.
        """
        remedy = "delete it; the same `motes eval` writes it again"
        return read_json(directory / MODELS, cls._parse, damaged, remedy) or cls()

    @classmethod
    def _parse(cls, text: str) -> Sizes:
        models = parse_json(text)
        try:
            sizes = [models[field.name]["num_parameters"] for field in dataclasses.fields(cls)]
        except (KeyError, TypeError):
            raise ValueError("it does not say how large the models are") from None
        if not all(size is None or is_count(size, 1) for size in sizes):
            raise ValueError("a number of parameters is a whole number from 1, or null")
        return cls(*sizes)

    def record(self, directory: Path) -> None:
        """Write the known sizes into an evaluation's directory. Sizes that it has already stay unchanged. A
        RunDirectoryError if the file is damaged or cannot be written."""
        recorded = Sizes.read(directory)
        merged = Sizes(recorded.lm or self.lm, recorded.reward or self.reward)
        if merged == recorded:
            return
        path = directory / MODELS
        models = {role: {"num_parameters": size} for role, size in dataclasses.asdict(merged).items()}
        with writing(path):
            files.write_text(path, json.dumps(models, indent=2) + "\n")

    def flops(self, usage: Usage) -> tuple[float | None, float | None]:
        """The FLOPs of the language model and of the reward model; None if a model of unknown size computed tokens."""
        return (
            _flops(usage.generated_tokens + usage.prefill_tokens, self.lm),
            _flops(usage.reward_tokens, self.reward),
        )


def _flops(tokens: int, parameters: int | None) -> float | None:
    if not tokens:
        return 0.0
    return None if parameters is None else 2.0 * parameters * tokens
