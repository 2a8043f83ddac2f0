"""What tokens cost in money, at the prices that a reader pays."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from motes.arguments import fit
from motes.core import Usage
from motes.errors import ConfigurationError


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, each in the same currency, whichever it is.

    Attributes:
        generated: by the language model. prefill, prefill_cached: of its prompts and prefixes, computed and spared.
        reward, reward_cached: of the reward model's.

    Raises:
        ConfigurationError: a price is negative or no number.
    """

    generated: float = 0.0
    prefill: float = 0.0
    prefill_cached: float = 0.0
    reward: float = 0.0
    reward_cached: float = 0.0

    def __post_init__(self) -> None:
        for name, price in vars(self).items():
            if not (fit(f"the price of {name} tokens", price, float) >= 0 and math.isfinite(price)):
                raise ConfigurationError(f"the price of {name} tokens must be 0 or more, not {price}")

    @classmethod
    def parse(cls, text: str) -> Prices:
        """As on the command line: "generated=0.6,prefill=0.15,reward=0.2". What is not named costs nothing.

        Raises:
            ConfigurationError: it is not of that form, or names something else.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        found: dict[str, float] = {}
        for part in text.split(","):
            name, _, price = (piece.strip() for piece in part.partition("="))
            try:
                found[name] = float(price)
            except ValueError:
                name = ""
            if name not in known:
                raise ConfigurationError(
                    f"write prices of a million tokens like generated=0.6,reward=0.2; known are {', '.join(known)}"
                )
        return cls(**found)

    def of(self, usage: Usage) -> float:
        """The price of what was used."""
        tokens = (
            (usage.generated_tokens, self.generated),
            (usage.prefill_tokens, self.prefill),
            (usage.prefill_tokens_cached, self.prefill_cached),
            (usage.reward_tokens, self.reward),
            (usage.reward_tokens_cached, self.reward_cached),
        )
        return sum(count * price for count, price in tokens) / 1e6

    def __str__(self) -> str:
        return ", ".join(f"{price:g} ({name.replace('_', ' ')})" for name, price in vars(self).items() if price)
