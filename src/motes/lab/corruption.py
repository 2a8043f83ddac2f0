"""A reward model made worse on purpose: how much does a method lean on its being right?

The score r of a prefix x_≤t of t steps becomes r′:

    logit r′ = factor · logit r + bias · max(0, 3 − t) + (noise + early · max(0, 3 − t)) · z(seed, question, x_≤t)

z is a standard normal number made of its arguments' digest, so that the same prefix always gets the same score: an
imperfect reward model, not a noisy one. `bias` favours the first two steps whatever they say, which is the same for all
candidates of as many steps; `early` misjudges them, each prefix in its own way, and the third step is judged as before.
Logits are clipped at those of 1e-7 and 1 − 1e-7 first. A score is a number in [0, 1]: logits beyond ±36 become ties.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from statistics import NormalDist

from motes.core import Trajectory
from motes.protocols import RewardModel
from motes.rewards.mapped import MappedReward

CLIP = 1e-7


@dataclass(frozen=True, eq=False)
class CorruptedReward(MappedReward):
    """A reward model with the scores of the module's docstring, and the costs of the one that it wraps.

    Args:
        reward: to be corrupted.
        noise: standard deviation, in logits. factor: 1 leaves scores as they are, more is overconfidence.
        bias, early: in logits; at the first step twice as much, at the second once, then none.
        seed: of the noise.
    """

    reward: RewardModel
    noise: float = 0.0
    factor: float = 1.0
    bias: float = 0.0
    early: float = 0.0
    seed: int = 0

    def change(self, node: Trajectory, score: float) -> float:
        start = max(0, 3 - node.depth)
        clipped = min(max(score, CLIP), 1 - CLIP)
        logit = self.factor * math.log(clipped / (1 - clipped)) + self.bias * start
        if deviation := self.noise + self.early * start:
            logit += deviation * standard_normal(self.seed, node.problem.question, node.text)
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def standard_normal(*name: int | str) -> float:
    """A draw from N(0, 1) that depends on nothing but the name."""
    return normal_of(hashlib.sha256(json.dumps(name).encode()).digest())


def normal_of(digest: bytes) -> float:
    """The same of eight bytes of a digest, or more."""
    return NormalDist().inv_cdf(((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / 2**52)
