"""Sampling a batch of tokens, each sequence from its own seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from motes.core import Sampling


def uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(B,) numbers in [0, 1): a hash of each sequence's seed and the token's position in the step, nothing else.

    SplitMix64 (Steele, Lea, Flood, 2014), first over the seed, then over the sum of that hash and the position.
    """

    def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    with np.errstate(over="ignore"):
        bits = mix(mix(seeds) + positions.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


COLDEST = 1e-30
"""The lowest temperature above 0: division by less would overflow, and any difference of logits already decides."""


class Sampler:
    """The sampling parameters of a batch, as tensors. A changed batch needs a new one.

    If all rows have the same parameters, the tensors have one row.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        if all(sampling is samplings[0] for sampling in samplings):
            samplings = samplings[:1]

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        temperatures = [s.temperature for s in samplings]
        self.greedy = torch.tensor([t == 0 for t in temperatures], device=device)
        self.any_greedy = any(t == 0 for t in temperatures)
        self.temperature = column([max(t, COLDEST) if t else 1.0 for t in temperatures])
        self.top_k = torch.tensor([s.top_k for s in samplings], device=device)[:, None]
        self.top_p = column([s.top_p for s in samplings])
        self.min_p = column([s.min_p for s in samplings])
        self.sorts = any(s.top_k or s.top_p < 1 for s in samplings)
        self.any_min_p = any(s.min_p for s in samplings)
        self.any_step_entropy = any(s.step_entropy is not None for s in samplings)
        self.step_entropy = column([math.inf if s.step_entropy is None else s.step_entropy for s in samplings])
        self.most_top_logprobs = max(s.top_logprobs for s in samplings)
        """Largest number of likeliest tokens whose log-probabilities a row asks for."""

    def __call__(self, logits: Tensor, uniform: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor, Tensor]:
        """Sample one token for each row by inverting the cumulative distribution at the row's uniform number.

        Order of the filters: temperature, top_k, top_p, min_p (as in transformers).

        Args:
            logits: (B, V)
            uniform: (B,) in [0, 1)

        Returns:
            (B,) tokens, (B,) their log-probabilities at temperature 1, unfiltered, and (B,) their log-probabilities
            under the distributions that they were sampled from: 0 in greedy rows.
        """
        logits = logits.float()
        scaled = logits / self.temperature
        if self.sorts:
            scaled = self._keep_top(scaled)
        probabilities = scaled.softmax(-1)
        if self.any_min_p:
            floor = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        cumulative = probabilities.double().cumsum(-1)
        u = torch.from_numpy(uniform).to(logits.device)[:, None]
        # The last sum counts as the total, whatever its rounding error; u < 1 keeps the target below it.
        tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).squeeze(-1)
        tokens = tokens.clamp_max_(logits.shape[-1] - 1)
        proposals = probabilities.gather(-1, tokens[:, None]).squeeze(-1).double() / cumulative[:, -1]
        if self.any_greedy:
            tokens = torch.where(self.greedy, logits.argmax(-1), tokens)
            proposals = proposals.masked_fill(self.greedy, 1.0)
        logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
        return tokens, logprobs, proposals.log()

    def is_uncertain(self, logits: Tensor) -> Tensor:
        """(B,) whether the distribution of each row's next token, at temperature 1, has more entropy than the row's
        `Sampling.step_entropy`."""
        logprobs = logits.float().log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs.clamp_min(-1e4)).sum(-1)
        return entropies > self.step_entropy.squeeze(-1)

    def top_logprobs(self, logits: Tensor) -> Tensor:
        """(B, k) the log-probabilities of the likeliest tokens, the largest first, at temperature 1 without filters."""
        k = min(self.most_top_logprobs, logits.shape[-1])
        logits = logits.float()
        return logits.topk(k, -1).values - logits.logsumexp(-1, keepdim=True)

    def _keep_top(self, scaled: Tensor) -> Tensor:
        ordered, order = scaled.sort(-1, descending=True)
        rank = torch.arange(scaled.shape[-1], device=scaled.device)
        ordered = ordered.masked_fill((self.top_k > 0) & (rank >= self.top_k), -torch.inf)
        mass = ordered.softmax(-1).cumsum(-1)
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], -1)
        ordered = ordered.masked_fill((before >= self.top_p) & (self.top_p < 1) & (rank > 0), -torch.inf)
        return torch.empty_like(scaled).scatter_(-1, order, ordered)
