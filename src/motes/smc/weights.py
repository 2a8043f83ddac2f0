"""Importance weights as a value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def log_sum_exp(values: FloatArray) -> float:
    """log Σ exp(values); −inf if every value is −inf or there is none."""
    top = float(values.max(initial=-np.inf))
    if np.isneginf(top):
        return -np.inf
    return top + float(np.log(np.exp(values - top).sum()))


@dataclass(frozen=True, eq=False)
class Weights:
    """N unnormalised log-weights. Immutable: the array is a read-only copy; `add` returns a new value.

    Args:
        log_weights: (N,), N ≥ 1; −inf allowed, NaN and +inf not.

    Raises:
        ValueError: the shape is not (N,), or a value is NaN or +inf.
    """

    log_weights: FloatArray

    def __post_init__(self) -> None:
        values = np.array(self.log_weights, dtype=np.float64)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"log-weights must have shape (N,) with N ≥ 1, not {values.shape}")
        if np.isnan(values).any() or np.isposinf(values).any():
            raise ValueError("log-weights must not be NaN or +inf")
        values.setflags(write=False)
        object.__setattr__(self, "log_weights", values)

    @classmethod
    def uniform(cls, n: int) -> Weights:
        """Weight 1 for each of n particles."""
        return cls(np.zeros(n))

    def add(self, increment: npt.ArrayLike) -> Weights:
        """Each weight multiplied by exp(increment), (N,)."""
        return Weights(self.log_weights + np.asarray(increment, dtype=np.float64))

    def __len__(self) -> int:
        return int(self.log_weights.size)

    @cached_property
    def degenerate(self) -> bool:
        """Whether every weight is zero."""
        return bool(np.isneginf(self.log_weights).all())

    @cached_property
    def normalized(self) -> FloatArray:
        """(N,), sums to 1.

        Raises:
            ValueError: every weight is zero.
        """
        if self.degenerate:
            raise ValueError("every weight is zero: there is nothing to normalise")
        weights: FloatArray = np.exp(self.log_weights - self.log_weights.max())
        weights /= weights.sum()
        weights.setflags(write=False)
        return weights

    @cached_property
    def ess(self) -> float:
        """Effective sample size (Σw)²/Σw², in [1, N]; 0 if every weight is zero."""
        if self.degenerate:
            return 0.0
        return float(1.0 / np.square(self.normalized).sum())

    @cached_property
    def log_mean(self) -> float:
        """log of the mean weight; −inf if every weight is zero."""
        return log_sum_exp(self.log_weights) - float(np.log(len(self)))
