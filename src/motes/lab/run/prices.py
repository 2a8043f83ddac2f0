"""The cost of tokens in money."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from motes.arguments import fit
from motes.core import Usage
from motes.errors import ConfigurationError


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, all in one currency.

    Attributes:
        generated: of tokens that the language model generates.
        prefill: of the tokens of its prompts and prefixes that are computed.
        prefill_cached: of those that come from a cache.
        reward: of tokens that the reward model computes.
        reward_cached: of the reward model's tokens that come from a cache.

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
        """Parse a text such as "generated=0.6,prefill=0.15,reward=0.2". Tokens without a price cost nothing. A
        ConfigurationError if the text has another form, or another name."""
        names = [field.name for field in dataclasses.fields(cls)]
        prices: dict[str, float] = {}
        for part in text.split(","):
            name, _, price = (piece.strip() for piece in part.partition("="))
            try:
                prices[name] = float(price)
            except ValueError:
                name = ""
            if name not in names:
                raise ConfigurationError(
                    f"write prices of a million tokens like generated=0.6,reward=0.2; the names are {', '.join(names)}"
                )
        return cls(**prices)

    def of(self, usage: Usage) -> float:
        """The price of the tokens of a usage."""
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
