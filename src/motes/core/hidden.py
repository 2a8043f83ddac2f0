"""What the layers of the language model held while it sampled a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from motes.core.usage import Reads, Usage

Float16Array = npt.NDArray[np.float16]
STATES = 2
"""States of each layer: the last one and the mean."""


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """The hidden states from which the tokens of a step were sampled, each divided by its root mean square.

    A token is sampled from the state at the token before it, which exists by then. So these states cost nothing, and
    the last one has read the whole step but its last token.

    Attributes:
        layers: (L,) numbers of layers, in ascending order: 0 is the embedding, L the output of layer L, and the largest
            one the state, after the final norm, from which the logits are computed.
        values: (L, 2, d) of each layer the state of the step's last token, and the mean over all of its tokens.
    """

    layers: tuple[int, ...]
    values: Float16Array

    @property
    def last(self) -> Float16Array:
        """(L, d) the states from which the step's last token was sampled."""
        return self.values[:, 0]

    @property
    def mean(self) -> Float16Array:
        """(L, d) the means over the step's tokens."""
        return self.values[:, 1]

    def of(self, layers: Sequence[int]) -> Self:
        """The states of some of the layers.

        Raises:
            KeyError: there are no states of one of them.
        """
        if missing := set(layers) - set(self.layers):
            raise KeyError(min(missing))
        return type(self)(tuple(layers), self.values[[self.layers.index(layer) for layer in layers]])


@dataclass(frozen=True)
class StepStates:
    """The states of steps, and what it cost to read them: `reward_tokens` of `usage`.

    Attributes:
        steps: one for each step; None for a step without tokens.
        reads: the tokens that reading the whole answer needs.
    """

    steps: tuple[HiddenStates | None, ...]
    usage: Usage
    reads: Reads


def join_states(
    first: HiddenStates | None, second: HiddenStates | None, num_tokens: tuple[int, int]
) -> HiddenStates | None:
    """The states of a step that was sampled in two calls, of so many tokens each."""
    if first is None or second is None or not all(num_tokens):
        return second if num_tokens[1] else first
    mean = np.average([first.of(second.layers).mean, second.mean], axis=0, weights=num_tokens)
    return HiddenStates(second.layers, np.stack([second.last, mean.astype(np.float16)], axis=1))
