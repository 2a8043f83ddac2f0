"""Resampling schemes: (generator, normalised weights, n) → ancestors.

All are unbiased: the expected number of offspring of particle i is n·W_i. A particle of weight zero has none.
Douc, Cappé, Moulines, "Comparison of resampling schemes for particle filtering" (2005).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from motes.errors import UnknownNameError
from motes.smc.weights import FloatArray

IntArray = npt.NDArray[np.int64]
Resampling = Callable[[np.random.Generator, FloatArray, int], IntArray]


def _inverse_cdf(weights: FloatArray, ordered: FloatArray) -> IntArray:
    """Indices i with C_{i−1} ≤ u < C_i for sorted u in [0, 1).

    C is taken as 1 at the last *positive* weight, so that rounding errors lead neither beyond the end nor to a particle
    of weight zero.
    """
    cumulative = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(cumulative, ordered, side="right"), last).astype(np.int64)


def multinomial(rng: np.random.Generator, weights: FloatArray, n: int) -> IntArray:
    """n independent draws from W, sorted."""
    return _inverse_cdf(weights, np.sort(rng.random(n)))


def stratified(rng: np.random.Generator, weights: FloatArray, n: int) -> IntArray:
    """One uniform in each of the n strata [k/n, (k+1)/n)."""
    return _inverse_cdf(weights, (np.arange(n) + rng.random(n)) / n)


def systematic(rng: np.random.Generator, weights: FloatArray, n: int) -> IntArray:
    """One uniform shared by the n strata."""
    return _inverse_cdf(weights, (np.arange(n) + rng.random()) / n)


def residual(rng: np.random.Generator, weights: FloatArray, n: int) -> IntArray:
    """Each particle has ⌊n·W_i⌋ certain offspring; the others are drawn in proportion to the remainders."""
    expected = n * weights
    # A product that rounding left just under a whole number counts as that number, or the certain part would be lost.
    counts = np.floor(expected + 1e-9).astype(np.int64)
    missing = n - int(counts.sum())
    rest = np.maximum(expected - counts, 0.0)
    if missing > 0:
        counts += np.bincount(multinomial(rng, rest / rest.sum(), missing), minlength=weights.size)
    return np.repeat(np.arange(weights.size), counts)


RESAMPLING: Mapping[str, Resampling] = MappingProxyType(
    {f.__name__: f for f in (multinomial, stratified, systematic, residual)}
)
"""The schemes by name."""


def resample(rng: np.random.Generator, weights: npt.ArrayLike, n: int, scheme: str = "systematic") -> IntArray:
    """Ancestors of n offspring.

    Args:
        rng: the only source of randomness: the same state gives the same ancestors.
        weights: (N,) normalised, non-negative.
        n: number of offspring.
        scheme: a name in `RESAMPLING`.

    Returns:
        (n,) indices into `weights`, sorted.

    Raises:
        UnknownNameError: no scheme has that name.
        ValueError: the weights are not a distribution.
    """
    if scheme not in RESAMPLING:
        raise UnknownNameError("resampling scheme", scheme, RESAMPLING)
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or not (values >= 0).all() or not np.isclose(values.sum(), 1.0, rtol=0, atol=1e-6):
        raise ValueError("weights must have shape (N,), be non-negative and sum to 1")
    return RESAMPLING[scheme](rng, values, n)
