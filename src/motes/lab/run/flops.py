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
from dataclasses import dataclass
from pathlib import Path

from motes import files
from motes.core import Usage
from motes.errors import RunDirectoryError
from motes.lab.run.damage import Damage, Damaged, is_count, parse_json, refuse

MODELS = "models.json"
REMEDY = "delete it, the same `motes eval` writes it again"


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
    def read(cls, directory: Path, damaged: Damaged = refuse) -> Sizes:
        """What an evaluation's directory holds; nothing is known of evaluations that recorded none.

        Args:
            damaged: told of a damaged file, of which nothing is known; by default it is an error.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        path = directory / MODELS
        try:
            held = parse_json(files.read_text(path))
            sizes = [held[field.name]["num_parameters"] for field in dataclasses.fields(cls)]
            if not all(size is None or is_count(size, 1) for size in sizes):
                raise ValueError("a number of parameters is a whole number from 1, or null")
            return cls(*sizes)
        except FileNotFoundError:
            pass
        except OSError as error:
            damaged(Damage(path, "", error.strerror or str(error), REMEDY))
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it does not say how large the models are"
            damaged(Damage(path, "", reason, REMEDY))
        return cls()

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
            files.write_text(path, json.dumps(models, indent=2) + "\n")
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
