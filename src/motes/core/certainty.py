"""How certain the language model was of each token that it sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

LEAST_LOGPROB = -100.0
"""Log-probabilities below it count as this one: servers write minus infinity, or a large negative number, for 0."""


@dataclass(frozen=True, eq=False)
class Certainty:
    """Three numbers for each of n sampled tokens, from the model's distribution before it, p, at temperature 1 without
    filters. Of p only the k likeliest tokens are used (`Sampling.top_logprobs`), which are all that servers return; so
    the numbers are the same for every engine, up to rounding.

    Attributes:
        values: (n, 3) the log-probability, the entropy and the confidence of each token.
        k: number of likeliest tokens.
    """

    values: Float32Array
    k: int

    @classmethod
    def of(cls, logprobs: npt.ArrayLike, top_logprobs: npt.ArrayLike) -> Self:
        """The certainty of tokens.

        Args:
            logprobs: (n,) of the sampled tokens, in nats.
            top_logprobs: (n, k) of the k likeliest tokens at each place, in any order.
        """
        sampled = np.clip(np.asarray(logprobs, dtype=np.float64), LEAST_LOGPROB, 0.0)
        top = np.clip(np.asarray(top_logprobs, dtype=np.float64), LEAST_LOGPROB, 0.0)
        p = np.exp(top)
        rest = np.clip(1.0 - p.sum(axis=-1), 0.0, 1.0)
        entropies = -(p * top).sum(axis=-1) - rest * np.log(np.where(rest > 0, rest, 1.0))
        values = np.stack([sampled, entropies, -top.mean(axis=-1)], axis=-1)
        return cls(values.astype(np.float32), top.shape[-1])

    @classmethod
    def none(cls, k: int) -> Self:
        """That of no token."""
        return cls(np.zeros((0, 3), dtype=np.float32), k)

    @property
    def logprobs(self) -> Float32Array:
        """(n,) log p of the sampled token, in nats."""
        return self.values[:, 0]

    @property
    def entropies(self) -> Float32Array:
        """(n,) −Σ p_j log p_j in nats, over the k likeliest tokens and over all others as one."""
        return self.values[:, 1]

    @property
    def confidences(self) -> Float32Array:
        """(n,) −(1/k) Σ log p_j over the k likeliest tokens, at least log k: the larger, the more of p is on few tokens
        (arXiv 2508.15260, equation 2). Minus log k it is the divergence of p from the uniform distribution over these k
        tokens, their self-certainty (arXiv 2502.18581)."""
        return self.values[:, 2]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, tokens: slice) -> Certainty:
        """The certainty of some of the tokens."""
        return Certainty(self.values[tokens], self.k)

    @staticmethod
    def concatenate(parts: Iterable[Certainty]) -> Certainty | None:
        """The certainty of all tokens of the parts, in order; None if there is no token. k is the smallest one."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return None
        return Certainty(np.concatenate([part.values for part in parts]), min(part.k for part in parts))


def certainty_of_pairs(pairs: Sequence[tuple[float, Sequence[float]]], k: int) -> Certainty | None:
    """The certainty of tokens, by what a server returns for each: the sampled token's log-probability, and those of the
    likeliest tokens, in any order. Of these only the k likeliest count: some servers add the sampled token.

    Tokens for which the server returned fewer than for others, or NaN, are left out. None if it returned none at all.
    """
    pairs = [(logprob, top) for logprob, top in pairs if not np.isnan([logprob, *top]).any()]
    most = min(k, max((len(top) for _, top in pairs), default=0))
    if not most:
        return None
    full = [(logprob, sorted(top, reverse=True)[:most]) for logprob, top in pairs if len(top) >= most]
    return Certainty.of([logprob for logprob, _ in full], [top for _, top in full])
