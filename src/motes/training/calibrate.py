"""Make logits probabilities: a slope and a shift, fitted to outcomes (Platt, "Probabilistic outputs for support vector
machines", 1999)."""

from __future__ import annotations

import numpy as np

from motes.core import FloatArray

MOST_ROUNDS, CLOSE = 100, 1e-9
PRIOR = 1.0
"""Weight of the prior that the logits are right as they are: that of one completion."""


def fit_platt(logits: FloatArray, counts: FloatArray) -> tuple[float, float]:
    """The slope a and the shift b that maximise the likelihood of outcomes with probabilities σ(a · logit + b).

    A weak Gaussian prior around a = 1, b = 0 keeps them finite where right and wrong are perfectly separated. The slope
    is at least 0.01: an order is never inverted.

    Args:
        logits: (n,)
        counts: (n, 2) completions that ended wrong, and right.
    """
    x = np.stack([np.asarray(logits, dtype=np.float64), np.ones(len(logits))], axis=1)
    wrong, right = np.asarray(counts, dtype=np.float64).T
    prior = np.array([1.0, 0.0])
    theta = prior.copy()

    def loss(theta: FloatArray) -> float:
        z = x @ theta
        likelihood = np.logaddexp(0, -z) @ right + np.logaddexp(0, z) @ wrong
        return float(likelihood + PRIOR / 2 * ((theta - prior) ** 2).sum())

    for _ in range(MOST_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -500, 500)))
        gradient = x.T @ ((right + wrong) * p - right) + PRIOR * (theta - prior)
        curvature = (x.T * ((right + wrong) * p * (1 - p))) @ x + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size, before = 1.0, loss(theta)
        while loss(theta - size * step) > before and size > 1e-6:  # Newton's step may be too long
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < CLOSE:
            break
    return max(0.01, float(theta[0])), float(theta[1])
