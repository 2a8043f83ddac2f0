"""Potentials: from the reward model's scores to weight increments.

With r(x_≤t) the score of a prefix, φ = link(r)^beta and G_t the factor by which round t multiplies a weight:

    potential      unfinished at t              finished at T < t   target over complete answers
    "absolute"     φ(x_≤t)                      φ(x_≤T), again      p(x) · Π_t φ(x_≤t), a finished answer's last φ
                                                                    counted again every round it waits
    "increment"    φ(x_≤t)/φ(x_≤t−1), φ(∅) = 1  1                   p(x) · φ(x_≤T)
    λ in [0, 1]    φ(x_≤t)/φ(x_≤t−1)^(1 − λ)    1                   p(x) · φ(x_≤T) · Π_{t<T} φ(x_≤t)^λ

A number λ is the share of earlier steps' evidence that is kept when a new step is scored: none at 0, which is
"increment"; all of it at 1, which is "absolute" except for answers that wait. Where scores err, several together err
less than the last one; answers of many steps count more of them.

Length limits (`Sampling.max_tokens`, `max_steps`, the model's context) change p and nothing else: an answer cut at a
limit is a complete answer x, with the probability of its tokens, and T is the number of its steps. Limits on a whole
run (a deadline, a token budget) leave no target: the answer is the best one so far.

    link           φ at beta = 1
    "odds"         r/(1 − r), r clipped to [1e−7, 1 − 1e−7]: softmax over logits, as in the paper's experiments
    "probability"  r: the Bernoulli emission of the paper's equations (arXiv 2502.01618, section 3); r = 0 ends a path
                   for good, also under "increment", where the telescoping product would let it come back
    "exponential"  e^r: the optimum of a reward whose price is divergence from the model, max E[r] − KL(q ‖ p)/beta
                   (Korbak, Perez, Buckley, arXiv 2205.11275); differences between scores near 0, and near 1, count
                   little, whereas on odds they may decide everything
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from motes.core import STOPS, FloatArray
from motes.methods.population import Aggregation, Population

Potential = Literal["absolute", "increment"]
Link = Literal["odds", "probability", "exponential"]

CLIP = 1e-7


def log_potential(scores: FloatArray, link: Link, beta: float) -> FloatArray:
    """log φ, elementwise; NaN (no score) stays NaN."""
    if beta == 0:  # also where log r is −inf
        return np.where(np.isnan(scores), np.nan, 0.0)
    if link == "odds":
        clipped = np.clip(scores, CLIP, 1 - CLIP)
        return np.asarray(beta * (np.log(clipped) - np.log1p(-clipped)))
    if link == "exponential":
        return np.asarray(beta * scores)
    with np.errstate(divide="ignore"):
        return np.asarray(beta * np.log(scores))


def log_increment(
    population: Population, potential: Potential | float, link: Link, beta: float, aggregation: Aggregation = "last"
) -> FloatArray:
    """log G_t of each particle after an extension, (N,).

    A particle without any step gets weight zero; one that a limit on the run cut off keeps its weight.
    """
    now = log_potential(population.aggregate(aggregation), link, beta)
    empty = np.isnan(now)
    if potential == "absolute":
        increment = np.where(empty, -np.inf, now)
    else:
        kept = 0.0 if potential == "increment" else potential
        before = log_potential(population.aggregate(aggregation, before=True), link, beta)
        before = np.where(np.isnan(before), 0.0, before)  # φ(∅) = 1
        with np.errstate(invalid="ignore"):
            ratio = np.where(np.isneginf(before), -np.inf, now - (1 - kept) * before)  # weight zero stays zero
        increment = np.where(population.extended, ratio, np.where(empty, -np.inf, 0.0))
    cut = np.array([trajectory.finished in STOPS for trajectory in population.trajectories])
    return np.where(population.extended | ~cut, increment, 0.0)
