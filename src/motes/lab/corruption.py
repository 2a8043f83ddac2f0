"""A reward model made worse on purpose, to measure how much a method depends on a good one.

The score r of a prefix x_≤t of t steps becomes r′:

    logit r′ = factor · logit r + bias · max(0, 3 − t) + (noise + early · max(0, 3 − t)) · z(seed, question, x_≤t)

z is a standard normal number, a function of its arguments' digest, so that the same prefix always gets the same score:
the reward model is imperfect, but not random. `bias` favours the first two steps, whatever their text; it is the same
for all candidates with the same number of steps. `early` misjudges them, each prefix differently. Neither affects later
steps. First, r is clipped to [1e-7, 1 − 1e-7]. As scores are numbers in [0, 1], logits beyond ±36 become ties.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from statistics import NormalDist

from motes.core import Trajectory
from motes.protocols import RewardModel
from motes.rewards.mapped import MappedReward, logit_of, score_of_logit


@dataclass(frozen=True, eq=False)
class CorruptedReward(MappedReward):
    """A reward model that corrupts the scores of another one, as the module's docstring defines, and keeps its costs.

    Args:
        reward: the reward model to corrupt.
        noise: standard deviation, in logits.
        factor: 1 leaves scores unchanged, more makes them overconfident.
        bias: in logits; applies twice at the first step, once at the second, then not at all.
        early: in logits; applies like `bias`.
        seed: seed of the noise.
    """

    reward: RewardModel
    noise: float = 0.0
    factor: float = 1.0
    bias: float = 0.0
    early: float = 0.0
    seed: int = 0

    def change(self, node: Trajectory, score: float) -> float:
        start = max(0, 3 - node.depth)
        logit = self.factor * logit_of(score) + self.bias * start
        if deviation := self.noise + self.early * start:
            logit += deviation * standard_normal(self.seed, node.problem.plain.question, node.text)
        return score_of_logit(logit)


def standard_normal(*name: int | str) -> float:
    """A number from N(0, 1) that is a function of `name` alone."""
    return normal_of(hashlib.sha256(json.dumps(name).encode()).digest())


def normal_of(digest: bytes) -> float:
    """A number from N(0, 1) that is a function of the first eight bytes of a digest."""
    return NormalDist().inv_cdf(((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52)
