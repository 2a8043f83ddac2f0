"""What tokens cost in arithmetic.

    FLOPs = 2 · parameters · computed tokens

One forward pass of a transformer multiplies and adds each parameter once a token, and a multiply-add is two operations
(Kaplan et al. 2020, "Scaling laws for neural language models", arXiv 2001.08361, section 2.1: C_forward ≈ 2N +
2 · layers · context · width a token). The second term, attention's own, which grows with the length of the context, is
left out here. Tokens that caches spared cost nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from motes.errors import RunDirectoryError
from motes.types import Usage

MODELS = "models.json"


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of the language model and of the reward model; None where a model does not say."""

    lm: int | None = None
    reward: int | None = None

    @classmethod
    def of(cls, lm: object, reward: object) -> Sizes:
        """What the models state as `num_parameters`."""
        return cls(_size(lm), _size(reward))

    @classmethod
    def read(cls, directory: Path) -> Sizes:
        """What an evaluation's directory holds; nothing is known of evaluations that recorded none.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        path = directory / MODELS
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(*(held[field.name]["num_parameters"] for field in dataclasses.fields(cls)))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirectoryError(f"{path} is damaged: delete it, the same `motes eval` writes it again") from error

    def record(self, directory: Path) -> None:
        """Write what is known into an evaluation's directory. What it holds already stays as it is.

        Raises:
            RunDirectoryError: the file is damaged or cannot be written.
        """
        held = Sizes.read(directory)
        known = Sizes(held.lm or self.lm, held.reward or self.reward)
        if known == held:
            return
        path = directory / MODELS
        models = {role: {"num_parameters": size} for role, size in dataclasses.asdict(known).items()}
        try:
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error

    def flops(self, usage: Usage) -> tuple[float | None, float | None]:
        """Of the language model and of the reward model; None where tokens were computed by a model of unknown size."""
        return (
            _flops(usage.generated_tokens + usage.prefill_tokens, self.lm),
            _flops(usage.reward_tokens, self.reward),
        )


def _size(model: object) -> int | None:
    size = getattr(model, "num_parameters", None)
    return size if isinstance(size, int) and size > 0 else None


def _flops(tokens: int, parameters: int | None) -> float | None:
    if not tokens:
        return 0.0
    return None if parameters is None else 2.0 * parameters * tokens
